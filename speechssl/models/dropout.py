"""Dropout for CPUs: masks from 16 random bits an element, and attention that keeps what the backward pass needs alone.

torch draws a mask one element at a time, its attention with dropout passes over the weights of all clips and heads
together eight times, and its kernel for attention without dropout is slow for clips of a few seconds. Here a few heads
at a time go through all steps while they are in the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Attention weights that are computed together: 1 MiB in fp32.
WEIGHTS = 2**18
LEVELS = 2**16


def drawn(shape: torch.Size, probability: float) -> tuple[Tensor, float]:
    """What to keep, bool, drawn from torch's generator, and the factor on it.

    The probability is rounded to 1 / 65,536, and the factor is that of the rounded one, so the mean is right.
    """
    level = min(round(probability * LEVELS), LEVELS - 1)
    bits = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: shape.numel()].view(shape) >= level - LEVELS // 2
    return kept, LEVELS / (LEVELS - level)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """As F.dropout, which a compiler draws within what it fuses."""
    if not training or not probability or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability, training)
    kept, factor = drawn(x.shape, probability)
    return x * kept * factor


def attend(qkv: Tensor, probability: float) -> Tensor:
    """Scaled dot-product attention on a CPU; its weights are dropped with a probability, which may be 0.

    Queries, keys and values [3, n, H, T, D] of n clips -> [n, H, T, D].
    """
    return _Attend.apply(qkv.flatten(1, 2), probability).unflatten(0, qkv.shape[1:3])


class _Attend(torch.autograd.Function):
    """Queries, keys and values [3, n, T, D] of n heads, dropout of the weights -> [n, T, D]."""

    @staticmethod
    def forward(ctx, qkv: Tensor, probability: float) -> Tensor:
        query, key, value = qkv
        heads, length, size = query.shape
        shape = torch.Size((heads, length, length))
        kept, ctx.factor = drawn(shape, probability) if probability else (None, 1.0)
        all_weights = query.new_empty(shape) if ctx.needs_input_grad[0] else None
        output = torch.empty_like(query)
        for part in _parts(heads, length):
            scores = torch.bmm(query[part] * size**-0.5, key[part].transpose(1, 2))
            weights = torch.empty_like(scores) if all_weights is None else all_weights[part]
            torch.softmax(scores, -1, out=weights)
            torch.bmm(_dropped(weights, kept, part), _scaled(value[part], ctx.factor), out=output[part])
        ctx.save_for_backward(qkv, all_weights, kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        qkv, all_weights, all_kept = ctx.saved_tensors
        heads, length, size = gradient.shape
        into = torch.empty_like(qkv)
        for part in _parts(heads, length):
            query, key, value = qkv[:, part]
            into_query, into_key, into_value = into[:, part]
            weights = all_weights[part]
            rows = _scaled(gradient[part], ctx.factor)
            torch.bmm(_dropped(weights, all_kept, part).transpose(1, 2), rows, out=into_value)
            into_weights = torch.bmm(rows, value.transpose(1, 2))
            if all_kept is not None:
                into_weights.mul_(all_kept[part])
            into_scores = torch._softmax_backward_data(into_weights, weights, -1, weights.dtype)
            torch.bmm(into_scores, key * size**-0.5, out=into_query)
            torch.bmm(into_scores.transpose(1, 2), query * size**-0.5, out=into_key)
        return into, None


def _dropped(weights: Tensor, kept: Tensor | None, part: slice) -> Tensor:
    """The weights of some heads after dropout, if there is any."""
    return weights if kept is None else weights * kept[part]


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor


def _parts(heads: int, length: int) -> list[slice]:
    """So many heads that their weights stay in the cache."""
    count = max(WEIGHTS // length**2, 1)
    return [slice(i, min(i + count, heads)) for i in range(0, heads, count)]
