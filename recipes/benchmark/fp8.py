"""`speechssl pretrain` with FP8 in the Transformer's linear layers, to try what it does to the task and to the speed.

    python recipes/benchmark/fp8.py data.train=train.jsonl data.valid=valid.jsonl run_dir=runs/fp8 model=base

Takes what `speechssl pretrain` takes, and is compared with it at trainer.precision=bf16: all else is as there.
It is one process, since others would be started without FP8; for the same reason a run that was interrupted goes on by
this command, not by the one that it names.
A GPU needs compute capability 8.9 (Ada, Hopper) or newer; a CPU computes the same numbers slowly, unless it has FP8.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from speechssl.cli import main
from speechssl.commands import pretrain
from speechssl.models.encoder import Encoder

# More digits for what goes forward, more range for gradients (Micikevicius et al. 2022, arXiv 2209.05433).
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


class Product(torch.autograd.Function):
    """x [P, C_in] by weight [C_out, C_in] -> bf16 [P, C_out]; all three products in FP8, with one scale a tensor."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = _scaled(x, FORWARD), _scaled(weight, FORWARD)
        ctx.save_for_backward(*x, *weight)
        return _multiply(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        gradient, scale = _scaled(gradient, BACKWARD)
        into_x = _multiply((gradient, scale), (weight.T, weight_scale))
        return into_x, _multiply((gradient.T, scale), (x.T, x_scale))


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x so scaled that its largest value is the largest of `dtype`, and what gives x back."""
    scale = x.abs().amax().float().clamp_min(1e-12) / torch.finfo(dtype).max
    return (x / scale).to(dtype), scale


def _multiply(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """a [M, K] and b [N, K] with their scales -> a b^T, bf16 [M, N]."""
    return torch._scaled_mm(a[0].contiguous(), b[0].contiguous().T, a[1], b[1], out_dtype=torch.bfloat16)


class Float8Linear(nn.Linear):
    """A linear layer by `Product`."""

    def forward(self, x: Tensor) -> Tensor:
        """[P, C_in] -> bf16 [P, C_out]."""
        return Product.apply(x, self.weight) + self.bias.to(torch.bfloat16)


def build(*arguments, **options) -> Encoder:
    """An Encoder whose Transformer layers multiply in FP8."""
    encoder = Encoder(*arguments, **options)
    for layer in encoder.context.layers:
        for linear in (layer.attention.qkv, layer.attention.out, layer.feed_in, layer.feed_out):
            linear.__class__ = Float8Linear
    return encoder


if __name__ == "__main__":
    pretrain.Encoder = build
    sys.exit(main(["pretrain", *sys.argv[1:], "trainer.precision=bf16", "trainer.devices=1"]))
