"""A model without what other toolkits have no place for: LoRA merged into the weights, a second loss left out, and of a
pretrained model the head of an objective that they do not have."""

from __future__ import annotations

import logging

from speechssl.config import objective_class
from speechssl.errors import UserError
from speechssl.heads.adapters import Adapters
from speechssl.objectives.common import PretrainingObjective
from speechssl.training.checkpoint import Checkpoint, build_encoder, load_tensors

log = logging.getLogger("speechssl")

_HEAD = {"linear.weight", "linear.bias"}
_OF_TEACHERS = ("teacher", "distil_weight", "lm", "lm_weight", "prior_weight", "unit_bonus")
# Of each head that is one of CTC once it is trained: the options that only training needs.
_TRAINING_ONLY = {"ctc": (), "semi": ("ssl", "ssl_weight"), "distil": _OF_TEACHERS}


def simplify(checkpoint: Checkpoint) -> Checkpoint:
    """The same recogniser as an encoder and a linear layer, or pretrained encoder with wav2vec 2.0's head or none; any
    other checkpoint as it is.

    Raises:
        UserError: it has bottleneck adapters or recurrent layers or weighs layers, which no other toolkit's CTC model
            does.
    """
    objective = checkpoint.config["objective"]
    if objective["name"] not in _TRAINING_ONLY:
        return _without_own_head(checkpoint)
    tensors, head = dict(checkpoint.tensors), dict(objective)
    foreign = [f"task.{name}" for name in ("adapter_size", "recurrent_size") if head.get(name)]
    if head.get("layers", "last") != "last":
        foreign.append("task.layers=weighted")
    if foreign:
        raise UserError(
            f"{checkpoint.folder} was trained with {' and '.join(foreign)}, for which other toolkits' CTC models have "
            "no place; fine-tune without it, or with task.lora_rank, which merges into the weights"
        )
    if head.get("lora_rank"):
        encoder = build_encoder(checkpoint)
        adapters = Adapters(encoder.config, lora_rank=head["lora_rank"], adapter_size=0)
        load_tensors(adapters, checkpoint.part("objective.adapters"), checkpoint.folder)
        adapters.merge(encoder)
        tensors |= {f"encoder.{name}": tensor.detach() for name, tensor in encoder.state_dict().items()}
        head["lora_rank"] = 0
    needless = _TRAINING_ONLY[head["name"]]
    head = {**{k: v for k, v in head.items() if k not in needless}, "name": "ctc"}
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("objective.") or name.removeprefix("objective.") in _HEAD
    }
    return Checkpoint(checkpoint.folder, {**checkpoint.config, "objective": head}, tensors)


def _without_own_head(checkpoint: Checkpoint) -> Checkpoint:
    """A pretrained model without a head that no other toolkit has."""
    name = checkpoint.config["objective"]["name"]
    if name == "none" or not issubclass(objective_class(name), PretrainingObjective):
        return checkpoint
    has_decoder = checkpoint.config["objective"].get("decoder_layers", 0) > 0
    if name == "wav2vec2" and not has_decoder:
        return checkpoint
    with_decoder = " with a decoder" if has_decoder else ""
    log.info("the head of objective=%s%s is left out: other toolkits have none of that shape", name, with_decoder)
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if key.startswith("encoder.")}
    return Checkpoint(checkpoint.folder, {**checkpoint.config, "objective": {"name": "none"}}, tensors)
