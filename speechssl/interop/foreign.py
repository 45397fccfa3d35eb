"""A model of another toolkit, whichever it is, as a checkpoint of ours.

Each reader (huggingface, fairseq, torchaudio) makes a Foreign: tensors in the common names of `interop.names`, our
configs, and `origin`, plain data that stays in the converted checkpoint so that the way back gives what was given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from speechssl.config import OF_TRAINING, config_dir
from speechssl.data.text import BLANK
from speechssl.errors import UserError
from speechssl.interop.names import encoder_table, head_table, rename_weight_norm, to_common, to_ours
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.rng import generator as make_generator
from speechssl.training.checkpoint import Checkpoint, build_objective, model_config, read_json

log = logging.getLogger("speechssl")

HUB = "hf:"
MASK = "masked_spec_embed"
# Where a tensor that our encoder does not have would change what it computes.
_ENCODER_PARTS = ("feature_extractor.conv_layers.", "feature_projection.", "encoder.", "adapter.")


@dataclass
class Foreign:
    """A model as another toolkit keeps it.

    Attributes:
        source: where it was, for messages.
        encoder: its shape.
        objective: name and options of its head; {"name": "none"} where it has none.
        tensors: by common name.
        sample_rate: of the audio it takes, samples a second.
        normalize: whether it takes clips at zero mean and unit variance.
        blank: which output of a CTC head is the blank; ours is output 0.
        origin: what the way back needs.
    """

    source: Path
    encoder: EncoderConfig
    objective: dict[str, Any]
    tensors: Mapping[str, Tensor]
    sample_rate: int
    normalize: bool
    blank: int = 0
    origin: dict[str, Any] = field(default_factory=dict)


def peculiarity(encoder: EncoderConfig) -> str | None:
    """What an encoder does that none of another toolkit does, in words, or None."""
    if encoder.feature_encoder != "conv":
        return "begins with a log-mel spectrum"
    if encoder.context != "transformer" or encoder.causal:
        return "sees the past alone"
    return "is an hourglass" if encoder.hourglass > 1 else None


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a model of another toolkit: hf:NAME, a file, or a folder whose config.json says so."""
    if str(path).startswith(HUB) or Path(path).is_file():
        return True
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    try:
        return read_json(config).get("format") != "speechssl"
    except UserError:
        return False  # reading it as our own says what is wrong


def read(path: str | os.PathLike[str], **shape: Any) -> Checkpoint:
    """The checkpoint that a foreign folder or file makes; `shape` is what a bare state dict does not say.

    Raises:
        UserError: it is damaged, of a kind that is not known, or computes what our encoder does not.
    """
    return to_checkpoint(read_foreign(path, **shape))


def read_foreign(path: str | os.PathLike[str], **shape: Any) -> Foreign:
    """The reader that fits. Each is imported when needed."""
    from speechssl.interop import fairseq, huggingface, torchaudio

    if str(path).startswith(HUB):
        return huggingface.read(huggingface.download(str(path).removeprefix(HUB)))
    path = Path(path)
    if path.is_file():
        return fairseq.read(path) if fairseq.is_fairseq(path) else torchaudio.read(path, **shape)
    return torchaudio.read(path, **shape) if torchaudio.is_ours(path) else huggingface.read(path)


def to_checkpoint(model: Foreign) -> Checkpoint:
    """Our checkpoint of a foreign model."""
    _check_depth(model)
    with torch.device("meta"):
        encoder = Encoder(model.encoder)
        head = build_objective(model.objective, model.encoder)
    tensors, weight_norm = rename_weight_norm(model.tensors)
    absent = [MASK] if MASK not in tensors else []
    if absent:  # a model that was never masked; ours has the vector, so that it can be
        size = model.encoder.hidden_size
        tensors[MASK] = torch.rand(size, generator=make_generator("mask vector"))
    tables = {"encoder": encoder_table(model.encoder), "objective": head_table(model.objective)}
    used = {name for table in tables.values() for names in table.values() for name in names}
    left_out = sorted(tensors.keys() - used)
    for name in left_out:
        if name.startswith(_ENCODER_PARTS):
            raise UserError(f"{model.source} holds the tensor {name}, for which there is no place in this encoder")
    if left_out:
        log.warning("%s: left out, because there is no such head here: %s", model.source, ", ".join(left_out))
    parts = {
        "encoder": to_ours(tensors, tables["encoder"], _shapes(encoder), model.source),
        "objective": to_ours(tensors, tables["objective"], _shapes(head), model.source),
    }
    if model.objective["name"] == "ctc":
        order = blank_first(model.blank, len(model.objective["vocabulary"]))
        parts["objective"] = {name: tensor[order] for name, tensor in parts["objective"].items()}
    origin = {**model.origin, "blank": model.blank, "absent": absent, "weight_norm": weight_norm, "left_out": left_out}
    config = model_config(
        sample_rate=model.sample_rate,
        normalize=model.normalize,
        encoder=model.encoder,
        objective=model.objective,
    )
    flat = {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
    return Checkpoint(model.source, {**config, "origin": origin}, flat)


def _check_depth(model: Foreign) -> None:
    """UserError if the weights have fewer layers than the config; cheap, however many it asks for."""
    for count, stem in (
        (model.encoder.num_layers, "encoder.layers"),
        (model.encoder.position_layers, "encoder.pos_conv_embed.layers"),
    ):
        if count and not any(name.startswith(f"{stem}.{count - 1}.") for name in model.tensors):
            raise UserError(
                f"{model.source}: its config asks for {count} {stem}, which the weights do not have; use the config "
                "that belongs to the weights"
            )


def common_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of our checkpoint in common names, a CTC head's rows in the order they once had."""
    encoder, objective = EncoderConfig.from_dict(checkpoint.config["encoder"]), checkpoint.config["objective"]
    origin = checkpoint.config.get("origin", {})
    tensors = to_common(checkpoint.part("encoder"), encoder_table(encoder))
    head = checkpoint.part("objective")
    if objective["name"] == "ctc":
        order = torch.tensor(blank_first(origin.get("blank", 0), len(objective["vocabulary"])))
        head = {name: tensor[order.argsort()] for name, tensor in head.items()}
    tensors |= to_common(head, head_table(objective))
    for name in origin.get("absent", []):
        tensors.pop(name, None)
    return tensors


def blank_first(blank: int, size: int) -> list[int]:
    """The rows of a CTC head with the blank's first, the others in their order."""
    return [blank, *(i for i in range(size) if i != blank)]


def unnamed_symbols(size: int, blank: int, source: object) -> list[str]:
    """Symbols for the outputs of a CTC head that came without a vocabulary: <1>, <2>, ..."""
    log.warning("%s has no vocabulary: its outputs are called by their numbers, <0>, <1> and so on", source)
    return [BLANK, *(f"<{i}>" for i in blank_first(blank, size)[1:])]


def options(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """The options of an objective or task: those of our own yaml with `changes`."""
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"))
    return {key: value for key, value in values.items() if key not in OF_TRAINING} | changes


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
