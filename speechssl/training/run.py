"""From a composed config to a Trainer: what `pretrain` and `finetune` share."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from speechssl import cpu
from speechssl.config import build, leaves, plain
from speechssl.data.loader import BatchLoader
from speechssl.doctor.doctor import Doctor
from speechssl.errors import UserError
from speechssl.manifest import Manifest, ManifestSet
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.lengths import num_frames
from speechssl.planning import machine
from speechssl.planning.budget import layers_to_recompute
from speechssl.training import checkpoint as checkpoints
from speechssl.training import distributed
from speechssl.training.optim import build_optimizer
from speechssl.training.trainer import Trainer, TrainerOptions

log = logging.getLogger("speechssl")


def choose_device(name: str) -> str:
    """`auto` to cuda where there is one; cuda asked for where there is none is a UserError."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("trainer.device=cuda, but torch sees no GPU; use trainer.device=cpu or check the driver")
    return ("cuda" if available else "cpu") if name == "auto" else name


def make_deterministic() -> None:
    """The same bits each time on the same machine, also on a GPU, where some of torch's operations have them not.

    An operation that has no such form is an error that names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def open_manifest(path: str | list[str]) -> Manifest | ManifestSet:
    """A manifest, or several as one, whose audio files are all there."""
    manifest = Manifest(path) if isinstance(path, str) else ManifestSet([Manifest(one) for one in path])
    manifest.check_files()
    return manifest


def tune(device: str, precision: str) -> None:
    """Torch's settings for training: a CPU's own (`cpu.tune`); on a GPU, TF32 for what stays in fp32 in a bf16 run."""
    cpu.tune(device)
    if device == "cuda" and precision == "bf16":
        torch.set_float32_matmul_precision("high")


def build_loader(
    config: DictConfig,
    manifest: Manifest | ManifestSet,
    *,
    encoder: EncoderConfig,
    sample_rate: int,
    normalize: bool,
    device: str,
    world: distributed.World | None = None,
    objective: nn.Module | None = None,
    train: bool,
) -> BatchLoader:
    """Batches for training or validation. `objective` gives labels and checks where it is supervised."""
    data = config.data
    augment = build(config.augment, sample_rate=sample_rate) if train else None

    def check(utterance) -> str | None:
        num_samples = round(utterance.duration_s * sample_rate / (augment.fastest if augment else 1.0))
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
        whole_clips=objective is not None and objective.whole_clips,
        encode=objective.target if objective else None,
        check=check if objective else None,
        skip_invalid=data.skip_invalid,
        max_broken_share=data.max_broken_share,
        num_workers=workers,
        mix_temperature=data.mix_temperature,
        shuffle_buffer=data.shuffle_buffer,
        augment=augment,
        needs_voice=getattr(objective, "needs_voice", False),
        rank=world.rank if world else 0,
        world_size=world.size if world else 1,
    )


def build_trainer(
    config: DictConfig,
    *,
    encoder: Encoder,
    objective: nn.Module,
    objective_options: dict[str, Any],
    sample_rate: int,
    normalize: bool,
    manifests: tuple[Manifest | ManifestSet, Manifest | None],
    supervised: bool,
) -> Trainer:
    """Everything that a run needs, from its config and the parts that differ between the verbs."""
    options = plain(config.trainer)
    options["device"] = device = choose_device(options["device"])
    tune(device, options["precision"])
    if options.pop("deterministic"):
        make_deterministic()
    world = distributed.join(device)
    shared = {
        "world": world,
        "encoder": encoder.config,
        "sample_rate": sample_rate,
        "normalize": normalize,
        "device": device,
        "objective": objective if supervised else None,
    }
    train, valid = manifests
    if config.augment.speed_probability and getattr(objective, "has_frame_labels", False):
        raise UserError("labels of frames do not fit clips of another speed: set augment.speed_probability=0")
    loader = build_loader(config, train, train=True, **shared)
    valid_loader = build_loader(config, valid, train=False, **shared) if valid else None
    model = distributed.TrainingModel(encoder, objective).to(device)
    if options.pop("compile"):
        distributed.compile_layers(model)
    _save_memory(config, model, device=device, sample_rate=sample_rate, objective_options=objective_options)
    is_sharded = options.pop("parallel") == "fsdp" and world.size > 1
    if is_sharded:
        distributed.shard(model, device)
    for key in ("devices", "restarts", "recompute", "memory_gib"):  # heeded by launch.py and above
        del options[key]
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
        doctor=Doctor(**plain(config.doctor), objective=objective_options["name"], settings=dict(leaves(config))),
        world=world,
        model=model if is_sharded else None,
    )


def _save_memory(
    config: DictConfig,
    model: distributed.TrainingModel,
    *,
    device: str,
    sample_rate: int,
    objective_options: dict[str, Any],
) -> None:
    """Layers run again in the backward pass: all of them, or as few as `trainer.memory_gib` takes."""
    options, encoder = config.trainer, model.encoder.config
    if options.recompute:
        distributed.recompute(model)
    elif options.memory_gib is not None:
        count = layers_to_recompute(
            machine.known(device, options.precision),
            {"encoder": asdict(encoder), "sample_rate": sample_rate},
            objective_options,
            clip_seconds=[config.data.batch_seconds],
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            memory_gib=options.memory_gib,
        )
        log.info("trainer.memory_gib=%g: %d of %d layers run again", options.memory_gib, count, encoder.num_layers)
        distributed.recompute(model, count)
