"""Cuts at pauses, in recordings whose pauses are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from speechssl.segments import MARGIN_S, find_pauses, levels_db, stretches

FRAME_S = 0.02
RATE, HOP = 16_000, 320


def recording(*parts, noise=1e-3, seed=0):
    """Levels of speech-like noise: (seconds, amplitude) each, over a noise floor; amplitude None is digital silence."""
    rng = np.random.default_rng(seed)
    pieces = []
    for seconds, amplitude in parts:
        size = round(seconds * RATE)
        piece = np.zeros(size) if amplitude is None else rng.normal(0, 1, size) * np.hypot(amplitude, noise)
        pieces.append(piece)
    return levels_db(torch.from_numpy(np.concatenate(pieces)).float(), HOP)


def found_s(levels, shortest_s=1.0, longest_s=8.0):
    return [
        (round(a * FRAME_S, 2), round(b * FRAME_S, 2))
        for a, b in stretches(levels, frame_s=FRAME_S, shortest_s=shortest_s, longest_s=longest_s)
    ]


def test_levels_are_decibels_of_each_frame():
    wave = torch.cat([torch.full((HOP,), 0.1), torch.full((HOP,), 1.0), torch.zeros(HOP // 2)])
    assert levels_db(wave, HOP) == pytest.approx([-20.0, 0.0, -120.0], abs=1e-3)


@pytest.mark.parametrize("silence", [0.0, None])
def test_clips_with_silence_between_them_come_apart(silence):
    levels = recording((2, 0.1), (1, silence), (3, 0.1), (0.6, silence), (1.5, 0.1))
    expected = [(0.0, 2 + MARGIN_S), (3 - MARGIN_S, 6 + MARGIN_S), (6.6 - MARGIN_S, 8.1)]
    assert np.array(found_s(levels)) == pytest.approx(np.array(expected), abs=0.05)


def test_silence_at_both_ends_is_left_out():
    levels = recording((3, 0.0), (2, 0.1), (5, 0.0))
    assert found_s(levels) == [pytest.approx((3 - MARGIN_S, 5 + MARGIN_S), abs=0.05)]


def test_of_short_pauses_the_longest_is_taken_where_a_stretch_is_too_long():
    levels = recording((3, 0.1), (0.24, 0.0), (3, 0.1), (0.34, 0.0), (1, 0.1), (0.24, 0.0), (3, 0.1))
    cuts = found_s(levels)
    assert len(cuts) == 2
    assert cuts[0][1] == pytest.approx(6.24 + 0.17, abs=0.05)


def test_clips_a_third_of_a_second_apart_come_apart():
    levels = recording((2, 0.1), (0.34, 0.0), (1.7, 0.1), (0.34, 0.0), (2.5, 0.1), (0.34, 0.0), (2, 0.1))
    assert [b - a for a, b in found_s(levels, shortest_s=2.0)] == pytest.approx([2.17, 2.04, 2.84, 2.17], abs=0.05)


def test_a_short_pause_does_not_keep_a_long_one_from_being_cut_at():
    levels = recording((2.2, 0.1), (0.5, 0.0), (0.8, 0.1), (1.0, 0.0), (3, 0.1))
    cuts = found_s(levels, shortest_s=2.0)
    assert [a for a, _ in cuts] == pytest.approx([0.0, 4.5 - MARGIN_S], abs=0.05)


def test_without_a_pause_it_stays_whole():
    levels = recording((40, 0.1))
    assert found_s(levels) == [(0.0, 40.0)]
    assert find_pauses(recording((40, 0.002)), frame_s=FRAME_S) == []  # nothing but noise is no pause


def test_quiet_speech_after_loud_is_speech():
    levels = recording((40, 0.3), (1, 0.0), (40, 0.01), (1, 0.0), (2, 0.01), noise=1e-4)
    assert [b - a for a, b in found_s(levels, longest_s=60)] == pytest.approx([40.2, 40.4, 2.2], abs=0.1)


def test_a_word_alone_is_not_lost():
    levels = recording((2, 0.1), (2, 0.0), (0.3, 0.05), (2, 0.0), (2, 0.1))
    assert any(a <= 4.0 and b >= 4.3 for a, b in found_s(levels))


def test_stretches_are_in_order_and_cover_all_speech():
    rng = np.random.default_rng(3)
    parts = []
    for _ in range(60):
        parts += [(rng.uniform(0.3, 4), rng.uniform(0.05, 0.3)), (rng.uniform(0.05, 1.5), 0.0)]
    levels = recording(*parts)
    found = stretches(levels, frame_s=FRAME_S, shortest_s=1.0, longest_s=8.0)
    assert all(a < b for a, b in found)
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    covered = np.zeros(len(levels), dtype=bool)
    for a, b in found:
        covered[a:b] = True
    assert covered[levels > -30].mean() == 1.0
    assert np.mean([(b - a) * FRAME_S <= 8.5 for a, b in found]) > 0.9
    assert stretches(np.zeros(0), frame_s=FRAME_S, shortest_s=1.0, longest_s=8.0) == []


def test_a_short_quiet_word_between_digital_silence_is_kept():
    levels = recording((3, 0.3), (1, None), (0.06, 0.004), (1, None), (3, 0.3), noise=0.0)
    assert any(a <= 4.0 and b >= 4.06 for a, b in found_s(levels))
