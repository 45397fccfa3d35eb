"""Train a head on an encoder with labels: transcripts by CTC, or the speaker or any other column of the manifest.

Examples:
  speechssl finetune task=ctc init=runs/first data.train=labelled.jsonl data.valid=valid.jsonl run_dir=runs/ctc
  speechssl finetune task=ctc_few init=runs/tiny data.train=labelled.jsonl data.valid=valid.jsonl run_dir=runs/few
  speechssl finetune task=ctc_1h init=runs/first data.train=labelled.jsonl data.valid=valid.jsonl run_dir=runs/1h
  speechssl finetune task=ctc task.units=bpe task.lora_rank=8 init=runs/first data.train=labelled.jsonl run_dir=runs/bpe
  speechssl finetune task=semi init=runs/first data.train=[labelled.jsonl,unlabelled.jsonl] run_dir=runs/joint
  speechssl finetune task=distil_few task.teacher=runs/few task.lm=units.arpa init=runs/tiny \\
      data.train=[labelled.jsonl,unlabelled.jsonl] data.valid=valid.jsonl run_dir=runs/student
  speechssl finetune task=speaker init=runs/first data.train=train.jsonl run_dir=runs/speaker
  speechssl finetune task=classify label=language init=runs/first data.train=train.jsonl run_dir=runs/language
  speechssl finetune task=ctc init=none model=tiny data.train=labelled.jsonl run_dir=runs/scratch    # no pretraining

The encoder's shape comes from init; init=none trains the network of model= from scratch, all of it. task=ctc_10min,
ctc_1h, ctc_10h and ctc_100h are the wav2vec 2.0 paper's settings for so much transcribed speech: its steps, the
share of them with the encoder frozen, its masks and learning rate; trainer.max_steps=2000 shortens all of it alike.
task=ctc_few is for minutes of transcripts on a small encoder such as tiny: small batches, dropout, masks, a high rate.
task=semi trains CTC on the clips that have a transcript, and the pretraining's own loss on those that have none;
task=distil (distil_few for a small encoder) on these what other recognisers, task.teacher=, make of each frame:
self-training by probabilities, which helps where their transcripts would be mostly wrong. task.lm=, an n-gram of their
units, weighs what they say: `speechssl lm checkpoint=runs/few text=sentences.txt order=4 out=units.arpa` makes it of
any text, and an order above 4 takes long. The students can be teachers of others, which helps once more.
data.mix_temperature says how large a share of the batches the smaller manifest has: 1 by its hours, 100 half of them.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from speechssl.config import OF_TRAINING, objective_class, plain
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training import checkpoint as checkpoints
from speechssl.training.checkpoint import Checkpoint
from speechssl.training.run import build_trainer, open_manifest


def run(config: DictConfig) -> None:
    """Fine-tune as the config says."""
    manifests = (
        open_manifest(config.data.train),
        open_manifest(config.data.valid) if config.data.valid else None,
    )
    torch.manual_seed(config.trainer.seed)
    options = {key: value for key, value in plain(config.task).items() if key not in OF_TRAINING}
    encoder, sample_rate, normalize, pretrained = _encoder(config)
    if options["freeze_feature_encoder"] is None:
        options["freeze_feature_encoder"] = config.init != "none"
    has_adapters = options.get("lora_rank") or options.get("adapter_size")
    if has_adapters and config.encoder.reset_layers:
        raise UserError(
            f"encoder.reset_layers={config.encoder.reset_layers} begins layers anew that would not train beside "
            "task.lora_rank or task.adapter_size; drop one of them"
        )
    if config.init == "none":
        # Nothing has been learned that freezing could keep.
        options["freeze_encoder"] = 0.0
        if has_adapters:
            raise UserError("task.lora_rank and task.adapter_size adapt an encoder that has learned; give init=")
    options |= objective_class(options["name"]).data_options(manifests[0], **options)
    if options["name"] == "semi":
        options["ssl"] = _pretraining_of(pretrained, config.init)
    objective = checkpoints.build_objective(options, encoder.config)
    if options["name"] == "semi":
        checkpoints.load_tensors(objective.ssl, pretrained.part("objective"), pretrained.folder)
    if options["name"] == "distil":
        objective.open_teachers(sample_rate=sample_rate, normalize=normalize)
    if hasattr(objective, "attach"):
        objective.attach(encoder)
    build_trainer(
        config,
        encoder=encoder,
        objective=objective,
        objective_options=options,
        sample_rate=sample_rate,
        normalize=normalize,
        manifests=manifests,
        supervised=True,
    ).fit()


def _pretraining_of(pretrained: Checkpoint | None, init: str) -> dict[str, Any]:
    """The self-supervised objective that a checkpoint was pretrained by."""
    options = pretrained.config["objective"] if pretrained else {"name": "none"}
    # A head's labels are a list; HuBERT's are a folder.
    is_head = "vocabulary" in options or isinstance(options.get("labels"), list)
    if is_head or options["name"] == "none":
        raise UserError(
            f"task=semi goes on with the loss of a pretraining, and init={init} has none: give the run folder of "
            "`speechssl pretrain`"
        )
    return options


def _encoder(config: DictConfig) -> tuple[Encoder, int, bool, Checkpoint | None]:
    """The encoder to fine-tune, its sample rate, whether it wants normalised clips, and where it comes from."""
    if config.init == "none":
        if not config.get("model"):
            raise UserError("init=none trains from scratch and needs a shape: add model=tiny, small, base or large")
        model = config.model
        shape = plain(model.encoder) | _dropouts(config)
        return Encoder(EncoderConfig.from_dict(shape)), model.sample_rate, model.normalize, None
    if config.get("model"):
        raise UserError("model= has no effect beside init=CHECKPOINT, which brings its own shape; drop one of them")
    found = checkpoints.load_checkpoint(config.init)
    found.config["encoder"] |= _dropouts(config)
    encoder = checkpoints.build_encoder(found)
    encoder.context.reset_last_layers(config.encoder.reset_layers)
    return encoder, found.config["sample_rate"], found.config["normalize"], found


def _dropouts(config: DictConfig) -> dict[str, float]:
    """The encoder's dropouts that fine-tuning changes; the weights do not depend on them."""
    given = plain(config.encoder)
    del given["reset_layers"]
    return {name: value for name, value in given.items() if value is not None}
