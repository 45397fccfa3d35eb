"""The report: one HTML file of a run, or of several side by side, that needs nothing from anywhere else."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechssl.doctor import healthy, logs
from speechssl.doctor.judge import Finding, Judge
from speechssl.reporting import charts, evaluations
from speechssl.reporting.evaluations import Evaluation, Rate

# Figures by what they tell; the beginning of a name is enough. What is named first is drawn first.
GROUPS = {
    "Learning": ("loss", "accuracy", "accuracy_over_chance", "cer", "wer", "energy_gap", "valid_"),
    "Codebook": ("code_usage", "code_perplexity"),
    "Health": (
        "blank_share",
        "output_variance",
        "effective_rank",
        "target_variance",
        "update_ratio/context",
        "grad_norm",
    ),
    "Machine": ("audio_seconds_per_second", "loader_share", "padding_share", "memory_gib", "skipped_steps", "lr"),
}
LEFT_OUT = ("loss_feature_penalty", "grad_norm/", "weight_", "valid_chance", "valid_gumbel")
# What an objective is called at the beginning of a sentence.
NAMES = {
    "wav2vec2": "wav2vec 2.0",
    "hubert": "HuBERT",
    "ctc": "The recogniser",
    "ctc_speaker": "The recogniser",
    "semi": "The recogniser",
    "distil": "The student",
    "classify": "The classifier",
}
# Points of a curve that are drawn, and rows of its table.
POINTS, ROWS = 400, 12


@dataclass
class Run:
    """One run: its log, findings, evaluations, and the views of clips if they were asked for."""

    name: str
    log: logs.Log
    findings: list[tuple[Finding, bool]]
    evaluations: list[Evaluation]
    views: list[Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The figures, without events."""
        return [healthy.derive(row, self.log.settings) for row in self.log.rows if "event" not in row]

    @property
    def began(self) -> dict[str, Any]:
        """The event that says by which command and versions the run was begun."""
        return next((row for row in self.log.rows if row.get("event") == "began"), {})

    def last(self, name: str) -> float | None:
        """The last value of a figure."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)


def read(run_dir: Path, *, name: str, views: list[Any]) -> Run:
    """A run with its findings: those of the rules of today, over all its rows."""
    log = logs.read(run_dir)
    judge = Judge(bands=healthy.load(log.objective), settings=log.settings, max_steps=log.max_steps, patience=3)
    findings = [finding for row in log.rows for finding in judge.see(row)]
    tests = evaluations.find(run_dir) if run_dir.is_dir() else []
    return Run(name, log, [(one, one.name in judge.open) for one in findings], tests, views)


def render(runs: list[Run]) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("speechssl", "reporting"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"figure": _figure, "percent": _percent}
    return environment.get_template("report.html.j2").render(
        runs=runs,
        headline=headline(runs[0]) if len(runs) == 1 else f"{len(runs)} runs side by side",
        stories=[headline(run) for run in runs],
        groups=_groups(runs),
        matrix=charts.matrix,
        key=charts.key,
        table=_table(runs),
        version=metadata.version("speechssl"),
        commands=[command(run) for run in runs],
        config=[json.dumps(run.log.settings, indent=1, ensure_ascii=False) for run in runs],
    )


def headline(run: Run) -> str:
    """The story of a run in one sentence."""
    objective = NAMES.get(run.log.objective, run.log.objective or "The run")
    steps = f"{run.last('step'):,.0f} of {run.log.max_steps:,} steps"
    open_findings = sum(still for _, still in run.findings)
    health = (
        "; the doctor found nothing" if not run.findings else f"; {len(run.findings)} findings, {open_findings} open"
    )
    for test in run.evaluations:
        if "WER" in test.intervals:
            return (
                f"{objective} reads with a word error rate of {_rate(test.intervals['WER'])} "
                f"on {test.metrics['num_utterances']:,} clips, after {steps}{health}."
            )
        if test.metrics.get("accuracy") is not None:
            return (
                f"{objective} names {_percent(test.metrics['accuracy'])} of {test.metrics['num_utterances']:,} clips "
                f"rightly, after {steps}{health}."
            )
    first = next((row["loss"] for row in run.rows if row.get("loss") is not None), math.nan)
    story = f"{objective}: loss {first:.3g} → {run.last('loss') or math.nan:.3g} in {steps}"
    if run.last("accuracy_over_chance"):
        story += f", {run.last('accuracy_over_chance'):.1f} times as often right as guessing"
    return f"{story}{health}."


def _groups(runs: list[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Charts by group: name, drawing, table of values."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    one_term = sum(name.startswith("loss_") for name in names) == 1
    names = [name for name in names if not name.startswith(LEFT_OUT) and not (one_term and "loss_" in name)]
    bands = healthy.load(runs[0].log.objective)
    groups = []
    for group, beginnings in GROUPS.items():
        chosen = [name for begin in beginnings for name in names if name == begin or _belongs(name, begin)]
        drawn = [_chart(name, runs, bands) for name in dict.fromkeys(chosen)]
        groups.append((group, [chart for chart in drawn if chart]))
    return [group for group in groups if group[1]]


def _belongs(name: str, begin: str) -> bool:
    return (begin.endswith("_") and name.startswith(begin)) or (begin == "loss" and name.startswith("loss_"))


def _chart(name: str, runs: list[Run], bands: healthy.Bands) -> dict[str, Any] | None:
    lines = []
    for run in runs:
        points = [(row["step"], row[name]) for row in run.rows if isinstance(row.get(name), int | float)]
        points = points[:: -(-len(points) // POINTS)] + points[-1:] if points else []
        lines.append(charts.Line(run.name, [x for x, _ in points], [y for _, y in points]))
    if max(len(line.x) for line in lines) < 2 or len({y for line in lines for y in line.y}) < 2:
        return None
    band = _band(name, runs[0], bands)
    every = max(len(lines[0].x) // ROWS, 1)
    return {
        "name": name,
        "drawing": charts.curves(lines, band=band, label=f"{name} over steps, last {_figure((lines[0].y or [0])[-1])}"),
        "last": [_figure(line.y[-1]) if line.y else "–" for line in lines],
        "has_band": bool(band[0]),
        "values": list(zip(lines[0].x[::every], map(_figure, lines[0].y[::every]), strict=True)),
    }


def _band(name: str, run: Run, bands: healthy.Bands) -> tuple[list, list, list]:
    """Steps, lowest and highest healthy value, of the run's own length."""
    places = [(edge, bands.at(name, edge)) for edge in (*healthy.EDGES[1:], 1.0)]
    length = max(run.log.max_steps, healthy.SHORTEST)
    known = [(edge * length, *band) for edge, band in places if band]
    known = [point for point in known if point[0] <= 1.1 * (run.last("step") or 0)]
    return tuple(map(list, zip(*known, strict=True))) if len(known) > 1 else ([], [], [])


def _table(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """What is compared between runs: last figures, and the rates of each test."""
    names = (
        "loss",
        "accuracy_over_chance",
        "accuracy",
        "code_usage",
        "blank_share",
        "audio_seconds_per_second",
        "memory_gib",
    )
    rows = [("steps", [f"{run.last('step'):,.0f} of {run.log.max_steps:,}" for run in runs])]
    rows += [
        (name, [_figure(run.last(name)) for run in runs])
        for name in names
        if any(run.last(name) is not None for run in runs)
    ]
    tests = dict.fromkeys(test.name for run in runs for test in run.evaluations)
    for name in tests:
        found = [next((test for test in run.evaluations if test.name == name), None) for run in runs]
        for rate in ("WER", "CER", "Speaker-attributed WER", "EER"):
            if any(test and rate in test.intervals for test in found):
                cells = [test.intervals.get(rate) if test else None for test in found]
                rows.append((f"{name}: {rate}", [_rate(cell) for cell in cells]))
        for key in ("accuracy", "min_dcf"):
            if any(test and test.metrics.get(key) is not None for test in found):
                rows.append((f"{name}: {key}", [_figure(test.metrics.get(key)) if test else "–" for test in found]))
    return rows


def command(run: Run) -> str | None:
    """The command line that began a run, or the one that its config says; None for another toolkit's log."""
    if run.began.get("command"):
        return run.began["command"]
    if not run.log.settings:
        return None
    verb = "pretrain" if "objective.name" in run.log.settings else "finetune"
    keys = ("data.train", "data.valid", "init", "model.name", "trainer.max_steps", "trainer.seed", "optim.lr")
    given = [f"{key.removesuffix('.name')}={value}" for key in keys if (value := run.log.settings.get(key)) is not None]
    return shlex.join(["speechssl", verb, *given])


def _rate(cell: Rate | None) -> str:
    if cell is None:
        return "–"
    rate, low, high = cell
    return _percent(rate) if low is None else f"{_percent(rate)} ({_percent(low)} to {_percent(high)})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
