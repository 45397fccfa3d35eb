"""What a run says while it goes: metrics.jsonl, TensorBoard, trackers, and the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from speechssl.training import files
from speechssl.training.display import Display
from speechssl.training.rows import read_rows
from speechssl.training.trackers import Trackers


class Averages:
    """Sums and counts by name, and their quotients."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums = {name: tuple(pair) for name, pair in (sums or {}).items()}

    def add(self, name: str, total: float | Tensor, count: float) -> None:
        """Add a sum over `count` items; tensors stay on their device until they are read."""
        total = total.detach() if isinstance(total, Tensor) else total
        old_total, old_count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (old_total + total, old_count + count)

    def means(self) -> dict[str, float]:
        """Quotient of each name that has counts."""
        return {name: float(total) / count for name, (total, count) in self.sums.items() if count}

    def merge(self, other: Averages) -> None:
        """Add all of another's sums and counts."""
        for name, (total, count) in other.sums.items():
            self.add(name, total, count)

    @classmethod
    def of(cls, states: Iterable[dict[str, list[float]]]) -> Averages:
        """The averages over several, each as `state` gave it."""
        averages = cls()
        for state in states:
            averages.merge(cls(state))
        return averages

    def state(self) -> dict[str, list[float]]:
        """Plain data that the constructor takes."""
        return {name: [float(total), count] for name, (total, count) in self.sums.items()}


class Monitor:
    """Writes rows and shows progress. Every row is flushed: what was said survives a kill."""

    def __init__(self, run_dir: Path, *, max_steps: int, first_step: int, trackers: Sequence[str] = ()):
        self.path = run_dir / "metrics.jsonl"
        self.trackers = Trackers(trackers, run_dir)
        self.tensorboard = SummaryWriter(run_dir / "tensorboard", purge_step=first_step + 1)
        self.display = Display(max_steps=max_steps, first_step=first_step, title=run_dir.name)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, TensorBoard, the trackers and the screen."""
        append_row(self.path, row)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.tensorboard.add_scalar(name, value, row["step"])
        self.trackers.write(row)
        self.display.show(row)

    def close(self) -> None:
        """Stop the live display and flush what has been logged."""
        self.display.close()
        self.trackers.close()
        self.tensorboard.close()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One JSON line at the end of metrics.jsonl; NaN and infinity become null, which JSON has."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    files.append_text(path, json.dumps(finite) + "\n")


def truncate_rows(path: Path, *, last_step: int) -> None:
    """Drop the rows of steps past `last_step`, and a last line that a kill cut off."""
    if not path.exists():
        return
    rows = [row for row in read_rows(path) if row.get("step", 0) <= last_step]
    files.replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
