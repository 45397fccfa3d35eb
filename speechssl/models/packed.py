"""Attention within each of many packed clips by one kernel of a GPU: FlashAttention-2 (Dao 2023, arXiv 2307.08691)."""

from __future__ import annotations

import functools
from itertools import accumulate

import torch
from torch import Tensor

from speechssl.types import to_device

# Heads that the kernel takes: multiples of the first number up to the second; and the GPUs, of Ampere (2020) or newer.
HEAD, LARGEST_HEAD, CAPABILITY = 8, 256, (8, 0)


def fits(qkv: Tensor) -> bool:
    """Whether the kernel takes queries, keys and values [P, 3, H, D] where they are: it has no fp32."""
    if qkv.device.type != "cuda" or qkv.dtype not in (torch.float16, torch.bfloat16):
        return False
    size, is_built = qkv.shape[-1], torch.backends.cuda.is_flash_attention_available()
    is_new = torch.cuda.get_device_capability(qkv.device) >= CAPABILITY
    return size % HEAD == 0 and size <= LARGEST_HEAD and is_built and is_new


def attend_packed(qkv: Tensor, frame_lengths: list[int], probability: float, *, causal: bool) -> Tensor:
    """Queries, keys and values [P, 3, H, D] of packed clips -> [P, H, D], weights dropped with a probability.

    torch.nn.attention.varlen calls the same kernel, but without dropout.
    """
    ends, longest = _ends(tuple(frame_lengths), qkv.device), max(frame_lengths)
    query, key, value = qkv.unbind(1)
    output, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, longest, longest, probability, causal, False
    )
    return output


@functools.lru_cache(maxsize=4)
def _ends(frame_lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 [B + 1]: where each clip begins and the last one ends; the same for every layer."""
    return to_device(torch.tensor([0, *accumulate(frame_lengths)], dtype=torch.int32), device)
