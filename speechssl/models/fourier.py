"""Wide grouped convolutions over time by way of their spectra, for CPUs.

With K taps, blocks of K outputs come from spectra of 2K positions (overlap-save). The transforms are matrix products
with a constant matrix: at these sizes as fast as an FFT, and without its copies, since channels stay innermost.
"""

from __future__ import annotations

import functools
import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor


def correlate(clips: list[Tensor], weight: Tensor, groups: int) -> list[Tensor]:
    """Each clip [T, C_in] -> [T, C_out]: sum over k of weight[:, :, k] and the frame k - K // 2 away, zero outside.

    weight [C_out, C_in / groups, K], as conv1d has it. At least in fp32, whatever the clips are.
    """
    kernel, in_channels = weight.shape[2], clips[0].shape[1]
    dtype = torch.promote_types(clips[0].dtype, torch.float32)
    counts = [-(-len(clip) // kernel) for clip in clips]
    before = kernel // 2
    padded = [
        F.pad(clip.to(dtype), (0, 0, before, (count + 1) * kernel - before - len(clip)))
        for clip, count in zip(clips, counts, strict=True)
    ]
    halves = torch.cat(padded).view(-1, kernel, in_channels).transpose(0, 1)  # [K, count + 1 of each clip, C_in]
    starts = accumulate((count + 1 for count in counts), initial=0)
    first = torch.tensor([start + i for start, count in zip(starts, counts, strict=False) for i in range(count)])
    blocks = torch.cat([halves.index_select(1, first), halves.index_select(1, first + 1)])

    forth, back = _transforms(kernel, dtype)
    with torch.autocast(weight.device.type, enabled=False):
        spectra = (forth @ blocks.flatten(1)).view(2, kernel + 1, len(first), groups, -1)
        real, imaginary = spectra.transpose(2, 3).flatten(1, 2)  # [frequencies * groups, blocks, C_in / groups]
        response = forth[:, :kernel] @ weight.to(dtype).flatten(0, 1).T
        real_taps, imaginary_taps = response.view(2, (kernel + 1) * groups, -1, weight.shape[1]).transpose(2, 3)
        products = torch.stack(
            [
                torch.baddbmm(torch.bmm(real, real_taps), imaginary, imaginary_taps),
                torch.baddbmm(torch.bmm(imaginary, real_taps), real, imaginary_taps, alpha=-1),
            ]
        )
        products = products.view(2, kernel + 1, groups, len(first), -1).transpose(2, 3)
        outputs = back @ products.reshape(2 * (kernel + 1), -1)
    frames = outputs.view(kernel, len(first), -1).transpose(0, 1).flatten(0, 1)
    parts = frames.split([count * kernel for count in counts])
    return [part[: len(clip)] for part, clip in zip(parts, clips, strict=True)]


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for training, whoever asks first
def _transforms(kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """2K positions to their spectrum, real parts above imaginary ones [2 (K + 1), 2K]; and back to the first K."""
    angle = torch.outer(torch.arange(kernel + 1), torch.arange(2 * kernel)).double() * (math.pi / kernel)
    forth = torch.cat([angle.cos(), -angle.sin()])
    twice = torch.full((kernel + 1, 1), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1.0
    back = forth[:, :kernel] * torch.cat([twice, twice]) / (2 * kernel)
    return forth.to(dtype), back.T.to(dtype).contiguous()
