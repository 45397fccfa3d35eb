"""Long recordings without transcripts, cut into segments that a model can take.

`windows` cuts equal parts. `speech` keeps the parts in which somebody speaks, by energy: the level of 10 ms frames
against that of the recording's own background, pauses shorter than PAUSE_S bridged, a margin kept at both ends, and
parts that are too long cut where they are quietest. A segment is a line of the manifest with `offset`: audio is neither
copied nor, later, read beyond the segment.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from speechssl.audio import read_frames, to_mono
from speechssl.errors import UserError
from speechssl.soundfiles import open_audio

Row = dict[str, Any]

FRAME_S = 0.01
BLOCK_S = 60.0  # read at once: memory does not grow with the recording
PAUSE_S = 0.8
MARGIN_S = 0.1
SHORTEST_S = 0.5
# Speech is louder than the background by this part of the way to the loud end, and by so many dB at least.
_RISE = 0.4
_LEAST_RISE_DB = 6.0
_FLOOR_DB = -90.0


def windows(row: Row, longest_s: float) -> list[Row]:
    """Equal parts of at most `longest_s` seconds."""
    number = math.ceil(row["duration"] / longest_s - 1e-9)
    edges = np.linspace(0, row["duration"], number + 1)
    return _rows(row, list(itertools.pairwise(edges)))


def speech(row: Row, longest_s: float) -> list[Row]:
    """The parts in which somebody speaks, none longer than `longest_s` seconds.

    Raises:
        UserError: there is none, or the recording cannot be read.
    """
    levels = _levels_db(row)
    spans = [part for span in _active(levels) for part in _cut(levels, *span, round(longest_s / FRAME_S))]
    spans = [(low * FRAME_S, min(high * FRAME_S, row["duration"])) for low, high in spans]
    spans = [(low, high) for low, high in spans if high - low >= SHORTEST_S]
    if not spans:
        raise UserError(f"{row['audio_filepath']}: nobody seems to speak in it.")
    return _rows(row, spans)


KINDS = {"windows": windows, "speech": speech}


def _rows(row: Row, spans: list[tuple[float, float]]) -> list[Row]:
    offset_s = row.get("offset") or 0.0
    return [
        {
            **row,
            "id": f"{row['id']}@{low:.2f}",
            "recording": row["id"],
            "offset": round(offset_s + float(low), 3),
            "duration": round(float(high - low), 3),
        }
        for low, high in spans
    ]


def _levels_db(row: Row) -> np.ndarray:
    """Level of each frame of the clip, dB of full scale; read block by block."""
    path, levels = row["audio_filepath"], []
    with open_audio(path, byte_range=tuple(row["bytes"]) if "bytes" in row else None) as file:
        hop = max(round(FRAME_S * file.samplerate), 1)
        start = round((row.get("offset") or 0.0) * file.samplerate)
        end = min(start + round(row["duration"] * file.samplerate), file.frames)
        block = round(BLOCK_S / FRAME_S) * hop
        for first in range(start, end, block):
            samples = to_mono(read_frames(file, path, start=first, num_samples=min(block, end - first)))
            frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
            energy = np.square(frames - frames.mean(axis=1, keepdims=True)).mean(axis=1)
            levels.append(10 * np.log10(energy + 10 ** (_FLOOR_DB / 10)))
    return np.concatenate(levels)


def _active(levels: np.ndarray) -> list[tuple[int, int]]:
    """Spans of frames with speech, margins included, that do not overlap."""
    background, loud = np.quantile(levels, [0.1, 0.95])
    if loud - background < _LEAST_RISE_DB:  # no pause to be told from speech: all of it, unless it is silence
        return [(0, len(levels))] if loud > _FLOOR_DB + 20 else []
    threshold = background + max(_RISE * (loud - background), _LEAST_RISE_DB)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], levels > threshold, [0]]).astype(np.int8)))
    margin, pause = round(MARGIN_S / FRAME_S), round(PAUSE_S / FRAME_S)
    spans: list[tuple[int, int]] = []
    for low, high in edges.reshape(-1, 2).tolist():
        if high - low < 3:  # a click
            continue
        low, high = max(low - margin, 0), min(high + margin, len(levels))
        if spans and low - spans[-1][1] < pause - 2 * margin:
            low = spans.pop()[0]
        elif spans and low < spans[-1][1]:
            low = spans[-1][1]
        spans.append((low, high))
    return spans


def _cut(levels: np.ndarray, low: int, high: int, longest: int) -> list[tuple[int, int]]:
    """A span in parts of at most `longest` frames, each but the last cut at the quietest frame of its second half."""
    parts = []
    while high - low > longest:
        half = low + longest // 2
        middle = half + int(np.argmin(levels[half : low + longest]))
        parts.append((low, middle))
        low = middle
    return [*parts, (low, high)]
