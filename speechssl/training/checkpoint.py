"""Checkpoints: a folder of safetensors and plain JSON, written whole or not at all.

RUN/checkpoints/step_N holds model.safetensors and config.json (all that is needed to use the model), and
optimizer.safetensors and trainer.json (what training needs besides). `last` and `best` are relative symbolic links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speechssl.config import objective_class
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig

VERSION = 1


@dataclass
class Checkpoint:
    """A checkpoint in memory: where it was, its plain config, and its tensors by name."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix.`, without it."""
        return {k.removeprefix(f"{prefix}."): v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}


def model_config(*, sample_rate: int, normalize: bool, encoder: EncoderConfig, objective: dict) -> dict[str, Any]:
    """The config.json of a model: plain data, no class names from outside."""
    return {
        "format": "speechssl",
        "version": VERSION,
        "sample_rate": sample_rate,
        "normalize": normalize,
        "encoder": encoder.to_dict(),
        "objective": objective,
    }


def resolve(path: str | os.PathLike, *, prefer: str = "last") -> Path:
    """The checkpoint's folder for what a user names: that folder, or a run folder (then `prefer`, else `last`)."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: there is no such folder; correct the path")
    for candidate in (path, path / "checkpoints" / prefer, path / "checkpoints" / "last"):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"{path} holds no checkpoint (no config.json there, nor under checkpoints/last)")


def load_checkpoint(path: str | os.PathLike, *, prefer: str = "last") -> Checkpoint:
    """Config and tensors of the checkpoint that `resolve` finds, or of another toolkit's, converted.

    A damaged one, or one of an unknown kind, is a UserError.
    """
    # Imported here: interop builds on this module, and a checkpoint of ours does not need it.
    from speechssl.interop import foreign

    if foreign.is_foreign(path):
        return foreign.read(path)
    folder = resolve(path, prefer=prefer)
    config = read_json(folder / "config.json")
    if config.get("format") != "speechssl":
        raise UserError(f"{folder}/config.json is not a checkpoint's; use another folder")
    if config.get("version") != VERSION:
        raise UserError(
            f"{folder} has checkpoint version {config.get('version')}, this speechssl reads {VERSION}; update speechssl"
        )
    return Checkpoint(folder, config, read_tensors(folder / "model.safetensors"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; use another checkpoint")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint") from error


def build_model(checkpoint: Checkpoint) -> tuple[Encoder, nn.Module]:
    """Encoder and objective (with its head) of a checkpoint, in evaluation mode."""
    encoder = build_encoder(checkpoint)
    objective = build_objective(checkpoint.config["objective"], encoder.config)
    load_tensors(objective, checkpoint.part("objective"), checkpoint.folder)
    return encoder, objective.eval()


def build_objective(options: dict[str, Any], encoder: EncoderConfig) -> nn.Module:
    """The objective that `options` describe: its name and its keyword arguments, plain data.

    An encoder that was converted without a head has the objective "none", an empty module.
    """
    if options["name"] == "none":
        return nn.Module()
    arguments = {key: value for key, value in options.items() if key != "name"}
    return objective_class(options["name"])(encoder, **arguments)


def build_encoder(checkpoint: Checkpoint) -> Encoder:
    """The encoder of a checkpoint, in evaluation mode."""
    encoder = Encoder(EncoderConfig.from_dict(checkpoint.config["encoder"]))
    load_tensors(encoder, checkpoint.part("encoder"), checkpoint.folder)
    return encoder.eval()


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Fill a module; a missing, surplus or misshapen tensor is a UserError that names it."""
    wanted = module.state_dict()
    for name in wanted.keys() | tensors.keys():
        if name not in wanted or name not in tensors:
            state = "lacks" if name in wanted else "has an unknown"
            raise UserError(f"{source} {state} tensor {name}; it belongs to another model")
        if wanted[name].shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, the model wants {list(wanted[name].shape)}"
            raise UserError(f"{source} holds {name} with shape {shapes}; it belongs to another model")
    module.load_state_dict(tensors)


def first_difference(ours: dict, theirs: dict, prefix: str = "") -> str | None:
    """The first key whose values differ between two plain configs, in words; None where they agree."""
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = first_difference(a, b, f"{prefix}{key}.")
            if inner:
                return inner
        elif a != b:
            return f"{prefix}{key} is {a!r} here and {b!r} there"
    return None


def save_checkpoint(
    checkpoints: Path,
    *,
    step: int,
    config: dict[str, Any],
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    trainer: dict[str, Any],
) -> Path:
    """Write step_N under a temporary name, sync it, rename it, and point `last` at it."""
    folder = checkpoints / f"step_{step}"
    temporary = checkpoints / f".tmp_step_{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in model.items()}, temporary / "model.safetensors")
    save_file({k: v.detach().cpu().contiguous() for k, v in optimizer.items()}, temporary / "optimizer.safetensors")
    write_json(temporary / "config.json", config)
    write_json(temporary / "trainer.json", trainer)
    for path in temporary.iterdir():
        _sync(path)
    _sync(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    link(checkpoints / "last", folder.name)
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, readable by people."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def link(path: Path, target: str) -> None:
    """Point the symbolic link `path` at `target` beside it, in one step."""
    temporary = path.with_name(f".tmp_{path.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    _sync(path.parent)


def remove_old(checkpoints: Path, *, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and those that `last` and `best` point at."""
    linked = {(checkpoints / name).resolve().name for name in ("last", "best")}
    folders = [p for p in checkpoints.iterdir() if re.fullmatch(r"step_\d+", p.name) and not p.is_symlink()]
    folders.sort(key=lambda path: int(path.name.removeprefix("step_")))
    for folder in folders[: -max(keep_last, 1)]:
        if folder.name not in linked:
            shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; `names` gives each parameter's name by its id()."""
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took."""
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        parameter = named[name]
        # AdamW's fused form keeps its step count beside the parameter; a copy keeps the file's memory free.
        optimizer.state[parameter][slot] = value.to(parameter.device).clone()
