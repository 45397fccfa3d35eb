"""What a run says while it goes: metrics.jsonl, TensorBoard, and a live line or plain log lines on stderr."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("speechssl")

SHOWN = ("loss", "accuracy", "code_perplexity", "cer", "blank_share", "audio_seconds_per_second")


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

    def state(self) -> dict[str, list[float]]:
        """Plain data that the constructor takes."""
        return {name: [float(total), count] for name, (total, count) in self.sums.items()}


class Monitor:
    """Writes rows and shows progress. Every row is flushed: what was said survives a kill."""

    def __init__(self, run_dir: Path, *, max_steps: int, first_step: int):
        self.path = run_dir / "metrics.jsonl"
        self.max_steps = max_steps
        self.tensorboard = SummaryWriter(run_dir / "tensorboard", purge_step=first_step + 1)
        console = Console(stderr=True)
        self.progress = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self.progress = Progress(*columns, TimeRemainingColumn(), console=console)
            self.task = self.progress.add_task("", total=max_steps, completed=first_step)
            self.progress.start()
        self.started = time.monotonic()
        self.first_step, self.last_line = first_step, -math.inf

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, TensorBoard and the screen."""
        append_row(self.path, row)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.tensorboard.add_scalar(name, value, row["step"])
        self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        shown = {k: v for k, v in row.items() if k in SHOWN or k.startswith("valid_")}
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        is_valid = any(name.startswith("valid_") for name in row)
        if self.progress and not is_valid:
            self.progress.update(self.task, completed=row["step"], description=figures)
            return
        now = time.monotonic()
        if is_valid or now - self.last_line >= 10 or row["step"] == self.max_steps:
            done = row["step"] - self.first_step
            left_s = (now - self.started) / max(done, 1) * (self.max_steps - row["step"])
            log.info("step %d/%d  %s  left %s", row["step"], self.max_steps, figures, _clock(left_s))
            self.last_line = now

    def close(self) -> None:
        """Stop the live line and flush TensorBoard."""
        if self.progress:
            self.progress.stop()
        self.tensorboard.close()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One JSON line at the end of metrics.jsonl; NaN and infinity become null, which JSON has."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def truncate_rows(path: Path, *, last_step: int) -> None:
    """Drop the rows of steps past `last_step`, and a last line that a kill cut off."""
    if not path.exists():
        return
    rows = [row for row in _rows(path.read_text(encoding="utf-8").splitlines()) if row.get("step", 0) <= last_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def _rows(lines: list[str]) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
