"""Experiment trackers beside TensorBoard: W&B and trackio, which take the same calls, where they are installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from speechssl.errors import UserError

KNOWN = ("wandb", "trackio")
PROJECT = "speechssl"


class Trackers:
    """The trackers of one run. `names` are packages of KNOWN; each gets the rows under the run folder's name."""

    def __init__(self, names: Sequence[str], run_dir: Path):
        self.modules = [_load(name) for name in names]
        for module in self.modules:
            module.init(project=PROJECT, name=run_dir.resolve().name)

    def write(self, row: dict[str, Any]) -> None:
        """Hand on a row's figures."""
        figures = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        for module in self.modules:
            module.log(figures, step=row["step"])

    def close(self) -> None:
        """Finish the run in each."""
        for module in self.modules:
            module.finish()


def _load(name: str) -> ModuleType:
    if name not in KNOWN:
        raise UserError(f"trainer.trackers has {name!r}, but may hold {' and '.join(KNOWN)}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"trainer.trackers={name} needs it installed: run `{sys.executable} -m pip install {name}`"
        ) from error
