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
MARGIN_S = 0.2  # kept of the pause at each end of a stretch
TOO_SHORT_S = 2.0  # of pauses that a stretch of no length would have to be worth
_ABOVE_FLOOR_DB = 20.0
_DIGITAL_SHARE = 0.01
_SMOOTH_S = 0.1  # energy is averaged over so much
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
        shortest_s: of a stretch with its margins, but where the pauses around a shorter one are long.
        longest_s: of a stretch, where there are pauses to cut at.
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
    smooth = round(_SMOOTH_S / frame_s) | 1  # odd, so that no pause moves
    power = np.convolve(10 ** (levels / 10), np.ones(smooth) / smooth, mode="same")
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
    """The pauses to cut at: those longest in all, less what the stretches between are too short or too long by.

    A pause at an end of the recording is always one of them.
    """
    shortest, longest = max((shortest_s - 2 * MARGIN_S) / frame_s, 1), longest_s / frame_s
    places = [pause for pause in pauses if pause[0] > 0 and pause[1] < total]
    places.insert(0, pauses[0] if pauses and pauses[0][0] == 0 else (0, 0))
    places.append(pauses[-1] if pauses and pauses[-1][1] == total else (total, total))
    gains, befores = [0.0], [0]
    for number, (first, last) in enumerate(places[1:], 1):
        tried = []
        for before in range(number - 1, -1, -1):
            length = first - places[before][1]
            if length > longest and tried:
                break
            penalty = max(length - longest, 0) + TOO_SHORT_S / frame_s * max(1 - length / shortest, 0)
            tried.append((gains[before] + last - first - penalty, before))
        gain, before = max(tried)
        gains.append(gain)
        befores.append(before)
    chosen, place = [], len(places) - 1
    while place > 0:
        chosen.append(places[place])
        place = befores[place]
    return [pause for pause in [places[0], *reversed(chosen)] if pause[1] > pause[0]]
