"""A strided convolution of GELU's output, with the backward pass that is fastest on a CPU.

oneDNN is fast forward and for the gradient of the input (about 200 GFLOP/s a core where products reach 215), but at 50
to 70 for the gradient of a kernel with stride over long rows: it is written as matrix products here. GELU is in it so
that its input alone is kept, half of what the feature encoder would keep.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of a product: few enough that they stay in the cache, enough that it runs at full speed.
ROWS = 2048


def convolve_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """x [n, L, C_in], weight [C_out, C_in, kernel], bias [C_out] or None -> conv(gelu(x)) [n, T, C_out]."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return _ConvolveGelu.apply(x, weight, bias, stride)
    return _convolve(F.gelu(x), weight, bias, stride)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return _channels_last(F.conv2d(_image(x), weight.unsqueeze(2), bias, stride=(1, stride)))


def _image(x: Tensor) -> Tensor:
    """[n, L, C] -> [n, C, 1, L] in channels-last memory, as conv2d wants it."""
    return x.transpose(1, 2).unsqueeze(2)


def _channels_last(image: Tensor) -> Tensor:
    """The inverse of `_image`."""
    return image.squeeze(2).transpose(1, 2)


class _ConvolveGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.bias_size = stride, None if bias is None else [len(bias)]
        return _convolve(F.gelu(x), weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        x_needed, weight_needed, bias_needed, _ = ctx.needs_input_grad
        into_x = into_weight = into_bias = None
        if weight_needed:
            into_weight = _into_weight(x, gradient, weight.shape[2], ctx.stride).to(weight.dtype)
        if bias_needed:
            into_bias = gradient.sum((0, 1))
        if x_needed:
            image, kernel = _image(x).to(gradient.dtype), weight.unsqueeze(2).to(gradient.dtype)
            stride, zero, one = (1, ctx.stride), (0, 0), (1, 1)
            options = ctx.bias_size, stride, zero, one, False, zero, 1, (True, False, False)
            into_gelu, *_ = torch.ops.aten.convolution_backward(_image(gradient), image, kernel, *options)
            into_x = torch.ops.aten.gelu_backward(_channels_last(into_gelu).to(x.dtype), x)
        return into_x, into_weight, into_bias, None


def _into_weight(x: Tensor, gradient: Tensor, kernel: int, stride: int) -> Tensor:
    """The kernel's gradient [C_out, C_in, kernel], at least float32: each output's gradient by the patch it saw."""
    windows, _, channels = x.shape
    outputs = gradient.shape[1]
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    total = x.new_zeros(gradient.shape[2], kernel * channels, dtype=dtype)
    count = max(ROWS // outputs, 1)
    for part in (slice(i, i + count) for i in range(0, windows, count)):
        seen = F.gelu(x[part]).to(gradient.dtype)
        patches = seen.unfold(1, kernel, stride).transpose(2, 3).flatten(2).flatten(0, 1)
        rows = gradient[part].flatten(0, 1).T
        if rows.dtype == total.dtype:
            total.addmm_(rows, patches)
        else:
            total += rows @ patches
    return total.unflatten(1, (kernel, channels)).transpose(1, 2)
