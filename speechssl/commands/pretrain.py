"""Train an encoder on raw audio without transcripts.

Examples:
  speechssl pretrain data.train=train.jsonl run_dir=runs/first model=tiny
  speechssl pretrain data.train=train.jsonl data.valid=valid.jsonl run_dir=runs/base model=base trainer.precision=bf16
  speechssl pretrain data.train=train.jsonl run_dir=runs/more init=runs/first    # go on from weights
  speechssl pretrain data.train=train.jsonl run_dir=runs/rq model=tiny objective=best_rq    # another family

The run folder gets config.yaml, metrics.jsonl, tensorboard/ and checkpoints/. The same command again continues a run
that was interrupted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from speechssl.config import OF_TRAINING, objective_class, plain
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training import checkpoint as checkpoints
from speechssl.training.lock import in_turn
from speechssl.training.run import build_trainer, open_manifest

# What may differ from the checkpoint that a run starts from: it changes training, not what the weights compute.
TRAINING_ONLY = ("dropout", "attention_dropout", "activation_dropout", "projection_dropout", "layer_drop", "conv_init")


def run(config: DictConfig) -> None:
    """Pretrain as the config says."""
    manifests = (
        open_manifest(config.data.train),
        open_manifest(config.data.valid) if config.data.valid else None,
    )
    torch.manual_seed(config.trainer.seed)
    kind = objective_class(config.objective.name)
    encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder) | kind.encoder_needs))
    options = kind.complete({k: v for k, v in plain(config.objective).items() if k not in OF_TRAINING}, config)
    objective = checkpoints.build_objective(options, encoder.config)
    if config.init:
        _load(config, encoder, objective)
    with in_turn(Path(config.run_dir)):
        objective.prepare(config, manifests)
    build_trainer(
        config,
        encoder=encoder,
        objective=objective,
        objective_options=options,
        sample_rate=config.model.sample_rate,
        normalize=config.model.normalize,
        manifests=manifests,
        supervised=False,
    ).fit()


def _load(config: DictConfig, encoder: Encoder, objective: torch.nn.Module) -> None:
    """Start from a checkpoint's encoder, and from its objective where that is the same."""
    found = checkpoints.load_checkpoint(config.init)
    ours = {
        "sample_rate": config.model.sample_rate,
        "normalize": config.model.normalize,
        "encoder": _shape(encoder.config),
    }
    theirs = {key: found.config[key] for key in ours}
    theirs["encoder"] = _shape(EncoderConfig.from_dict(found.config["encoder"]))
    difference = checkpoints.first_difference(ours, theirs)
    if difference:
        raise UserError(
            f"init={config.init} has another encoder: {difference}; choose the model= that it was trained with"
        )
    checkpoints.load_tensors(encoder, found.part("encoder"), found.folder)
    if found.config["objective"]["name"] == config.objective.name:
        checkpoints.load_tensors(objective, found.part("objective"), found.folder)


def _shape(encoder: EncoderConfig) -> dict:
    return {key: value for key, value in encoder.to_dict().items() if key not in TRAINING_ONLY}
