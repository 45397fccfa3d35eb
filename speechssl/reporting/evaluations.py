"""What `evaluate`, `probe` and `embed` left in or under a run's folder, for the report: rates, alignments, drawings."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from speechssl.data.text import normalize

# Clips that are shown with their audio, and the audio of each at most, seconds.
SHOWN, AUDIO_S = 8, 15.0
RESAMPLED = 1000
# By what `evaluate`, `probe` and `embed` are known.
WRITTEN = ("metrics.json", "probe.json", "embeddings.jsonl")


@dataclass
class Clip:
    """One recording with what was said and heard: `words` are (kind, reference, hypothesis) in order."""

    name: str
    words: list[tuple[str, str, str]]
    edits: int
    num_words: int
    audio: str | None = None


@dataclass
class Evaluation:
    """One test.

    Attributes:
        name: its folder, below the run's.
        metrics: metrics.json, if there is one.
        intervals: for each rate, its value, and the bounds that hold 95 % of resampled test sets.
        confusions: commonest (reference, hypothesis, count), words first, then characters.
        clips: some recordings, the worst first.
        labels, counts: of a classifier, the confusion matrix [truth, answer].
        drawings: SVG files beside it (DET plot, layers, map), as data: addresses by name.
    """

    name: str
    metrics: dict[str, Any]
    intervals: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    confusions: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)
    clips: list[Clip] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    counts: np.ndarray | None = None
    drawings: dict[str, str] = field(default_factory=dict)


def find(run_dir: Path) -> list[Evaluation]:
    """Every evaluation, probe and embedding in a run's folder, at most two folders deep."""
    names = [f"{deep}{name}" for deep in ("", "*/", "*/*/") for name in WRITTEN]
    folders = sorted({path.parent for name in names for path in run_dir.glob(name)})
    return [_read(folder, run_dir) for folder in folders]


def _read(folder: Path, run_dir: Path) -> Evaluation:
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = Evaluation(str(folder.relative_to(run_dir)), metrics)
    hypotheses, scores = (_lines(folder / name) for name in ("hypotheses.jsonl", "scores.jsonl"))
    if hypotheses:
        _compare(found, hypotheses, lowercase="lower" in metrics.get("normalisation", ""))
    if scores:
        _confuse(found, [row for row in scores if "label" in row and "prediction" in row])
    for path in sorted(folder.glob("*.svg")):
        found.drawings[path.stem] = f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _compare(found: Evaluation, rows: list[dict[str, Any]], *, lowercase: bool) -> None:
    """Intervals, confusions and aligned clips of a recogniser's hypotheses."""
    references = [normalize(row["reference"], lowercase=lowercase) for row in rows]
    hypotheses = [normalize(row["hypothesis"], lowercase=lowercase) for row in rows]
    for name, process in (("words", jiwer.process_words), ("characters", jiwer.process_characters)):
        outputs = [process(reference, hypothesis) for reference, hypothesis in zip(references, hypotheses, strict=True)]
        edits = np.array([one.substitutions + one.deletions + one.insertions for one in outputs])
        totals = np.array([one.hits + one.substitutions + one.deletions for one in outputs])
        if totals.sum():
            found.intervals["WER" if name == "words" else "CER"] = _interval(edits, totals)
        pairs = [pair for one in outputs for pair in _aligned(one)]
        common = Counter((a, b) for kind, a, b in pairs if kind != "equal").most_common(10)
        found.confusions[name] = [(_visible(a), _visible(b), count) for (a, b), count in common]
        if name == "words":
            clips = [
                Clip(row.get("id", str(i)), _aligned(one), int(edits[i]), int(totals[i]))
                for i, (row, one) in enumerate(zip(rows, outputs, strict=True))
            ]
    order = sorted(range(len(rows)), key=lambda i: -clips[i].edits / max(clips[i].num_words, 1))
    for i in _spread(order):
        clips[i].audio = _audio(rows[i]) if "audio_filepath" in rows[i] else None
        found.clips.append(clips[i])


def _visible(text: str) -> str:
    return "␣" if text == " " else text or "–"


def _interval(edits: np.ndarray, totals: np.ndarray) -> tuple[float, float, float]:
    """A rate and the middle 95 % of what it would be on test sets of as many clips, drawn anew from these."""
    draws = np.random.default_rng(0).integers(len(edits), size=(RESAMPLED, len(edits)))
    rates = edits[draws].sum(1) / np.maximum(totals[draws].sum(1), 1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return edits.sum() / totals.sum(), float(low), float(high)


def _aligned(output: jiwer.WordOutput | jiwer.CharacterOutput) -> list[tuple[str, str, str]]:
    [reference], [hypothesis], [chunks] = output.references, output.hypotheses, output.alignments
    pairs = []
    for chunk in chunks:
        a = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        b = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(a), len(b))):
            pairs.append((chunk.type, a[i] if i < len(a) else "", b[i] if i < len(b) else ""))
    return pairs


def _spread(order: list[int]) -> list[int]:
    """From the worst to the best, evenly."""
    count = min(SHOWN, len(order))
    return [order[math.floor(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]


def _audio(row: dict[str, Any]) -> str | None:
    """The recording of a row as Ogg Vorbis in a data: address; None where it is gone."""
    import soundfile  # only where there is something to play

    path = Path(row["audio_filepath"])
    if not path.is_file():
        return None
    with soundfile.SoundFile(path) as file:
        file.seek(int(row.get("offset", 0) * file.samplerate))
        length = min(row.get("duration", AUDIO_S), AUDIO_S)
        samples = file.read(int(length * file.samplerate), dtype="float32", always_2d=True).mean(1)
        rate = file.samplerate
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="OGG", subtype="VORBIS")
    return f"data:audio/ogg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _confuse(found: Evaluation, rows: list[dict[str, Any]]) -> None:
    """The confusion matrix of a classifier."""
    found.labels = sorted({str(row[key]) for row in rows for key in ("label", "prediction")})
    places = {label: i for i, label in enumerate(found.labels)}
    found.counts = np.zeros((len(places), len(places)), dtype=int)
    for row in rows:
        found.counts[places[str(row["label"])], places[str(row["prediction"])]] += 1
