"""Which tensor is which: our names beside those of transformers, fairseq and torchaudio.

transformers' names, without the model's prefix and with weight norm as `weight_g` and `weight_v`, are the common
tongue: tensors of the others are renamed to them, so that one table leads to ours and back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import UserError
from speechssl.models.encoder import EncoderConfig

# Ours: the common names, of which several are laid on top of each other, first dimension first.
Table = dict[str, tuple[str, ...]]

# The two ways in which torch names the parts of a weight norm: of its older function and its newer one.
WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)

HEADS: dict[str, Table] = {
    "none": {},
    "ctc": {"linear.weight": ("lm_head.weight",), "linear.bias": ("lm_head.bias",)},
    "wav2vec2": {
        "quantizer.codebook": ("quantizer.codevectors",),
        "quantizer.projection.weight": ("quantizer.weight_proj.weight",),
        "quantizer.projection.bias": ("quantizer.weight_proj.bias",),
        "project_context.weight": ("project_hid.weight",),
        "project_context.bias": ("project_hid.bias",),
        "project_target.weight": ("project_q.weight",),
        "project_target.bias": ("project_q.bias",),
    },
    # Of the shape that transformers has (huggingface_out.classifier_difference).
    "classify": {
        "projection.weight": ("projector.weight",),
        "projection.bias": ("projector.bias",),
        "linear.weight": ("classifier.weight",),
        "linear.bias": ("classifier.bias",),
    },
}


def head_table(objective: Mapping[str, Any]) -> Table:
    """The table of a head's tensors, from its name and options."""
    table = HEADS[objective["name"]]
    if objective["name"] == "classify" and objective.get("layers", "weighted") == "weighted":
        return {**table, "layer_weights": ("layer_weights",)}
    return table


def encoder_table(config: EncoderConfig) -> Table:
    """The table of an encoder's tensors."""
    modules = {"projection": "feature_projection.projection", "context.norm": "encoder.layer_norm"}
    if config.feature_norm:
        modules["feature_norm"] = "feature_projection.layer_norm"
    table: Table = {"mask_vector": ("masked_spec_embed",)}
    for i in range(len(config.conv_channels)):
        ours, theirs = f"feature_encoder.layers.{i}", f"feature_extractor.conv_layers.{i}"
        for kind in ("weight", "bias") if config.conv_bias else ("weight",):
            table[f"{ours}.{kind}"] = (f"{theirs}.conv.{kind}",)
        if i == 0 or config.conv_norm == "layer":
            modules[f"{ours}.norm"] = f"{theirs}.layer_norm"
    if config.position_layers is None:
        for kind in ("weight_g", "weight_v", "bias"):
            table[f"context.positions.{kind}"] = (f"encoder.pos_conv_embed.conv.{kind}",)
    for i in range(config.position_layers or 0):
        modules[f"context.positions.layers.{i}"] = f"encoder.pos_conv_embed.layers.{i}.conv"
    if config.relative_buckets:
        table["context.relative.embedding.weight"] = ("encoder.layers.0.attention.rel_attn_embed.weight",)
    for i in range(config.num_layers):
        table |= _layer_table(i, gated=bool(config.relative_buckets))
    for ours, theirs in modules.items():
        table |= _module(ours, theirs)
    return table


def _layer_table(i: int, *, gated: bool) -> Table:
    ours, theirs = f"context.layers.{i}", f"encoder.layers.{i}"
    table = _module(f"{ours}.attention.qkv", *(f"{theirs}.attention.{part}_proj" for part in "qkv"))
    table |= _module(f"{ours}.attention.out", f"{theirs}.attention.out_proj")
    table |= _module(f"{ours}.attention_norm", f"{theirs}.layer_norm")
    table |= _module(f"{ours}.feed_in", f"{theirs}.feed_forward.intermediate_dense")
    table |= _module(f"{ours}.feed_out", f"{theirs}.feed_forward.output_dense")
    table |= _module(f"{ours}.feed_norm", f"{theirs}.final_layer_norm")
    if gated:
        table |= _module(f"{ours}.attention.gate.linear", f"{theirs}.attention.gru_rel_pos_linear")
        table[f"{ours}.attention.gate.scale"] = (f"{theirs}.attention.gru_rel_pos_const",)
    return table


def _module(ours: str, *theirs: str) -> Table:
    return {f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias")}


def to_ours(tensors: Mapping[str, Tensor], table: Table, shapes: Mapping[str, torch.Size], source: object) -> dict:
    """Tensors in common names -> in ours, with `shapes`.

    Raises:
        UserError: one is missing, has another shape or is not of floating point.
    """
    found = {}
    for ours, theirs in table.items():
        rows = shapes[ours][0] // len(theirs) if shapes[ours] else 1
        parts = []
        for name in theirs:
            if name not in tensors:
                raise UserError(f"{source} lacks the tensor {name} that its config asks for; use another copy of it")
            tensor = tensors[name]
            wanted = [rows, *shapes[ours][1:]]
            if name == "quantizer.codevectors" and list(tensor.shape) == [1, rows * wanted[1], wanted[2]]:
                tensor = tensor.reshape(wanted)
            if list(tensor.shape) != wanted or not tensor.is_floating_point():
                raise UserError(
                    f"{source} holds {name} as {tensor.dtype} {list(tensor.shape)}, but its config means "
                    f"{wanted} of floating point; use the config that belongs to the weights"
                )
            parts.append(tensor)
        found[ours] = (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
    return found


def to_common(tensors: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Tensors in our names -> in common names; what `to_ours` took, bit for bit."""
    found = {}
    for ours, theirs in table.items():
        parts = tensors[ours].chunk(len(theirs))
        found |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
    if "quantizer.codevectors" in found:
        found["quantizer.codevectors"] = found["quantizer.codevectors"].flatten(0, 1)[None]
    return found


def rename_weight_norm(
    tensors: Mapping[str, Tensor], to: tuple[str, str] = WEIGHT_NORMS[0]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with the two parts of the positional weight norm called `to`, and what they were called."""
    renamed, found = dict(tensors), list(WEIGHT_NORMS[1])
    for names in WEIGHT_NORMS:
        for name in tensors:
            for old, new in zip(names, to, strict=True):
                if name.endswith(f"pos_conv_embed.conv.{old}"):
                    renamed[name.removesuffix(old) + new] = renamed.pop(name)
                    found = list(names)
    return renamed, found


# fairseq's names (fairseq/models/wav2vec/wav2vec2.py, hubert/hubert.py), as patterns, and the common ones.
FAIRSEQ = (
    (r"mask_emb", "masked_spec_embed"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.0\.2\.(weight|bias)", r"feature_extractor.conv_layers.0.layer_norm.\1"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.(weight|bias)", r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"layer_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(weight|bias)", r"feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.(weight_g|weight_v|bias)", r"encoder.pos_conv_embed.conv.\1"),
    (r"encoder\.layer_norm\.(weight|bias)", r"encoder.layer_norm.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.(.*)", r"encoder.layers.\1.attention.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.*)", r"encoder.layers.\1.layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(.*)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(.*)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"encoder.layers.\1.final_layer_norm.\2"),
    (r"quantizer\.vars", "quantizer.codevectors"),
    (r"quantizer\.weight_proj\.(weight|bias)", r"quantizer.weight_proj.\1"),
    (r"project_q\.(weight|bias)", r"project_q.\1"),
    (r"final_proj\.(weight|bias)", r"project_hid.\1"),
    (r"proj\.(weight|bias)", r"lm_head.\1"),
)

# torchaudio's (torchaudio/models/wav2vec2/components.py).
TORCHAUDIO = (
    (r"(feature_extractor\..*)", r"\1"),
    (r"encoder\.(feature_projection\..*)", r"\1"),
    (r"encoder\.transformer\.(.*)", r"encoder.\1"),
    (r"aux\.(weight|bias)", r"lm_head.\1"),
)


def rename(name: str, patterns: Iterable[tuple[str, str]]) -> str | None:
    """The common name of a tensor, or None if no pattern knows it."""
    for pattern, replacement in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None
