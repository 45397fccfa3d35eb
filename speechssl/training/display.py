"""What a terminal shows while a run goes: a live panel, or plain lines where stderr is a file; and the time left."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

log = logging.getLogger("speechssl")

# Shown in this order; a plain line has those before the bar only.
FIGURES = ("loss", "accuracy", "code_perplexity", "cer", "wer", "blank_share", "audio_seconds_per_second")
MORE = ("energy_gap", "effective_rank", "grad_norm", "lr", "loader_share", "memory_gib")
# Seconds between plain lines.
EVERY_S = 10


class TimeLeft:
    """Seconds to the end, from the steps so far; the first one, which starts workers and compiles, does not count."""

    def __init__(self, *, max_steps: int, now: Callable[[], float] = time.monotonic):
        self.max_steps, self.now = max_steps, now
        self.last: tuple[int, float] | None = None
        self.spent_s, self.steps, self.step = 0.0, 0, 0

    def see(self, step: int) -> None:
        """A row of this step has just been written; validations are part of the time."""
        moment = self.now()
        if self.last:
            self.spent_s += moment - self.last[1]
            self.steps += step - self.last[0]
        self.step, self.last = step, (step, moment)

    @property
    def seconds(self) -> float | None:
        """None before two rows."""
        if not self.steps:
            return None
        return self.spent_s / self.steps * (self.max_steps - self.step)


class Display:
    """Shows rows as they come."""

    def __init__(self, *, max_steps: int, first_step: int, title: str):
        self.max_steps, self.title = max_steps, title
        self.left = TimeLeft(max_steps=max_steps)
        self.last_line = -math.inf
        self.row: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}
        self.live = None
        if sys.stderr.isatty():
            self.row = {"step": first_step}
            self.live = Live(self._panel(), console=Console(stderr=True), refresh_per_second=4, transient=False)
            self.live.start()

    def show(self, row: dict[str, Any]) -> None:
        """A row has been written."""
        is_validation = any(name.startswith("valid_") for name in row)
        self.left.see(row["step"])
        if is_validation:
            self.validation = row
        else:
            self.row = row
        if self.live:
            self.live.update(self._panel())
            return
        now = time.monotonic()
        if is_validation or now - self.last_line >= EVERY_S or row["step"] == self.max_steps:
            shown = [name for name in row if name in FIGURES or name.startswith("valid_")]
            figures = "  ".join(f"{name} {row[name]:.4g}" for name in shown if row[name] is not None)
            log.info("step %d/%d  %s  left %s", row["step"], self.max_steps, figures, clock(self.left.seconds))
            self.last_line = now

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self.live:
            self.live.stop()

    def _panel(self) -> Group:
        """Progress, then figures in two columns, then the last validation."""
        step = self.row.get("step", 0)
        head = Text.assemble(
            (self.title, "bold"), f"  step {step:,} of {self.max_steps:,}  left {clock(self.left.seconds)}"
        )
        figures = Table.grid(padding=(0, 2))
        pairs = [(name, self.row[name]) for name in (*FIGURES, *MORE) if isinstance(self.row.get(name), int | float)]
        pairs += [(name, value) for name, value in self.validation.items() if isinstance(value, float)]
        for i in range(0, len(pairs), 2):
            cells = [cell for name, value in pairs[i : i + 2] for cell in (Text(name, "dim"), f"{value:.4g}")]
            figures.add_row(*cells)
        return Group(head, ProgressBar(total=self.max_steps, completed=step, width=60), figures)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash where unknown."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
