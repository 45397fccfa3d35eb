"""Small trained parts beside a frozen encoder: LoRA (Hu et al. 2022) and bottleneck adapters (Houlsby et al. 2019).

They belong to the head, not to the encoder: the encoder's own tensors stay as pretraining left them, bit for bit, and a
checkpoint says which model it adapts. Both begin as nothing (their last matrix is zero), so training starts at the
pretrained model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig


class LowRank(nn.Module):
    """LoRA's update of a linear layer: scale * B A x, B zero at first (section 4.1)."""

    def __init__(self, in_size: int, out_size: int, rank: int):
        super().__init__()
        self.down = nn.Linear(in_size, rank, bias=False)
        self.up = nn.Linear(rank, out_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the linear layer's output for the input x [P, in] -> [P, out]; alpha is 2 * rank."""
        return 2.0 * self.up(self.down(x))


class Bottleneck(nn.Module):
    """A residual bottleneck after a feed-forward block (Houlsby et al. 2019, section 2.1)."""

    def __init__(self, hidden_size: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, size), nn.Linear(size, hidden_size)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, y: Tensor) -> Tensor:
        """What is added to the block's output y [P, C]."""
        return self.up(F.gelu(self.down(y)))


class Adapters(nn.Module):
    """LoRA on the attention of each layer, or a bottleneck after each feed-forward, or both.

    Args:
        encoder: whose layers they are for.
        lora_rank: rank of the update of the attention's projections; 0 is none.
        adapter_size: width of the bottlenecks; 0 is none.
    """

    def __init__(self, encoder: EncoderConfig, *, lora_rank: int, adapter_size: int):
        super().__init__()
        if getattr(encoder, "context", "transformer") != "transformer":
            raise UserError("task.lora_rank and task.adapter_size adapt a Transformer, and this encoder is none")
        size, layers = encoder.hidden_size, range(encoder.num_layers)
        if lora_rank:
            self.qkv = nn.ModuleList(LowRank(size, 3 * size, lora_rank) for _ in layers)
            self.out = nn.ModuleList(LowRank(size, size, lora_rank) for _ in layers)
        if adapter_size:
            self.feed = nn.ModuleList(Bottleneck(size, adapter_size) for _ in layers)
        self.has_lora, self.has_bottlenecks = bool(lora_rank), bool(adapter_size)

    def attach(self, encoder: Encoder) -> None:
        """Take effect in an encoder, whose own parameters stop training."""
        encoder.requires_grad_(False)
        for i, layer in enumerate(encoder.context.layers):
            if self.has_lora:
                _add_of_input(layer.attention.qkv, self.qkv[i])
                _add_of_input(layer.attention.out, self.out[i])
            if self.has_bottlenecks:
                _add_of_output(layer.feed_out, self.feed[i])

    @torch.no_grad()
    def merge(self, encoder: Encoder) -> None:
        """Add LoRA's updates to the weights of an encoder to which it is not attached; bottlenecks cannot merge."""
        assert not self.has_bottlenecks
        for i, layer in enumerate(encoder.context.layers):
            for linear, part in ((layer.attention.qkv, self.qkv[i]), (layer.attention.out, self.out[i])):
                linear.weight += 2.0 * part.up.weight @ part.down.weight


def _add_of_input(module: nn.Module, part: nn.Module) -> None:
    module.register_forward_hook(lambda _module, inputs, output: output + part(inputs[0]))


def _add_of_output(module: nn.Module, part: nn.Module) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: output + part(output))
