"""What `evaluate`, `probe` and `embed` left in or under a run's folder, for the report: rates, alignments, drawings."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from speechssl.evaluation import wer
from speechssl.evaluation.normalisation import Normalisation

log = logging.getLogger("speechssl")

# Clips that are shown with their audio, the audio of each at most, seconds, and confusions of each kind.
SHOWN, AUDIO_S, CONFUSIONS = 8, 15.0, 10
# Speakers with the highest WER that are named.
WORST = 20
# By what `evaluate`, `probe` and `embed` are known.
WRITTEN = ("metrics.json", "probe.json", "embeddings.jsonl")

# A value and the bounds of its interval.
Rate = tuple[float, float | None, float | None]


@dataclass
class Clip:
    """One recording with what was said and heard: `words` are (kind, reference, hypothesis) in order."""

    name: str
    words: list[tuple[str, str, str]]
    audio: str | None = None

    @property
    def edits(self) -> int:
        """Words that differ."""
        return sum(kind != "equal" for kind, _, _ in self.words)

    @property
    def num_words(self) -> int:
        """Words that were said."""
        return sum(kind != "insert" for kind, _, _ in self.words)


@dataclass
class Evaluation:
    """One test.

    Attributes:
        name: its folder, below the run's.
        metrics: metrics.json, if there is one.
        facts: what verification was measured on, in words, by name.
        tables: by title, a head and rows of text: WER by speaker and length, what each layer knows.
        intervals: for each rate, its value, and the bounds that hold 95 % of resampled test sets (None for one clip).
        confusions: commonest (reference, hypothesis, count), words first, then characters.
        clips: some recordings, the worst first.
        labels, counts: of a classifier, the confusion matrix [truth, answer].
        drawings: SVG files beside it (DET plot, layers, map), as data: addresses by name.
    """

    name: str
    metrics: dict[str, Any]
    facts: dict[str, str] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[str]]]] = field(default_factory=dict)
    intervals: dict[str, Rate] = field(default_factory=dict)
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
        _compare(found, hypotheses)
    if scores:
        _confuse(found, [row for row in scores if "label" in row and "prediction" in row])
    _verify(found)
    for group in ("speaker", "length"):
        _by_group(found, group)
    path = folder / "probe.json"
    if path.exists():
        _layers(found, json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(folder.glob("*.svg")):
        found.drawings[path.stem] = f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _compare(found: Evaluation, rows: list[dict[str, Any]]) -> None:
    """Rates and confusions as `evaluate` counted them, and aligned clips, of a recogniser's hypotheses."""
    normalisation = _normalisation(found.metrics.get("normalisation", ""))
    references, hypotheses = ([row[key] for row in rows] for key in ("reference", "hypothesis"))
    counted = found.metrics
    if "wer_interval" not in counted:  # measured before there were intervals
        counted = wer.error_rates(references, hypotheses, normalisation=normalisation) | counted
    for name in ("wer", "cer"):
        if counted[name] is not None:
            low, high = counted[f"{name}_interval"] or (None, None)
            found.intervals[name.upper()] = counted[name], low, high
    for kind, key in (("words", "confusions"), ("characters", "character_confusions")):
        found.confusions[kind] = [(_visible(a), _visible(b), count) for a, b, count in counted[key][:CONFUSIONS]]
    texts = ([normalisation(text) for text in column] for column in (references, hypotheses))
    clips = [Clip(str(row["id"]), words) for row, words in zip(rows, _align(*texts), strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -clips[i].edits / max(clips[i].num_words, 1))
    for i in _spread(order):
        clips[i].audio = _audio(rows[i])
        found.clips.append(clips[i])


def _verify(found: Evaluation) -> None:
    """The rates of verification, and what they were measured on."""
    values = found.metrics
    if values.get("speaker_attributed_wer") is not None:
        found.intervals["Speaker-attributed WER"] = values["speaker_attributed_wer"], None, None
    if values.get("eer") is None:
        return
    found.intervals["EER"] = values["eer"], *(values.get("eer_interval") or (None, None))
    found.facts["minDCF"] = f"{values['min_dcf']:.3f}"
    if values.get("min_dcf_interval"):
        found.facts["minDCF"] += " ({:.3f} to {:.3f})".format(*values["min_dcf_interval"])
    found.facts["minDCF"] += f" where {100 * values['p_target']:g} % of pairs are by one speaker"
    found.facts["trials"] = f"{values['num_trials']:,}, {values['num_target_trials']:,} by one speaker"
    found.facts["score"] = values.get("score", "cosine")


def _by_group(found: Evaluation, group: str) -> None:
    """The table of WER by speaker, the worst first, or by length."""
    rows = list((found.metrics.get(f"wer_by_{group}") or {}).items())
    if group == "speaker":
        rows = sorted(rows, key=lambda row: -(row[1] or 0.0))
    if len(rows) > 1:
        title = f"WER by {group}" + (f", the worst {WORST}" if len(rows) > WORST else "")
        cells = [[name, "–" if rate is None else f"{100 * rate:.1f}"] for name, rate in rows[:WORST]]
        found.tables[title] = [group, "WER, %"], cells


def _layers(found: Evaluation, content: dict[str, Any]) -> None:
    """The table of a probe."""
    has_eer = any(row.get("eer") is not None for row in content["results"])
    head = ["source", "layer", f"{content['metric']}, %", "95 %", "rate"] + (["EER, %", "minDCF"] if has_eer else [])
    rows = []
    for row in content["results"]:
        low, high = row["interval"]
        shares = f"{100 * row['test']:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"
        cells = [row["source"], row["layer"], *shares, f"{row['lr']:g}"]
        if has_eer:
            cells += ["–", "–"] if row.get("eer") is None else [f"{100 * row['eer']:.1f}", f"{row['min_dcf']:.3f}"]
        rows.append(cells)
    found.tables["What each layer knows"] = head, rows


def _normalisation(said: str) -> Normalisation:
    """The normalisation that `evaluate` wrote down in words."""
    return Normalisation(
        lowercase="lower-cased" in said,
        punctuation="remove" if "punctuation removed" in said else "keep",
        accents="remove" if "accents removed" in said else "keep",
    )


def _visible(text: str) -> str:
    return "␣" if text == " " else text or "–"


def _align(references: list[str], hypotheses: list[str]) -> list[list[tuple[str, str, str]]]:
    """(kind, reference, hypothesis) of each word of each clip; "" where a word was inserted or deleted."""
    output = jiwer.process_words(references, hypotheses)
    clips = []
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        words = []
        for chunk in chunks:
            said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            words += [(chunk.type, *pair) for pair in zip_longest(said, heard, fillvalue="")]
        clips.append(words)
    return clips


def _spread(order: list[int]) -> list[int]:
    """From the worst to the best, evenly."""
    count = min(SHOWN, len(order))
    return [order[math.floor(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]


def _audio(row: dict[str, Any]) -> str | None:
    """The clip of a row as Ogg Vorbis in a data: address; None where it is gone or cannot be read."""
    if "duration" not in row:  # written before rows said which part of the file they are about
        return None
    import soundfile  # only where there is something to play

    from speechssl import audio

    try:
        waveform = audio.load(
            row["audio_filepath"],
            offset_s=row.get("offset", 0.0),
            duration_s=min(row["duration"], AUDIO_S),
            byte_range=row.get("bytes"),
            channel=row.get("channel"),
        )
    except audio.AudioError as error:
        log.warning("a clip is shown without its audio: %s", error)
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.numpy(), audio.SAMPLE_RATE, format="OGG", subtype="VORBIS")
    return f"data:audio/ogg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _confuse(found: Evaluation, rows: list[dict[str, Any]]) -> None:
    """The confusion matrix of a classifier."""
    found.labels = sorted({str(row[key]) for row in rows for key in ("label", "prediction")})
    places = {label: i for i, label in enumerate(found.labels)}
    found.counts = np.zeros((len(places), len(places)), dtype=int)
    for row in rows:
        found.counts[places[str(row["label"])], places[str(row["prediction"])]] += 1
