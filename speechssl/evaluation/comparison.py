"""Objectives side by side: each command in a process of its own that measures itself, and the table and plots."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from speechssl.config import plain
from speechssl.errors import UserError

log = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Contender:
    """What is compared: a name for tables and folders, an objective, and overrides of its keys."""

    label: str
    objective: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        cpu_s: seconds of the processor, of the process and those that it started.
        wall_s: seconds by the clock.
        memory_mib: most memory at a time, resident, or of the GPU where one was used.
    """

    cpu_s: float
    wall_s: float
    memory_mib: float


def run_measured(record: Path, verb: str, overrides: Sequence[str], model: DictConfig | None = None) -> Measured:
    """A command in a new process; what it took is in `record`, and where that is there already nothing is run.

    Args:
        record: JSON file of the command and what it took.
        verb, overrides: as on the command line.
        model: takes the place of the config's `model`.

    Raises:
        UserError: the command failed, or the record is of another one.
    """
    command = [verb, *overrides, *([] if model is None else [f"model={json.dumps(plain(model))}"])]
    if not record.is_file():
        record.parent.mkdir(parents=True, exist_ok=True)
        log.info("speechssl %s %s", verb, " ".join(overrides))
        # Anew, since neither torch's threads nor a GPU survive a fork.
        child = multiprocessing.get_context("spawn").Process(target=_child, args=(record, command, overrides, model))
        child.start()
        child.join()
        if child.exitcode or not record.is_file():
            raise UserError(f"`speechssl {verb}` failed for {record.with_suffix('')}; its reason is above")
    found = json.loads(record.read_text(encoding="utf-8"))
    changed = [pair for pair in zip_longest(found["command"], command, fillvalue="nothing there") if len(set(pair)) > 1]
    if changed:
        before, now = changed[0]
        raise UserError(f"{record.with_suffix('')} was made with {before}, where now is {now}; choose another out=")
    return Measured(**found["took"])


def _child(record: Path, command: list[str], overrides: Sequence[str], model: DictConfig | None) -> None:
    from speechssl.config import compose

    verb = command[0]
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    try:
        started = time.monotonic()
        config = compose(verb, overrides)
        if model is not None:
            config.model = model
        importlib.import_module(f"speechssl.commands.{verb}").run(config)
        took = asdict(_measure(time.monotonic() - started))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps({"command": command, "took": took}) + "\n", encoding="utf-8")
    temporary.rename(record)


def _measure(wall_s: float) -> Measured:
    import torch

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    memory = usages[0].ru_maxrss / unit
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        memory = torch.cuda.max_memory_allocated() / 2**20
    return Measured(sum(usage.ru_utime + usage.ru_stime for usage in usages), wall_s, memory)


def write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """results.json, table.md and, with matplotlib, a bar chart of each figure that decides."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(list(rows), indent=2) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table(rows), encoding="utf-8")
    _plots(out, rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, a column for each figure that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_show(row.get(column)) for column in columns) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _show(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _plots(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """FIGURE.png for error rates, speaker accuracy, cost and health."""
    try:
        import matplotlib
    except ImportError:
        log.warning("no plots: install matplotlib for them")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [key for row in rows for key in row if key.startswith("cer_")]
    figures += ["speaker_accuracy", "seconds_per_hour", "memory_mib", "effective_rank", "energy_gap"]
    for figure in dict.fromkeys(figures):
        known = [(row["objective"], row[figure]) for row in rows if row.get(figure) is not None]
        if not known:
            continue
        names, values = zip(*known, strict=True)
        canvas, axes = pyplot.subplots(figsize=(7, 0.4 * len(names) + 1), layout="constrained")
        bars = axes.barh(names, values)
        axes.bar_label(bars, [_show(float(value)) for value in values], padding=3)
        axes.invert_yaxis()
        axes.set_xlabel(figure)
        canvas.savefig(out / f"{figure}.png", dpi=120)
        pyplot.close(canvas)
