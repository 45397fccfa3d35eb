"""What an encoder should compute, written plainly: the independent check where transformers is not installed.

One clip at a time, convolutions and norms as the papers have them, attention as a softmax of products: slow, and
sharing nothing with speechssl.models but the common names and the config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.models.encoder import EncoderConfig


def hidden_states(
    tensors: Mapping[str, Tensor], config: EncoderConfig, waveform: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """A clip [N] -> the feature encoder's frames [T, C_conv] and layers + 1 hidden states [T, C]."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float = config.norm_eps) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    x = waveform[None]  # [C, T] through the convolutions
    for i, stride in enumerate(config.conv_strides):
        name = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x[None], tensors[f"{name}.conv.weight"], tensors.get(f"{name}.conv.bias"), stride=stride)[0]
        if config.conv_norm == "layer":
            x = norm(x.T, f"{name}.layer_norm", 1e-5).T
        elif i == 0:
            mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
            scale, shift = tensors[f"{name}.layer_norm.weight"], tensors[f"{name}.layer_norm.bias"]
            x = (x - mean) / (variance + 1e-5).sqrt() * scale[:, None] + shift[:, None]
        x = F.gelu(x)
    features = x.T
    x = norm(features, "feature_projection.layer_norm") if config.feature_norm else features
    x = linear(x, "feature_projection.projection")
    x = x + _positions(tensors, config, x)
    if not config.pre_norm:
        x = norm(x, "encoder.layer_norm")
    states = [x]
    for i in range(config.num_layers):
        name = f"encoder.layers.{i}"
        if config.pre_norm:
            x = x + _attention(tensors, config, norm(x, f"{name}.layer_norm"), f"{name}.attention")
        else:
            x = norm(x + _attention(tensors, config, x, f"{name}.attention"), f"{name}.layer_norm")
        y = norm(x, f"{name}.final_layer_norm") if config.pre_norm else x
        y = linear(F.gelu(linear(y, f"{name}.feed_forward.intermediate_dense")), f"{name}.feed_forward.output_dense")
        x = x + y if config.pre_norm else norm(x + y, f"{name}.final_layer_norm")
        states.append(x)
    if config.pre_norm:
        states[-1] = norm(x, "encoder.layer_norm")
    return features, states


def _positions(tensors: Mapping[str, Tensor], config: EncoderConfig, x: Tensor) -> Tensor:
    """[T, C] -> [T, C]."""
    name, padding = "encoder.pos_conv_embed", config.position_kernel // 2
    if config.position_layers is None:
        direction, size = tensors[f"{name}.conv.weight_v"], tensors[f"{name}.conv.weight_g"]
        weight = direction / direction.pow(2).sum((0, 1), keepdim=True).sqrt() * size
        bias = tensors[f"{name}.conv.bias"]
        y = F.conv1d(x.T[None], weight, bias, padding=padding, groups=config.position_groups)
        return F.gelu(y[0, :, : x.shape[0]].T)
    for i in range(config.position_layers):
        weight, bias = (tensors[f"{name}.layers.{i}.conv.{kind}"] for kind in ("weight", "bias"))
        y = F.conv1d(x.T[None], weight, bias, padding=padding, groups=config.position_groups)[0, :, : x.shape[0]].T
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        x = F.gelu(y)
    return x


def _attention(tensors: Mapping[str, Tensor], config: EncoderConfig, x: Tensor, name: str) -> Tensor:
    """[T, C] -> [T, C], one head after the other."""
    size = config.hidden_size // config.num_heads
    query, key, value = (
        F.linear(x, tensors[f"{name}.{part}_proj.weight"], tensors[f"{name}.{part}_proj.bias"]) for part in "qkv"
    )
    outputs = []
    for head in range(config.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        if config.relative_buckets:
            gate = F.linear(
                x[:, part], tensors[f"{name}.gru_rel_pos_linear.weight"], tensors[f"{name}.gru_rel_pos_linear.bias"]
            )
            update, reset = gate[:, :4].sum(1).sigmoid(), gate[:, 4:].sum(1).sigmoid()
            strength = update * (reset * tensors[f"{name}.gru_rel_pos_const"][0, head, 0, 0] - 1.0) + 2.0
            table = tensors["encoder.layers.0.attention.rel_attn_embed.weight"][:, head]
            scores = scores + strength[:, None] * table[_buckets(config, x.shape[0])]
        outputs.append(scores.softmax(1) @ value[:, part])
    return F.linear(torch.cat(outputs, 1), tensors[f"{name}.out_proj.weight"], tensors[f"{name}.out_proj.bias"])


def _buckets(config: EncoderConfig, num_frames: int) -> Tensor:
    """int64 [T, T]: WavLM's bucket of the way from each frame (rows) to each other; in single precision, as WavLM's."""
    half = (config.relative_buckets or 0) // 2
    near = half // 2
    frames = torch.arange(num_frames)
    way = frames[None, :] - frames[:, None]
    steps = (way.abs().clamp_min(near).float() / near).log() / math.log(config.relative_distance / near)
    far = (near + (steps * (half - near)).long()).clamp_max(half - 1)
    return torch.where(way.abs() < near, way.abs(), far) + half * (way > 0)
