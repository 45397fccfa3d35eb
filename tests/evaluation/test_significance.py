"""Intervals and paired tests against what is known of simple cases."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from speechssl.evaluation import significance


def test_the_interval_is_that_of_a_proportion():
    """One word a clip, 20 % wrong: the normal approximation of a binomial."""
    edits = np.array([1] * 200 + [0] * 800)
    low, high = significance.interval(edits, np.ones(1000, dtype=int))
    spread = 1.96 * np.sqrt(0.2 * 0.8 / 1000)
    assert low == pytest.approx(0.2 - spread, abs=0.004) and high == pytest.approx(0.2 + spread, abs=0.004)


def test_the_interval_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        lengths = rng.integers(1, 20, 80)
        edits = rng.binomial(lengths, 0.3)
        low, high = significance.interval(edits, lengths, seed=seed)
        covered += low <= 0.3 <= high
    assert 88 <= covered <= 100


def test_clips_are_the_units():
    """The same errors in few clips are less sure than in many."""
    many = significance.interval(np.array([1, 0] * 50), np.full(100, 10))
    few = significance.interval(np.array([10, 0] * 5), np.full(10, 100))
    assert few[1] - few[0] > 2 * (many[1] - many[0])


def test_without_clips_there_is_no_interval():
    assert significance.interval(np.array([1]), np.array([3])) is None
    assert significance.interval(np.array([1, 0]), np.array([0, 0])) is None


def test_draws_without_a_reference_word_do_not_count():
    """Of two clips one is silence in which eight words were heard: every draw with a rate is 0 / 4, 8 / 4 or 8 / 8."""
    edits, lengths = np.array([0, 8]), np.array([4, 0])
    assert significance.interval(edits, lengths) == [0.0, 2.0]
    found = significance.compare(edits, np.array([0, 0]), lengths)
    assert (found["difference"], found["interval"]) == (2.0, [0.0, 2.0])


def test_a_single_clip_and_no_reference_have_no_paired_interval():
    one = significance.compare(np.array([1]), np.array([2]), np.array([4]))
    assert (one["difference"], one["interval"], one["p"]) == (-0.25, None, 1.0)
    silent = significance.compare(np.array([1, 0]), np.array([0, 0]), np.array([0, 0]))
    assert (silent["difference"], silent["interval"]) == (None, None)


def test_the_paired_test_is_the_exact_one():
    ours, theirs = np.array([0, 1, 2, 0, 1, 0, 3, 1]), np.array([1, 1, 4, 0, 3, 0, 2, 2])
    lengths = np.full(8, 10)
    difference = ours - theirs
    sums = [abs(np.dot(signs, difference)) for signs in product((-1, 1), repeat=8)]
    exact = np.mean([total >= abs(difference.sum()) for total in sums])
    found = significance.compare(ours, theirs, lengths)
    assert found["difference"] == pytest.approx(-5 / 80)
    assert found["p"] == pytest.approx(exact, abs=0.04)
    assert found["interval"][0] < -5 / 80 < found["interval"][1]


def test_a_clear_difference_and_none():
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 15, 300)
    theirs = rng.binomial(lengths, 0.3)
    clear = significance.compare(rng.binomial(lengths, 0.2), theirs, lengths)
    assert clear["p"] < 0.01 and clear["interval"][1] < 0
    same = significance.compare(theirs, theirs, lengths)
    assert (same["difference"], same["p"]) == (0.0, 1.0)
