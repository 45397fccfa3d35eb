"""Healthy curves: between which values each figure stayed in runs that went well, over the progress of a run.

healthy/OBJECTIVE.json holds them with the commands that made the runs; `tools/healthy.py` makes it from run folders.
Progress is a fraction of the run, as the schedules are, so that runs of different lengths compare.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "healthy"

# Where one part of a run ends and the next begins: short parts at first, where curves are steep.
EDGES = (0.0, 0.004, 0.0075, 0.015, 0.025, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# Steps of the shortest run whose curves count; of shorter ones only figures that do not say how far a run has come.
SHORTEST = 300

Row = dict[str, Any]


class Bands:
    """Healthy ranges by figure. `ranges[name]` has one [low, high] or None for each part of a run."""

    def __init__(self, ranges: dict[str, list[list[float] | None]]):
        self.ranges = ranges

    def at(self, name: str, progress: float) -> tuple[float, float] | None:
        """Lowest and highest healthy value around this progress, the neighbouring parts included; None if unknown."""
        part = bisect.bisect_right(EDGES, progress) - 1
        return _union(self.ranges.get(name, [])[max(part - 1, 0) : part + 2])

    def ever(self, name: str) -> tuple[float, float] | None:
        """Lowest and highest healthy value over the whole run; None if unknown."""
        return _union(self.ranges.get(name, []))


def load(objective: str | None) -> Bands:
    """The bundled curves of an objective; of one that has none, bands that know nothing."""
    path = FOLDER / f"{objective}.json"
    return Bands(json.loads(path.read_text(encoding="utf-8"))["ranges"] if path.is_file() else {})


def measure(runs: Iterable[list[Row]]) -> dict[str, list[list[float] | None]]:
    """The ranges of some healthy runs, each given as its rows with `step` and `progress`."""
    ranges: dict[str, list[list[float] | None]] = {}
    for rows in runs:
        for row in rows:
            part = bisect.bisect_right(EDGES, row["progress"]) - 1
            for name, value in row.items():
                if isinstance(value, int | float) and math.isfinite(value) and name not in ("step", "progress"):
                    known = ranges.setdefault(name, [None] * len(EDGES))
                    low, high = known[part] or (value, value)
                    known[part] = [min(low, value), max(high, value)]
    return ranges


def derive(row: Row, settings: dict[str, Any]) -> Row:
    """A row and what follows from it: shares of what is possible, which do not depend on a codebook's size."""
    derived = dict(row)
    groups, words = (settings.get(f"objective.{key}") for key in ("num_groups", "num_codewords"))
    if groups and words and row.get("code_perplexity") is not None:
        derived["code_usage"] = row["code_perplexity"] / (groups * words)
    if row.get("chance") and row.get("accuracy") is not None:
        derived["accuracy_over_chance"] = row["accuracy"] / row["chance"]
    return derived


def _union(parts: list[list[float] | None]) -> tuple[float, float] | None:
    known = [part for part in parts if part]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
