"""A convolution by way of spectra is the convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speechssl.models.fourier import correlate


def plain(clips, weight, groups):
    pads = weight.shape[2] // 2
    return [F.conv1d(x.T[None], weight, padding=pads, groups=groups)[0, :, : len(x)].T for x in clips]


@pytest.mark.parametrize("kernel", [5, 16, 128])  # odd, even, the published one
def test_output_and_gradients_are_those_of_conv1d(kernel):
    generator = torch.Generator().manual_seed(0)
    lengths = [2 * kernel + 3, 1, kernel, 7, 7]
    clips = [torch.randn(length, 12, generator=generator).requires_grad_() for length in lengths]
    weight = torch.randn(8, 3, kernel, generator=generator).requires_grad_()
    sides = [torch.cat(f(clips, weight, 4)) for f in (correlate, plain)]
    torch.testing.assert_close(*sides, rtol=1e-5, atol=2e-5)
    weights = torch.randn(sides[0].shape, generator=generator)
    gradients = [torch.autograd.grad((y * weights).sum(), [*clips, weight]) for y in sides]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_it_can_train_after_inference():
    clips, weight = [torch.randn(40, 8)], torch.randn(8, 4, 12, requires_grad=True)
    with torch.inference_mode():
        correlate(clips, weight, 2)
    correlate([clips[0].requires_grad_()], weight, 2)[0].sum().backward()
    assert weight.grad.isfinite().all()


def test_in_autocast_it_stays_exact():
    clips, weight = [torch.randn(40, 8)], torch.randn(8, 4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        [found] = correlate(clips, weight, 2)
    torch.testing.assert_close(found, plain(clips, weight, 2)[0], rtol=1e-5, atol=2e-5)
