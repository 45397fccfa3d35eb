"""The convolution with its own backward pass gives what torch's does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speechssl.models import convolution
from speechssl.models.convolution import convolve_gelu

# Windows, positions, channels, kernel, stride: odd and even, positions left over, kernels within and beyond a stride.
SHAPES = [(3, 51, 4, 2, 2), (2, 101, 5, 3, 2), (1, 40, 6, 3, 2), (2, 40, 3, 5, 3), (2, 30, 4, 1, 1)]


def given(windows, length, channels, kernel, stride, *, outputs=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (windows, length, channels), (outputs, channels, kernel), (outputs,)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def plain(x, weight, bias, stride):
    return F.conv1d(F.gelu(x).transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)


@pytest.mark.parametrize("rows", [1, 60, convolution.ROWS])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_gelu_and_conv1d(shape, rows, monkeypatch):
    monkeypatch.setattr(convolution, "ROWS", rows)
    inputs, stride = given(*shape), shape[-1]
    ours, expected = convolve_gelu(*inputs, stride), plain(*inputs, stride)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(expected.shape, dtype=expected.dtype)
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, expected)]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_without_gradient_it_is_the_same():
    inputs = given(2, 101, 5, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(convolve_gelu(*inputs, 2), plain(*inputs, 2))


def test_only_what_needs_a_gradient_gets_one():
    x, weight, bias = given(2, 101, 5, 3, 2)
    convolve_gelu(x.detach(), weight, None, 2).sum().backward()
    assert weight.grad is not None
    convolve_gelu(x, weight.detach(), bias.detach(), 2).sum().backward()
    assert x.grad is not None and bias.grad is None


def test_in_bf16_the_gradients_are_near():
    inputs = given(9, 101, 16, 3, 2, dtype=torch.float32)
    expected = torch.autograd.grad(plain(*inputs, 2).square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours = convolve_gelu(*inputs, 2)
    assert ours.dtype == torch.bfloat16
    for found, wanted in zip(torch.autograd.grad(ours.float().square().sum(), inputs), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.02 * wanted.norm()
