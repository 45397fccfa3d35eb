"""Checkpoints: a folder of safetensors and plain JSON, written whole or not at all.

RUN/checkpoints/step_N holds model.safetensors and config.json (all that is needed to use the model), and
optimizer.safetensors and trainer.json (what training needs besides). checksums.json has the SHA-256 of each file.
`last` and `best` are relative symbolic links.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl.config import objective_class
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training import files, sharded

log = logging.getLogger("speechssl")

VERSION = 1
# What comes from outside is not allowed to fill memory: bytes of a JSON file, and the largest number in an objective's
# options, which may say how many layers to make.
MAX_JSON_BYTES, MAX_OPTION = 2**26, 100_000
SAMPLE_RATES = range(1000, 768_001)


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
    verify(folder)
    return read(folder)


def read(folder: Path) -> Checkpoint:
    """Config and tensors of a checkpoint of ours, whose checksums have been compared."""
    config = read_json(folder / "config.json")
    if config.get("format") != "speechssl":
        raise UserError(f"{folder}/config.json is not a checkpoint's; use another folder")
    if config.get("version") != VERSION:
        raise UserError(
            f"{folder} has checkpoint version {config.get('version')}, this speechssl reads {VERSION}; update speechssl"
        )
    _check_config(config, folder)
    return Checkpoint(folder, config, read_tensors(folder / "model.safetensors"))


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """UserError where a config lacks what it has to have, or holds what no model has."""
    kinds = {"sample_rate": int, "normalize": bool, "encoder": dict, "objective": dict}
    for key, kind in kinds.items():
        if type(config.get(key)) is not kind:
            raise UserError(f"{folder}/config.json has no right {key!r}; use another checkpoint")
    if config["sample_rate"] not in SAMPLE_RATES:
        raise UserError(f"{folder}/config.json has a sample_rate of {config['sample_rate']}; use another checkpoint")
    for key, value in config["objective"].items():
        if type(value) in (int, float) and not abs(value) <= MAX_OPTION:
            raise UserError(f"{folder}/config.json has the objective's {key} at {value}; use another checkpoint")


def verify(folder: Path) -> None:
    """Compare the files of a checkpoint with its checksums, where it has any.

    Raises:
        UserError: a file is missing or is not as it was written; names it.
    """
    if not (folder / files.CHECKSUMS).is_file():
        return
    found = files.checksums(folder)
    for name, digest in read_json(folder / files.CHECKSUMS).items():
        if found.get(name) != digest:
            state = "is damaged: its checksum is not what it was" if name in found else "is missing"
            raise UserError(f"{folder / name} {state}; use another checkpoint")


def read_json(path: Path, *, instead: str = "use another checkpoint") -> dict[str, Any]:
    """A JSON object; one that is too large or too deep is a UserError as any that is damaged.

    `instead` is what the user is advised then.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; {instead}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {instead}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; {instead}")
    return content


def read_tensors(path: Path, *, instead: str = "use another checkpoint") -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; a UserError that advises `instead` where it is damaged."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if path.stat().st_size > memory:
            raise UserError(f"{path} is larger than this machine's memory, {memory >> 30} GiB; use a larger machine")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); {instead}") from error


def build_model(checkpoint: Checkpoint) -> tuple[Encoder, nn.Module]:
    """Encoder and objective (with its head) of a checkpoint, in evaluation mode."""
    encoder = build_encoder(checkpoint)
    options, tensors = checkpoint.config["objective"], checkpoint.part("objective")
    try:
        objective = _build_like(lambda: build_objective(options, encoder.config), tensors, checkpoint.folder)
    except (AttributeError, KeyError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{checkpoint.folder}/config.json has an objective that cannot be built ({error}); use another checkpoint"
        ) from error
    if hasattr(objective, "attach"):
        objective.attach(encoder)  # a head with adapters takes effect inside the encoder
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
    config = EncoderConfig.from_dict(checkpoint.config["encoder"])
    return _build_like(lambda: Encoder(config), checkpoint.part("encoder"), checkpoint.folder).eval()


def _build_like(build: Callable[[], nn.Module], tensors: dict[str, Tensor], source: Path) -> nn.Module:
    """What `build` makes, filled; built without memory first, so that it is as large as the tensors at most."""
    with torch.device("meta"):
        _check_shapes(build(), tensors, source)
    module = build()
    load_tensors(module, tensors, source)
    return module


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Fill a module; a missing, surplus or misshapen tensor is a UserError that names it, as one that is not finite."""
    wanted = _check_shapes(module, tensors, source)
    bad = first_not_finite(tensors)
    if bad:
        raise UserError(f"{source} holds {bad} with values that are not finite; use another checkpoint")
    module.load_state_dict({name: sharded.part_of(tensor, wanted[name]) for name, tensor in tensors.items()})


def _check_shapes(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The module's own tensors, all of which `tensors` has to have in the same shape, and no more."""
    wanted = module.state_dict()
    for name in wanted.keys() | tensors.keys():
        if name not in wanted or name not in tensors:
            state = "lacks" if name in wanted else "has an unknown"
            raise UserError(f"{source} {state} tensor {name}; it belongs to another model")
        if wanted[name].shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, the model wants {list(wanted[name].shape)}"
            raise UserError(f"{source} holds {name} with shape {shapes}; it belongs to another model")
        if wanted[name].is_floating_point() != tensors[name].is_floating_point():
            raise UserError(f"{source} holds {name} as {tensors[name].dtype}; use another checkpoint")
    return wanted


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
    name: str | None = None,
) -> Path:
    """Write step_N under a temporary name, sync it, rename it, and point `last` at it; or, with a name, that one."""
    folder = temporary(checkpoints, name or f"step_{step}")
    begin(folder, model)
    files.write_tensors(folder / "optimizer.safetensors", optimizer)
    return publish(folder, config=config, trainer=trainer)


def temporary(checkpoints: Path, name: str) -> Path:
    """Where the checkpoint of that name is written before it has its name."""
    return checkpoints / f".tmp_{name}"


def begin(temporary: Path, model: dict[str, Tensor]) -> None:
    """Make the folder .tmp_NAME with the weights in it."""
    files.remove(temporary)
    temporary.mkdir(parents=True)
    files.write_tensors(temporary / "model.safetensors", model)


def publish(temporary: Path, *, config: dict[str, Any], trainer: dict[str, Any]) -> Path:
    """Make a whole checkpoint of .tmp_NAME, where the tensors have been written: NAME, with `last` at a step_N."""
    folder = temporary.with_name(temporary.name.removeprefix(".tmp_"))
    files.write_json(temporary / "config.json", config)
    files.write_json(temporary / "trainer.json", trainer)
    files.write_json(temporary / files.CHECKSUMS, files.checksums(temporary))
    for path in temporary.iterdir():
        files.sync(path)
    files.sync(temporary)
    files.remove(folder)  # of a run that went back to a step before it; no link points there
    files.rename(temporary, folder)
    files.sync(folder.parent)
    if folder.name.startswith("step_"):
        files.link(folder.parent / "last", folder.name)
    return folder


def steps(checkpoints: Path) -> list[Path]:
    """The folders step_N, the oldest first."""
    found = [p for p in checkpoints.glob("step_*") if re.fullmatch(r"step_\d+", p.name) and not p.is_symlink()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def newest_whole(checkpoints: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is whole, None where there is none at all, and those after it, which are not.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    damaged, reasons = [], []
    for folder in reversed(steps(checkpoints)):
        try:
            verify(folder)
            for name in ("config.json", "trainer.json", files.CHECKSUMS):
                read_json(folder / name)
        except UserError as error:
            damaged.append(folder)
            reasons.append(str(error))
        else:
            for reason in reasons:
                log.warning("%s; going on from %s, the newest that is whole", reason, folder)
            return folder, damaged
    if reasons:
        raise UserError(f"no checkpoint in {checkpoints} is whole: {reasons[0]}, or choose another run_dir")
    return None, []


def adopt(checkpoints: Path, folder: Path, damaged: Sequence[Path]) -> None:
    """Make `folder` the one that the run goes on from: `last`, and `best` as it was then; put damaged ones aside."""
    best, name = checkpoints / "best", read_json(folder / "trainer.json").get("best_name")
    point(checkpoints / "last", folder.name)
    if name is None:
        files.remove(best)
    elif re.fullmatch(r"step_\d+|average", str(name)) and (checkpoints / name).is_dir():
        point(best, name)
    elif not best.exists() or best.resolve().name in {path.name for path in damaged}:
        point(best, folder.name)  # until there is a better one
    for path in damaged:
        aside = path.with_name(f"damaged_{path.name}")
        files.remove(aside)
        files.rename(path, aside)
    for path in checkpoints.glob(".tmp_*"):
        files.remove(path)


def point(path: Path, target: str) -> None:
    """Make a link point at `target`, unless it does."""
    if not (path.is_symlink() and path.readlink() == Path(target)):
        files.link(path, target)


def remove_old(checkpoints: Path, *, keep_last: int, keep: Iterable[int] = ()) -> None:
    """Delete all but the newest `keep_last` checkpoints, the steps `keep`, and what `last` and `best` point at."""
    linked = {(checkpoints / name).resolve().name for name in ("last", "best")} | {f"step_{step}" for step in keep}
    for folder in steps(checkpoints)[: -max(keep_last, 1)]:
        if folder.name not in linked:
            files.remove(folder)


def first_not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        local = sharded.local(tensor)
        if local.is_floating_point() and not local.isfinite().all():
            return name
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; `names` gives each parameter's name by its id()."""
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], tensors: dict[str, Tensor], source: Path
) -> None:
    """Put back what `optimizer_tensors` took, and nothing else; a tensor that does not fit is a UserError."""
    optimizer.state.clear()
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        parameter = named.get(name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise UserError(f"{source}/optimizer.safetensors does not fit the model at {key}; use another checkpoint")
        # AdamW's fused form keeps its step count beside the parameter; a copy keeps the file's memory free.
        part = sharded.part_of(value, parameter) if value.ndim else value
        optimizer.state[parameter][slot] = part.to(parameter.device).clone()
