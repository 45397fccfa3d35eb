"""Train a head on an encoder with labels: characters by CTC, or the speaker or any other column of the manifest.

Examples:
  speechssl finetune task=ctc init=runs/first data.train=labelled.jsonl data.valid=valid.jsonl run_dir=runs/ctc
  speechssl finetune task=speaker init=runs/first data.train=train.jsonl run_dir=runs/speaker
  speechssl finetune task=classify label=language init=runs/first data.train=train.jsonl run_dir=runs/language
  speechssl finetune task=ctc init=none model=tiny data.train=labelled.jsonl run_dir=runs/scratch    # no pretraining

The encoder's shape comes from init; init=none trains the network of model= from scratch, all of it.
"""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from speechssl.config import objective_class, plain
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training import checkpoint as checkpoints
from speechssl.training.run import build_trainer, open_manifest


def run(config: DictConfig) -> None:
    """Fine-tune as the config says."""
    manifests = (
        open_manifest(config.data.train),
        open_manifest(config.data.valid) if config.data.valid else None,
    )
    torch.manual_seed(config.trainer.seed)
    options = plain(config.task)
    for key in ("_target_", "max_steps", "best"):
        del options[key]
    encoder, sample_rate, normalize = _encoder(config)
    if config.init == "none":
        # Nothing has been learned that freezing could keep.
        options |= {"freeze_feature_encoder": False, "freeze_encoder": 0.0}
    options |= objective_class(options["name"]).data_options(manifests[0], **options)
    build_trainer(
        config,
        encoder=encoder,
        objective=checkpoints.build_objective(options, encoder.config),
        objective_options=options,
        sample_rate=sample_rate,
        normalize=normalize,
        manifests=manifests,
        supervised=True,
    ).fit()


def _encoder(config: DictConfig) -> tuple[Encoder, int, bool]:
    """The encoder to fine-tune, its sample rate, and whether it wants normalised clips."""
    if config.init == "none":
        if not config.get("model"):
            raise UserError("init=none trains from scratch and needs a shape: add model=tiny, small, base or large")
        model = config.model
        return Encoder(EncoderConfig.from_dict(plain(model.encoder))), model.sample_rate, model.normalize
    if config.get("model"):
        raise UserError("model= has no effect beside init=CHECKPOINT, which brings its own shape; drop one of them")
    found = checkpoints.load_checkpoint(config.init)
    return checkpoints.build_encoder(found), found.config["sample_rate"], found.config["normalize"]
