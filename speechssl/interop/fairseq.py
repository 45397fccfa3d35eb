"""fairseq's .pt files: wav2vec 2.0 (pretrained, or fine-tuned with CTC) and HuBERT.

Their settings lie under "cfg" (Hydra, since 2021) or "args" (argparse, before); a fine-tuned model keeps those of the
model that it began from under `w2v_args`. Both hold objects of fairseq, omegaconf and enum, which interop.pickles
leaves as Records; here the plain values are taken out of them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.data.text import BLANK
from speechssl.errors import UserError
from speechssl.interop import foreign, pickles
from speechssl.interop.foreign import Foreign
from speechssl.interop.names import FAIRSEQ, rename
from speechssl.interop.pickles import Record
from speechssl.models.encoder import EncoderConfig

FINE_TUNED = "w2v_encoder."
# fairseq's defaults (Wav2Vec2Config, HubertConfig) of the settings that are read here.
DEFAULTS: dict[str, Any] = {
    "extractor_mode": "default",
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "layer_norm_first": False,
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] + [(512, 2, 2)]",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "dropout_features": 0.0,
    "quantize_input": False,
    "target_glu": False,
    "final_dim": 0,
    "latent_dim": 0,
    "latent_vars": 320,
    "latent_groups": 2,
    "num_negatives": 100,
    "logit_temp": 0.1,
    "feature_grad_mult": 1.0,
    "mask_prob": 0.65,
    "mask_length": 10,
}


def is_fairseq(path: Path) -> bool:
    """Whether a file is fairseq's: a pickle with settings beside the weights."""
    if path.suffix == ".safetensors":
        return False
    content = pickles.load(path)
    return isinstance(content, dict) and "model" in content and ("args" in content or "cfg" in content)


def read(path: Path) -> Foreign:
    """The model in a .pt of fairseq; for a CTC model with the dictionary (dict.*.txt) beside it.

    Raises:
        UserError: it is damaged, or asks for what is not built here.
    """
    content = pickles.load(path)
    raw = content["model"]
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise UserError(f"{path} does not hold a model's tensors; use another copy")
    model, task = _settings(content)
    is_tuned = any(name.startswith(FINE_TUNED) for name in raw)
    shape = model
    if is_tuned:
        shape, _ = _settings(_plain(model.get("w2v_args")))
        if not shape:
            raise UserError(f"{path} is fine-tuned but lacks w2v_args, the settings it began from; use another copy")
    settings = _Settings({**shape, **_overrides(model)} if is_tuned else shape, path)
    tensors = _tensors(raw, settings, path)
    objective: dict[str, Any] = {"name": "none"}
    if "lm_head.weight" in tensors:
        symbols = _symbols(path, len(tensors["lm_head.weight"]))
        objective = foreign.options("task", "ctc", vocabulary=symbols)
    elif "quantizer.codevectors" in tensors:
        objective = _pretraining(settings)
    return Foreign(
        source=path,
        encoder=_encoder(settings),
        objective=objective,
        tensors=tensors,
        sample_rate=int(_number(task.get("sample_rate", 16_000), path)),
        normalize=_plain(task.get("normalize")) is True,
        origin={"toolkit": "fairseq", "model_type": _kind(raw, content)},
    )


class _Settings:
    """fairseq's settings with their defaults."""

    def __init__(self, values: Mapping[str, Any], source: Path):
        self.values, self.source = values, source

    def __getitem__(self, name: str) -> Any:
        value, default = _plain(self.values.get(name)), DEFAULTS[name]
        if value is None:
            return default
        fits = isinstance(value, bool) if isinstance(default, bool) else isinstance(value, type(default) | int)
        if isinstance(value, Record) or not fits:
            raise UserError(f"{self.source}: its settings have {name} = {str(value)[:80]!r}, which cannot be")
        return value


def _plain(value: Any) -> Any:
    """What a Namespace, an omegaconf node, an enum member or a plain value holds, one level deep."""
    if not isinstance(value, Record):
        return value
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if isinstance(state, dict):
        for key in ("_content", "_val"):
            if key in state:
                return _plain(state[key]) if state[key] is not value else None
        return state
    return value.args[0] if len(value.args) == 1 else value


def _settings(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's settings and the task's, from the top of a file or from w2v_args."""
    content = _plain(content)
    if not isinstance(content, dict):
        return {}, {}
    for key in ("cfg", "args"):
        values = _plain(content.get(key))
        if isinstance(values, dict):
            content = values
            break
    parts = [_plain(content.get(part)) for part in ("model", "task")]
    model, task = (part if isinstance(part, dict) else content for part in parts)  # argparse has all in one
    return model, task


def _overrides(model: Mapping[str, Any]) -> dict[str, Any]:
    """What fine-tuning sets anew (fairseq's Wav2Vec2AsrConfig)."""
    names = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "mask_prob", "mask_length")
    found = {name: model[name] for name in names if _plain(model.get(name)) is not None}
    if _plain(model.get("layerdrop")) is not None:
        found["encoder_layerdrop"] = model["layerdrop"]
    return found


def _tensors(raw: Mapping[str, Tensor], settings: _Settings, source: Path) -> dict[str, Tensor]:
    """Tensors by common name."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        short = name.removeprefix(FINE_TUNED).removeprefix("w2v_model.")
        tensors[rename(short, FAIRSEQ) or f"fairseq.{short}"] = tensor
    hidden_size = settings["encoder_embed_dim"]
    if "feature_projection.projection.weight" not in tensors and _convolutions(settings)[-1][0] == hidden_size:
        # fairseq projects only where the sizes differ; the identity leaves every number as it is.
        tensors["feature_projection.projection.weight"] = torch.eye(hidden_size)
        tensors["feature_projection.projection.bias"] = torch.zeros(hidden_size)
    if settings["quantize_input"] or settings["target_glu"]:
        raise UserError(f"{source} has quantize_input or target_glu, which are not built here")
    return tensors


def _encoder(settings: _Settings) -> EncoderConfig:
    """The encoder, or a UserError for what is not built here."""
    for name in ("activation_fn", "layer_type", "pos_conv_depth", "conv_pos_batch_norm"):
        if settings[name] != DEFAULTS[name]:
            raise UserError(f"{settings.source} has {name} = {settings[name]!r}, only {DEFAULTS[name]!r} is built here")
    modes = {"default": "group", "layer_norm": "layer"}
    if settings["extractor_mode"] not in modes:
        raise UserError(
            f"{settings.source} has extractor_mode = {settings['extractor_mode']!r}, which is not built here"
        )
    channels, kernels, strides = zip(*_convolutions(settings), strict=True)
    return EncoderConfig(
        conv_channels=channels,
        conv_kernels=kernels,
        conv_strides=strides,
        conv_norm=modes[settings["extractor_mode"]],
        conv_bias=settings["conv_bias"],
        hidden_size=settings["encoder_embed_dim"],
        num_layers=settings["encoder_layers"],
        num_heads=settings["encoder_attention_heads"],
        feed_forward_size=settings["encoder_ffn_embed_dim"],
        position_kernel=settings["conv_pos"],
        position_groups=settings["conv_pos_groups"],
        pre_norm=settings["layer_norm_first"],
        dropout=settings["dropout"],
        attention_dropout=settings["attention_dropout"],
        activation_dropout=settings["activation_dropout"],
        projection_dropout=settings["dropout_input"],
        layer_drop=settings["encoder_layerdrop"],
    )


def _convolutions(settings: _Settings) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each convolution; fairseq writes it as a Python expression, of which lists, sums
    and repetitions are understood."""
    text = settings["conv_feature_layers"]

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            left, right = value(node.left), value(node.right)
            if not isinstance(right, int) or right > 64:
                raise ValueError("too many layers")
            return left * right
        return ast.literal_eval(node)

    try:
        layers = [tuple(layer) for layer in value(ast.parse(text, mode="eval").body)]
        if not layers or any(len(layer) != 3 or min(layer) < 1 for layer in layers) or len(layers) > 64:
            raise ValueError("not layers of channels, kernel and stride")
    except (RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"{settings.source}: conv_feature_layers = {text[:80]!r} is not understood ({error})"
        ) from error
    return layers


def _pretraining(settings: _Settings) -> dict[str, Any]:
    """Options of the contrastive objective."""
    final_size = settings["final_dim"] or settings["encoder_embed_dim"]
    return foreign.options(
        "objective",
        "wav2vec2",
        num_groups=settings["latent_groups"],
        num_codewords=settings["latent_vars"],
        code_size=settings["latent_dim"] or final_size,
        final_size=final_size,
        num_distractors=settings["num_negatives"],
        temperature=settings["logit_temp"],
        diversity_weight=0.1,
        feature_penalty=10.0,
        feature_gradient_scale=float(settings["feature_grad_mult"]),
        feature_dropout=settings["dropout_features"],
        mask_start_probability=settings["mask_prob"] / settings["mask_length"],
        mask_span=settings["mask_length"],
        gumbel_end=0.5,
    )


def _symbols(path: Path, num_outputs: int) -> list[str]:
    """The dictionary's symbols; fairseq puts <s> (CTC's blank), <pad>, </s> and <unk> before those of the file."""
    found = sorted(path.parent.glob("dict.*.txt"))
    if not found:
        return foreign.unnamed_symbols(num_outputs, 0, path)
    if len(found) > 1:
        raise UserError(f"{path.parent} has several dictionaries ({', '.join(x.name for x in found)}); leave one there")
    try:
        lines = found[0].read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{found[0]} cannot be read ({error}); use another copy") from error
    words = [line.rsplit(" ", 1)[0] for line in lines if line.strip() and not line.startswith("madeupword")]
    # Output 1 is fairseq's <pad>; as transformers has it, the blank is <pad> and this one <s>.
    symbols = [BLANK, "<s>", "</s>", "<unk>", *(" " if word == "|" else word for word in words)]
    if len(symbols) != num_outputs:
        raise UserError(
            f"{found[0]} has {len(words)} symbols, {len(symbols)} with fairseq's own, but {path} has {num_outputs} "
            "outputs; use the dictionary that the model was trained with"
        )
    return symbols


def _kind(raw: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """wav2vec2 or hubert: only for the name of transformers' class, both compute the same."""
    model, _ = _settings(content)
    name = str(_plain(model.get("_name") or model.get("arch")) or "")
    return "hubert" if "label_embs_concat" in raw or "hubert" in name else "wav2vec2"


def _number(value: Any, source: Path) -> float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{source}: its sample_rate is not a number; use another copy")
    return value
