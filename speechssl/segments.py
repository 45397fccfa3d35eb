"""Where a long recording is cut at pauses, into stretches like the clips that a model was trained on.

A model hears a stretch of half a minute otherwise than a clip of three seconds: group norm takes its statistics over
all of it, and attention spreads. So a long recording is cut where nobody speaks, and each stretch goes through the
model as a clip of its own; no word can be lost or repeated at such a cut. A stretch without a pause that is longer than
that is left whole here, and goes through the model in overlapping windows (see speechssl/windows.py).

Pauses are found by energy, against the speech and the noise around them, in one pass that keeps a number for each
frame.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

SILENT_DB = -90.0  # below is digital silence, which says nothing about a room's noise
MIN_PAUSE_S = 0.2
LONG_PAUSE_S = 0.4  # always cut at one, unless the stretch would be very short
MARGIN_S = 0.2  # kept of the pause at each end of a stretch
_ABOVE_FLOOR_DB = 15.0
_DIGITAL_SHARE = 0.01
_SMOOTH = 5  # frames over which energy is averaged
_BLOCK_S = 15.0  # thresholds are constant over a block, and come from it and its neighbours


def levels_db(waveform: Tensor, hop: int) -> np.ndarray:
    """float32 [T]: energy of each `hop` samples of a waveform [N], dB below full scale; the last is of what is left."""
    missing = -len(waveform) % hop
    frames = torch.nn.functional.pad(waveform, (0, missing)).view(-1, hop)
    return (10 * torch.log10(frames.square().mean(1) + 1e-12)).numpy()


def stretches(levels: np.ndarray, *, frame_s: float, shortest_s: float, longest_s: float) -> list[tuple[int, int]]:
    """The stretches of speech, (first frame, frame after the last) each, in order and apart.

    Args:
        levels: [T] dB.
        frame_s: seconds of a frame.
        shortest_s: a stretch is not cut off before it is so long, where it need not be.
        longest_s: of the pauses within so many seconds the longest is taken, if none is long.
    """
    pauses = find_pauses(levels, frame_s=frame_s)
    total, margin = len(levels), round(MARGIN_S / frame_s)
    found, start = [], 0
    for first, last in _cuts(pauses, total, frame_s, shortest_s, longest_s):
        middle = (first + last + 1) // 2
        if first > start:
            found.append((start, min(first + margin, total if last == total else middle)))
        start = total if last == total else max(last - margin, middle)
    if start < total:
        found.append((start, total))
    return found


def find_pauses(levels: np.ndarray, *, frame_s: float) -> list[tuple[int, int]]:
    """(first frame, frame after the last) of each pause of MIN_PAUSE_S or more."""
    if not len(levels):
        return []
    power = np.convolve(10 ** (levels / 10), np.ones(_SMOOTH) / _SMOOTH, mode="same")
    is_pause = 10 * np.log10(power + 1e-12) < _thresholds(levels, round(_BLOCK_S / frame_s))
    found, place = [], 0
    for pause, group in groupby(is_pause.tolist()):
        length = len(list(group))
        if pause and length * frame_s >= MIN_PAUSE_S:
            found.append((place, place + length))
        place += length
    return found


def _thresholds(levels: np.ndarray, block: int) -> np.ndarray:
    """[T] dB: below is a pause. A third of the way from the noise to the speech around, or digital silence.

    Nor is it far above the quietest there is in the whole recording: a quiet speaker after a loud one is no pause.
    Where there is digital silence around, what is not silent may all be speech, so that alone is a pause.
    """
    thresholds = np.full(len(levels), SILENT_DB)
    audible = levels[levels > SILENT_DB]
    if not len(audible):
        return thresholds
    most = np.percentile(audible, 1) + _ABOVE_FLOOR_DB
    for start in range(0, len(levels), block):
        around = levels[max(start - block, 0) : start + 2 * block]
        if np.mean(around <= SILENT_DB) < _DIGITAL_SHARE:
            noise, speech = np.percentile(around, [1, 90])
            if speech - noise > 12:
                thresholds[start : start + block] = max(min(noise + (speech - noise) / 3, most), SILENT_DB)
    return thresholds


def _cuts(
    pauses: list[tuple[int, int]], total: int, frame_s: float, shortest_s: float, longest_s: float
) -> list[tuple[int, int]]:
    """The pauses to cut at."""
    chosen: list[tuple[int, int]] = []
    start, shortest, longest = 0, shortest_s / frame_s, longest_s / frame_s
    waiting = list(pauses)
    if waiting and waiting[0][0] == 0:  # the recording begins with one
        chosen.append(waiting.pop(0))
        start = chosen[-1][1]
    while waiting:
        within = [pause for pause in waiting if pause[0] - start <= longest]
        long = [p for p in within if (p[1] - p[0]) * frame_s >= LONG_PAUSE_S and p[0] - start >= shortest]
        if long:
            cut = long[0]
        elif total - start <= longest:
            break
        elif within:
            late = [pause for pause in within if pause[0] - start >= shortest] or within
            cut = max(late, key=lambda pause: pause[1] - pause[0])
        else:
            cut = waiting[0]
        chosen.append(cut)
        start = cut[1]
        waiting = [pause for pause in waiting if pause[0] >= start]
    if pauses and pauses[-1][1] == total and pauses[-1] not in chosen:  # and ends with one
        chosen.append(pauses[-1])
    return chosen
