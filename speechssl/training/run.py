"""From a composed config to a Trainer: what `pretrain` and `finetune` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from speechssl import cpu
from speechssl.config import plain
from speechssl.data.loader import BatchLoader
from speechssl.errors import UserError
from speechssl.manifest import Manifest
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.lengths import num_frames
from speechssl.training import checkpoint as checkpoints
from speechssl.training.optim import build_optimizer
from speechssl.training.trainer import Trainer, TrainerOptions


def choose_device(name: str) -> str:
    """`auto` to cuda where there is one; cuda asked for where there is none is a UserError."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("trainer.device=cuda, but torch sees no GPU; use trainer.device=cpu or check the driver")
    return ("cuda" if available else "cpu") if name == "auto" else name


def open_manifest(path: str) -> Manifest:
    """A manifest whose audio files are all there."""
    manifest = Manifest(path)
    manifest.check_files()
    return manifest


def build_loader(
    config: DictConfig,
    manifest: Manifest,
    *,
    encoder: EncoderConfig,
    sample_rate: int,
    normalize: bool,
    device: str,
    objective: nn.Module | None = None,
    train: bool,
) -> BatchLoader:
    """Batches for training or validation. `objective` gives labels and checks where it is supervised."""
    data = config.data

    def check(utterance) -> str | None:
        num_samples = round(utterance.duration_s * sample_rate)
        return objective.check(utterance, num_frames(num_samples, encoder.conv_kernels, encoder.conv_strides))

    workers = data.num_workers
    if workers is None:
        workers = 1 if device == "cpu" else min(8, max(1, (os.cpu_count() or 2) // 2))
    return BatchLoader(
        manifest,
        sample_rate=sample_rate,
        normalize=normalize,
        min_samples=encoder.receptive_field,
        batch_seconds=data.batch_seconds,
        seed=config.trainer.seed if train else 0,
        shuffle=train,
        max_clip_s=data.max_clip_s,
        encode=objective.target if objective else None,
        check=check if objective else None,
        skip_invalid=data.skip_invalid,
        max_broken_share=data.max_broken_share,
        num_workers=workers,
    )


def build_trainer(
    config: DictConfig,
    *,
    encoder: Encoder,
    objective: nn.Module,
    objective_options: dict[str, Any],
    sample_rate: int,
    normalize: bool,
    manifests: tuple[Manifest, Manifest | None],
    supervised: bool,
) -> Trainer:
    """Everything that a run needs, from its config and the parts that differ between the verbs."""
    options = plain(config.trainer)
    options["device"] = device = choose_device(options["device"])
    if device == "cpu":
        cpu.tune()
    shared = {
        "encoder": encoder.config,
        "sample_rate": sample_rate,
        "normalize": normalize,
        "device": device,
        "objective": objective if supervised else None,
    }
    train, valid = manifests
    loader = build_loader(config, train, train=True, **shared)
    valid_loader = build_loader(config, valid, train=False, **shared) if valid else None
    model = nn.ModuleDict({"encoder": encoder, "objective": objective}).to(device)
    optim = plain(config.optim)
    schedule = {key: optim.pop(key) for key in ("warmup", "hold", "decay", "floor")}
    return Trainer(
        encoder=encoder,
        objective=objective,
        loader=loader,
        valid_loader=valid_loader,
        optimizer=build_optimizer(model.named_parameters(), **optim),
        schedule=schedule,
        run_dir=Path(config.run_dir),
        run_config=OmegaConf.to_yaml(config, resolve=True),
        config=checkpoints.model_config(
            sample_rate=sample_rate,
            normalize=normalize,
            encoder=encoder.config,
            objective=objective_options,
        ),
        options=TrainerOptions(**options),
    )
