"""Operations by hand, parts of a step that sum to the whole, and memory that was really used."""

from __future__ import annotations

import mmap
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speechssl.benchmarks import meters
from speechssl.models.convolution import convolve_gelu

CPU = torch.device("cpu")


def test_operations_of_a_matrix_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    assert meters.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    # The gradient of b is one more product of that size.
    assert meters.count_flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 5 * 7


def test_operations_of_a_product_that_is_added_in_place():
    """And of the strided convolution whose backward pass is written so: it costs as much three times."""
    total, a, b = torch.zeros(3, 7), torch.randn(3, 5), torch.randn(5, 7)
    assert meters.count_flops(lambda: total.addmm_(a, b)) == 2 * 3 * 5 * 7
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((4, 21, 6), (8, 6, 3)))
    step = lambda: convolve_gelu(x, weight, None, 2).sum().backward()  # noqa: E731
    assert meters.count_flops(step) == 3 * 2 * 4 * 10 * 6 * 8 * 3


def test_operations_of_a_grouped_convolution():
    weight = torch.randn(12, 2, 5, requires_grad=True)  # 12 channels in 6 groups, 5 taps
    x = torch.randn(3, 12, 20, requires_grad=True)
    forward = 2 * 3 * 12 * 16 * 2 * 5  # clips, channels, the 16 places where 5 taps fit, inputs of a group, taps
    assert meters.count_flops(lambda: F.conv1d(x, weight, groups=6)) == forward
    assert meters.count_flops(lambda: F.conv1d(x, weight, groups=6).sum().backward()) == 3 * forward
    assert meters.count_flops(lambda: F.conv1d(x.detach(), weight, groups=6).sum().backward()) == 2 * forward


def test_operations_of_attention():
    clips, heads, frames, size = 2, 3, 11, 8
    query, key, value = (torch.randn(clips, heads, frames, size, requires_grad=True) for _ in range(3))
    product = 2 * clips * heads * frames * frames * size
    assert meters.count_flops(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * product
    # Backward: four products, and the scores once more.
    step = lambda: F.scaled_dot_product_attention(query, key, value).sum().backward()  # noqa: E731
    assert meters.count_flops(step) == (2 + 5) * product


class Sleep(torch.autograd.Function):
    """Takes so many seconds forward and so many backward."""

    @staticmethod
    def forward(ctx, x, forward_s, backward_s):
        ctx.seconds = backward_s
        time.sleep(forward_s)
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient * 1, None, None


class Sleeper(nn.Module):
    def __init__(self, forward_s, backward_s, inner=None):
        super().__init__()
        self.seconds, self.inner = (forward_s, backward_s), inner

    def forward(self, x):
        return Sleep.apply(self.inner(x) if self.inner else x, *self.seconds)


def test_parts_have_their_own_time_alone():
    first, inner = Sleeper(0.01, 0.04), Sleeper(0.02, 0.05)
    outer = Sleeper(0.03, 0.06, inner)
    parts = meters.Parts(CPU)
    for module, name in ((first, "first"), (inner, "inner"), (outer, "outer")):
        parts.watch(module, name)
    with parts.part("loss"):
        loss = outer(first(torch.ones(1, requires_grad=True))).sum()
        time.sleep(0.02)
    parts.backward(loss, "loss")
    parts.end_step()
    at_least = {"first": 0.01, "inner": 0.02, "outer": 0.03, "loss": 0.02}
    at_least |= {"first_backward": 0.04, "inner_backward": 0.05, "outer_backward": 0.06, "loss_backward": 0.0}
    assert set(parts.seconds) == {*at_least, "other"}
    assert all(parts.seconds[part] >= seconds for part, seconds in at_least.items())
    assert sum(parts.shares().values()) == pytest.approx(1)
    parts.forget()
    assert parts.seconds == {}


def test_a_method_can_be_a_part():
    class Model:
        def draw(self, seconds):
            time.sleep(seconds)
            return "drawn"

    model, parts = Model(), meters.Parts(CPU)
    parts.wrap(model, "draw", "draws")
    with parts.part("loss"):
        assert model.draw(0.01) == "drawn"
    parts.end_step()
    assert parts.seconds["draws"] >= 0.01
    assert next(iter(parts.shares())) == "draws"


def test_the_matmul_peak_is_that_of_some_processor():
    assert 1e8 < meters.matmul_peak(CPU, torch.float32, seconds=0.05) < 1e15


def test_peak_memory_stays_when_memory_is_given_back():
    memory = meters.Memory(CPU)
    if memory.before is None:
        pytest.skip("this system does not say what is resident")
    held = mmap.mmap(-1, 2**31)  # more than this process has used before, and not from an allocator that may have it
    torch.frombuffer(held, dtype=torch.uint8).fill_(1)
    del held
    assert 0.99 * 2**31 < memory.peak() < 2**32  # the kernel counts pages in small batches
