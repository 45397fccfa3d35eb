"""torchaudio's Wav2Vec2Model, in and out.

A bare state dict does not say everything about its model: how many heads its attention has, whether the norms come
before or after, how far the convolutions step. What we write has config.json beside it, with the arguments of
torchaudio.models.wav2vec2_model; for what torchaudio users saved, the published models' shapes serve where they fit,
and `speechssl convert` has keys for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.errors import UserError
from speechssl.interop import foreign
from speechssl.interop.foreign import Foreign
from speechssl.interop.huggingface import read_pickle
from speechssl.interop.names import TORCHAUDIO, WEIGHT_NORMS, rename, rename_weight_norm
from speechssl.models.encoder import EncoderConfig
from speechssl.training.checkpoint import Checkpoint, read_json, read_tensors

log = logging.getLogger("speechssl")

FORMAT = "torchaudio"
WEIGHTS = "model.pt"
# Attention heads of torchaudio's published models by their hidden size.
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
STRIDES = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}
NORMS = {"group": "group_norm", "layer": "layer_norm"}


def is_ours(folder: Path) -> bool:
    """Whether a folder is what `convert format=torchaudio` wrote."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("format") == FORMAT


def read(
    path: Path,
    *,
    num_heads: int | None = None,
    pre_norm: bool | None = None,
    conv_strides: Sequence[int] | None = None,
) -> Foreign:
    """The model in a folder of ours or in a file with its state dict (.pt, .pth or .safetensors).

    Args:
        path: the folder or file.
        num_heads, pre_norm, conv_strides: what a file alone does not say; None takes that of published models.

    Raises:
        UserError: it is damaged or another model's, or something about its shape must be given.
    """
    config = read_json(path / "config.json") if path.is_dir() else {}
    weights = path / WEIGHTS if path.is_dir() else path
    raw = read_tensors(weights) if weights.suffix == ".safetensors" else read_pickle(weights)
    tensors: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        common = rename(name, TORCHAUDIO)
        if common is None:
            raise UserError(
                f"{weights} holds the tensor {name}, which torchaudio's Wav2Vec2Model does not have; give a state "
                "dict of that, a fairseq .pt, or a folder in Hugging Face format"
            )
        tensors[common] = tensor
    tensors, weight_norm = rename_weight_norm(tensors)
    if config:
        encoder = _from_arguments(config.get("model"), path)
    else:
        encoder = _from_shapes(tensors, path, num_heads=num_heads, pre_norm=pre_norm, conv_strides=conv_strides)
    objective: dict[str, Any] = {"name": "none"}
    if "lm_head.weight" in tensors:
        symbols = config.get("labels") or foreign.unnamed_symbols(len(tensors["lm_head.weight"]), 0, path)
        if len(symbols) != len(tensors["lm_head.weight"]):
            raise UserError(
                f"{path} has {len(symbols)} labels for {len(tensors['lm_head.weight'])} outputs; correct it"
            )
        objective = foreign.options("task", "ctc", vocabulary=symbols)
    return Foreign(
        source=path,
        encoder=encoder,
        objective=objective,
        tensors=rename_weight_norm(tensors, (weight_norm[0], weight_norm[1]))[0],
        sample_rate=config.get("sample_rate", 16_000),
        # torchaudio's LARGE models were trained on normalised clips, its BASE models were not.
        normalize=config.get("normalize", encoder.conv_norm == "layer"),
        origin={"toolkit": FORMAT},
    )


def _from_shapes(
    tensors: Mapping[str, Tensor],
    source: Path,
    *,
    num_heads: int | None,
    pre_norm: bool | None,
    conv_strides: Sequence[int] | None,
) -> EncoderConfig:
    """The encoder of a bare state dict."""
    convolutions = _counted(tensors, "feature_extractor.conv_layers.{}.conv.weight")
    layers = _counted(tensors, "encoder.layers.{}.feed_forward.intermediate_dense.weight")
    position = tensors.get("encoder.pos_conv_embed.conv.weight_v")
    if not convolutions or not layers or position is None or any(x.ndim != 3 for x in (*convolutions, position)):
        raise UserError(f"{source} is not a state dict of torchaudio's Wav2Vec2Model; give another file")
    kernels = tuple(x.shape[2] for x in convolutions)
    hidden_size = position.shape[0]
    norm = "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in tensors else "group"
    num_heads = num_heads or PUBLISHED_HEADS.get(hidden_size)
    conv_strides = conv_strides or STRIDES.get(kernels)
    for key, value, what in (
        ("num_heads", num_heads, "how many heads its attention has"),
        ("conv_strides", conv_strides, "how far its convolutions step"),
    ):
        if value is None:
            raise UserError(
                f"{source} is a bare state dict, which does not say {what}: give {key}= to `speechssl convert`"
            )
    if pre_norm is None:
        pre_norm = norm == "layer"
    log.info("%s: taken to have num_heads=%s pre_norm=%s conv_strides=%s", source, num_heads, pre_norm, conv_strides)
    return EncoderConfig(
        conv_channels=tuple(x.shape[0] for x in convolutions),
        conv_kernels=kernels,
        conv_strides=tuple(conv_strides),
        conv_norm=norm,
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in tensors,
        hidden_size=hidden_size,
        num_layers=len(layers),
        num_heads=num_heads,
        feed_forward_size=layers[0].shape[0],
        position_kernel=position.shape[2],
        position_groups=hidden_size // max(position.shape[1], 1),
        pre_norm=pre_norm,
    )


def _counted(tensors: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    found: list[Tensor] = []
    while pattern.format(len(found)) in tensors:
        found.append(tensors[pattern.format(len(found))])
    return found


def _from_arguments(arguments: Any, source: Path) -> EncoderConfig:
    """The encoder that the arguments of torchaudio.models.wav2vec2_model describe."""
    try:
        channels, kernels, strides = zip(*arguments["extractor_conv_layer_config"], strict=True)
        return EncoderConfig(
            conv_channels=channels,
            conv_kernels=kernels,
            conv_strides=strides,
            conv_norm=arguments["extractor_mode"].removesuffix("_norm"),
            conv_bias=arguments["extractor_conv_bias"],
            hidden_size=arguments["encoder_embed_dim"],
            num_layers=arguments["encoder_num_layers"],
            num_heads=arguments["encoder_num_heads"],
            feed_forward_size=arguments["encoder_ff_interm_features"],
            position_kernel=arguments["encoder_pos_conv_kernel"],
            position_groups=arguments["encoder_pos_conv_groups"],
            pre_norm=arguments["encoder_layer_norm_first"],
            dropout=arguments["encoder_dropout"],
            attention_dropout=arguments["encoder_attention_dropout"],
            activation_dropout=arguments["encoder_ff_interm_dropout"],
            projection_dropout=arguments["encoder_projection_dropout"],
            layer_drop=arguments["encoder_layer_drop"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its config.json does not describe a model ({error}); use another copy") from error


def arguments(encoder: EncoderConfig, *, num_outputs: int | None, source: object) -> dict[str, Any]:
    """The arguments of torchaudio.models.wav2vec2_model for an encoder.

    Raises:
        UserError: torchaudio does not compute what the encoder does.
    """
    if encoder.position_layers or encoder.relative_buckets or not encoder.feature_norm or encoder.norm_eps != 1e-5:
        raise UserError(
            f"{source} computes what torchaudio's Wav2Vec2Model cannot (stacked or relative positions, no feature norm "
            "or another epsilon); use format=huggingface"
        )
    layers = zip(encoder.conv_channels, encoder.conv_kernels, encoder.conv_strides, strict=True)
    return {
        "extractor_mode": NORMS[encoder.conv_norm],
        "extractor_conv_layer_config": [list(layer) for layer in layers],
        "extractor_conv_bias": encoder.conv_bias,
        "encoder_embed_dim": encoder.hidden_size,
        "encoder_projection_dropout": encoder.projection_dropout,
        "encoder_pos_conv_kernel": encoder.position_kernel,
        "encoder_pos_conv_groups": encoder.position_groups,
        "encoder_num_layers": encoder.num_layers,
        "encoder_num_heads": encoder.num_heads,
        "encoder_attention_dropout": encoder.attention_dropout,
        "encoder_ff_interm_features": encoder.feed_forward_size,
        "encoder_ff_interm_dropout": encoder.activation_dropout,
        "encoder_dropout": encoder.dropout,
        "encoder_layer_norm_first": encoder.pre_norm,
        "encoder_layer_drop": encoder.layer_drop,
        "aux_num_out": num_outputs,
    }


def folder_files(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """config.json of the folder to write.

    Raises:
        UserError: torchaudio has no class for this encoder or head.
    """
    config = checkpoint.config
    head = config["objective"]["name"]
    if head not in ("none", "ctc", "wav2vec2"):
        raise UserError(
            f"{checkpoint.folder} has a head of kind {head!r}, which torchaudio's Wav2Vec2Model cannot have"
        )
    labels = config["objective"]["vocabulary"] if head == "ctc" else None
    encoder = EncoderConfig.from_dict(config["encoder"])
    content = {
        "format": FORMAT,
        "sample_rate": config["sample_rate"],
        "normalize": config["normalize"],
        "model": arguments(encoder, num_outputs=len(labels) if labels else None, source=checkpoint.folder),
    }
    return {"config.json": {**content, "labels": labels} if labels else content}


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state dict of torchaudio's model: without the vector that hides frames and without a quantizer."""
    found, _ = rename_weight_norm(foreign.common_tensors(checkpoint), WEIGHT_NORMS[1])
    renamed = {}
    for name, tensor in found.items():
        if name.startswith("feature_extractor."):
            renamed[name] = tensor
        elif name.startswith("feature_projection."):
            renamed[f"encoder.{name}"] = tensor
        elif name.startswith("encoder."):
            renamed[f"encoder.transformer.{name.removeprefix('encoder.')}"] = tensor
        elif name.startswith("lm_head."):
            renamed[f"aux.{name.removeprefix('lm_head.')}"] = tensor
    return renamed
