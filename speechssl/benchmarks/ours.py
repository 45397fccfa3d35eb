"""Our side of a benchmark: one step of pretraining, of CTC fine-tuning, or of inference."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from speechssl.benchmarks.meters import Parts
from speechssl.config import OF_TRAINING
from speechssl.data.text import BLANK
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.rng import derive_seed
from speechssl.training.checkpoint import build_objective, model_config
from speechssl.training.distributed import compile_layers
from speechssl.training.optim import build_optimizer
from speechssl.training.run import tune
from speechssl.types import Batch

# As many outputs as the heads of the published English models have.
SYMBOLS = (BLANK, " ", *"abcdefghijklmnopqrstuvwxyz'-.,")
CTC_OPTIONS = {
    "name": "ctc",
    "vocabulary": list(SYMBOLS),
    "lowercase": False,
    "dropout": 0.1,
    "mask_start_probability": 0.0,
    "mask_span": 10,
    "freeze_feature_encoder": True,
    "freeze_encoder": 0.0,
}
# Of the run whose first steps these are: the paper's for BASE. Some figures are made only every so many steps.
MAX_STEPS = 400_000
# What the rest of the forward pass is called, beside the encoder's parts.
REST = {"pretrain": "quantizer_and_loss", "finetune": "head_and_loss", "inference": "head"}
DRAWS = "masks_and_distractors"


def describe(settings: dict[str, Any]) -> dict[str, Any]:
    """The model that is measured, as a checkpoint's config.json would have it."""
    objective = {key: value for key, value in settings["objective"].items() if key not in OF_TRAINING}
    return model_config(
        sample_rate=settings["model"]["sample_rate"],
        normalize=settings["model"]["normalize"],
        encoder=EncoderConfig.from_dict(settings["model"]["encoder"]),
        objective=objective if settings["what"] == "pretrain" else CTC_OPTIONS,
    )


def build(settings: dict[str, Any]) -> nn.ModuleDict:
    """Encoder and objective with random weights, the same for the same seed."""
    torch.manual_seed(settings["trainer"]["seed"])
    config = describe(settings)
    encoder = Encoder(EncoderConfig.from_dict(config["encoder"]))
    return nn.ModuleDict({"encoder": encoder, "objective": build_objective(config["objective"], encoder.config)})


def optimizer(settings: dict[str, Any], model: nn.Module) -> torch.optim.AdamW:
    """Of either side, the same."""
    options = {key: settings["optim"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    return build_optimizer(model.named_parameters(), **options)


def pieces(settings: dict[str, Any], lengths: list[int], *, all_at_once: bool) -> list[slice]:
    """Which neighbouring clips go through together in inference."""
    count = settings["at_once"] or (len(lengths) if all_at_once else 1)
    return [slice(first, first + count) for first in range(0, len(lengths), count)]


class Ours:
    """The model and its step."""

    def __init__(self, settings: dict[str, Any], batch: Batch, parts: Parts, device: torch.device):
        tune(device.type, settings["trainer"]["precision"])  # as training does
        self.settings, self.batch, self.parts = settings, batch.to(device), parts
        self.model = build(settings).to(device)
        if settings["trainer"]["compile"]:
            compile_layers(self.model)
        self.encoder, self.objective = self.model["encoder"], self.model["objective"]
        self.rest = REST[settings["what"]]
        self._watch()
        self.step = self._infer if settings["what"] == "inference" else self._train
        self.model.train(settings["what"] != "inference")
        self.optimizer = optimizer(settings, self.model)

    def _watch(self) -> None:
        context = self.encoder.context
        for module, part in (
            (self.encoder.feature_encoder, "feature_encoder"),
            (self.encoder.feature_norm, "feature_encoder"),
            (self.encoder.projection, "transformer"),
            (context.positions, "positions"),
            (context, "transformer"),
        ):
            self.parts.watch(module, part)
        if hasattr(self.objective, "draw"):
            self.parts.wrap(self.objective, "draw", DRAWS)

    def _train(self, number: int) -> None:
        """Forward, backward and AdamW; `number`, from 1, decides the masks and all else that is random."""
        self.objective.begin_step(number, MAX_STEPS)
        seeds = [derive_seed(self.settings["trainer"]["seed"], number, clip) for clip in self.batch.seeds]
        with self.parts.part(self.rest), autocast(self.settings, self.batch.waveforms.device):
            output = self.objective(self.encoder, dataclasses.replace(self.batch, seeds=seeds))
            loss = sum(t.weight * t.sum / t.count for t in output.terms.values())
        self.parts.backward(loss, self.rest)
        with self.parts.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _infer(self, _number: int) -> None:
        lengths = self.batch.lengths
        with self.parts.part(self.rest), autocast(self.settings, self.batch.waveforms.device):
            for piece in pieces(self.settings, lengths.tolist(), all_at_once=True):
                waveforms = self.batch.waveforms[piece, : int(lengths[piece].max())]
                self.objective.logits(self.encoder(waveforms, lengths[piece]))


def autocast(settings: dict[str, Any], device: torch.device) -> torch.autocast:
    """Of either side, the same."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings["trainer"]["precision"] == "bf16")
