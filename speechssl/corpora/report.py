"""What a preparation found, as OUT/report.json: hours, durations, rates, speakers, characters, what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.audio import AudioInfo

# Edges of the histogram of durations, seconds.
EDGES = (0, 1, 2, 5, 10, 15, 20, 30, 60, 600, 3600, float("inf"))
_QUANTILES = {"shortest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "longest": 1.0}


class Report:
    """Gathers figures, and writes them."""

    def __init__(self) -> None:
        self.audio = {"sample_rates": Counter(), "channels": Counter(), "formats": Counter()}
        self.parts: dict[str, dict[str, Any]] = {}
        self.left_out: list[dict[str, str]] = []

    def add_audio(self, info: AudioInfo) -> None:
        """Count a clip's file."""
        for key, value in (
            ("sample_rates", info.sample_rate),
            ("channels", info.num_channels),
            ("formats", info.format),
        ):
            self.audio[key][str(value)] += 1

    def leave_out(self, clip: str, reason: str) -> None:
        """Note a clip that cannot be used, and why."""
        self.left_out.append({"id": clip, "reason": reason})

    def add_part(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Note the rows of a manifest; a line about them."""
        durations_s = np.array([row["duration"] for row in rows])
        texts = [row["text"] for row in rows if "text" in row]
        characters = Counter(character for text in texts for character in text)
        speakers = {row["speaker"] for row in rows if row.get("speaker") is not None}
        counts, _ = np.histogram(durations_s, EDGES)
        self.parts[name] = {
            "clips": len(rows),
            "hours": round(durations_s.sum() / 3600, 6),
            "duration_s": {key: round(float(np.quantile(durations_s, q)), 4) for key, q in _QUANTILES.items()},
            "durations": {_between(low, high): int(n) for low, high, n in zip(EDGES, EDGES[1:], counts, strict=False)},
            "speakers": len(speakers),
            "transcribed_clips": len(texts),
            "transcribed_hours": round(sum(row["duration"] for row in rows if "text" in row) / 3600, 6),
            "words": sum(len(text.split()) for text in texts),
            "characters": dict(characters.most_common()),
        }
        part = self.parts[name]
        line = f"{len(rows)} clips, {part['hours']:.2f} h, {part['speakers']} speakers"
        return line + (f", {len(texts)} transcripts of {len(characters)} characters" if texts else "")

    def write(self, out: Path) -> None:
        """Writes OUT/report.json."""
        reasons = Counter(_kind(item["reason"]) for item in self.left_out)
        content = {
            "parts": self.parts,
            "audio": {key: dict(counter.most_common()) for key, counter in self.audio.items()},
            "left_out": len(self.left_out),
            "left_out_reasons": dict(reasons.most_common()),
            "left_out_clips": self.left_out,
        }
        path = out / "report.json"
        path.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8", "backslashreplace"
        )


def _between(low: float, high: float) -> str:
    return f"{low:g} s and more" if high == float("inf") else f"{low:g} to {high:g} s"


def _kind(reason: str) -> str:
    """A reason without the name and the numbers of one clip: `PATH: lasts 0.01 s` -> `lasts N s`."""
    return re.sub(r"\d+(\.\d+)?", "N", reason.rpartition(": ")[2] if ": " in reason else reason)
