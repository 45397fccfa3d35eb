"""Frame counts against real convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.models.lengths import hop, num_frames, num_samples, receptive_field, runs

STACKS = {
    "standard": ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)),
    "one": ((4,), (3,)),
    "stride over kernel": ((2, 3), (5, 4)),
    "other": ((7, 5, 1), (3, 1, 2)),
}


def frames_of_convolutions(num_samples, kernels, strides):
    x = torch.zeros(1, 1, num_samples)
    for kernel, stride in zip(kernels, strides, strict=True):
        if x.shape[-1] < kernel:
            return 0
        x = nn.functional.conv1d(x, torch.zeros(1, 1, kernel), stride=stride)
    return x.shape[-1]


@pytest.mark.parametrize("stack", STACKS)
def test_frames_are_those_of_real_convolutions(stack):
    kernels, strides = STACKS[stack]
    lengths = [*range(1, 60), *range(395, 410), *range(715, 725), 1039, 1040, 1041, 15999, 16000, 16001, 33333]
    counted = [num_frames(n, kernels, strides) for n in lengths]
    assert counted == [frames_of_convolutions(n, kernels, strides) for n in lengths]


@pytest.mark.parametrize("stack", STACKS)
def test_the_receptive_field_is_the_shortest_clip_with_a_frame(stack):
    kernels, strides = STACKS[stack]
    field = receptive_field(kernels, strides)
    assert frames_of_convolutions(field, kernels, strides) == 1
    assert frames_of_convolutions(field - 1, kernels, strides) == 0
    assert frames_of_convolutions(field + hop(strides), kernels, strides) == 2
    assert frames_of_convolutions(field + hop(strides) - 1, kernels, strides) == 1


@pytest.mark.parametrize("stack", STACKS)
def test_so_many_frames_need_so_many_samples(stack):
    kernels, strides = STACKS[stack]
    for count in (1, 2, 7):
        needed = num_samples(count, kernels, strides)
        assert frames_of_convolutions(needed, kernels, strides) == count
        assert frames_of_convolutions(needed - 1, kernels, strides) == count - 1


def test_the_standard_stack_has_the_papers_figures():
    kernels, strides = STACKS["standard"]
    assert (receptive_field(kernels, strides), hop(strides)) == (400, 320)
    assert num_frames(0, kernels, strides) == num_frames(399, kernels, strides) == 0
    assert num_frames(16_000, kernels, strides) == 49  # "about 49 Hz", appendix


def test_runs_are_neighbours_of_equal_length():
    assert runs([5, 5, 3, 5, 5, 5]) == [(0, 2, 5), (2, 1, 3), (3, 3, 5)]
    assert runs([]) == []
