"""How many frames a stack of unpadded convolutions makes: the only place with this arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

# Rows of packed frames are rounded up to a multiple of this (see `missing`).
ROWS = 64
# Frames that a window of the feature encoder gives: half a second; and one at a clip's end, where at most REST are
# left: windows of few frames compute more of what their neighbours compute, too.
WINDOW, END, REST = 25, 5, 15


def num_frames(num_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Frames that the stack makes of `num_samples` samples; 0 where the clip is shorter than the receptive field."""
    for kernel, stride in zip(kernels, strides, strict=True):
        num_samples = (num_samples - kernel) // stride + 1 if num_samples >= kernel else 0
    return num_samples


def rest(num_frames: int) -> int:
    """Of a clip's frames, those at its end that windows of END give; windows of WINDOW give the others."""
    left = num_frames % WINDOW
    return left if left <= REST else 0


def num_samples(num_frames: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that so many frames see: the shortest clip that gives them."""
    return (num_frames - 1) * hop(strides) + receptive_field(kernels, strides)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame sees: the shortest clip that gives a frame (400 for wav2vec 2.0's stack)."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def hop(strides: Sequence[int]) -> int:
    """Samples from one frame to the next (320 for wav2vec 2.0's stack)."""
    product = 1
    for stride in strides:
        product *= stride
    return product


def runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours of equal length, as (first clip, number of clips, length): each run is a batch without padding."""
    found, first = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        found.append((first, count, length))
        first += count
    return found


def missing(number: int, multiple: int) -> int:
    """What `number` lacks to the next multiple: rows to add so that tensors come in few shapes.

    A CPU compiles a kernel for each shape of a matrix product or convolution, and a GPU's compiler recompiles.
    """
    return -number % multiple
