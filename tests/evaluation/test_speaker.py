"""Speaker figures against exact brute force over all thresholds, scikit-learn, and cases by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from speechssl.errors import UserError
from speechssl.evaluation.speaker import (
    accuracy,
    cosine_scores,
    eer,
    min_dcf,
    operating_points,
    trial_pairs,
)


def points_by_brute_force(scores, is_target) -> list[tuple[Fraction, Fraction]]:
    """(P_miss, P_fa) of each threshold, every trial looked at again for each."""
    targets = [s for s, t in zip(scores, is_target, strict=True) if t]
    others = [s for s, t in zip(scores, is_target, strict=True) if not t]
    thresholds = [float("inf"), *sorted(set(scores), reverse=True)]
    return [
        (
            Fraction(sum(s < threshold for s in targets), len(targets)),
            Fraction(sum(s >= threshold for s in others), len(others)),
        )
        for threshold in thresholds
    ]


def eer_by_brute_force(scores, is_target) -> Fraction:
    """The one point of the broken line through the operating points where both rates agree, exactly."""
    points = points_by_brute_force(scores, is_target)
    crossings = set()
    for (miss_a, fa_a), (miss_b, fa_b) in pairwise(points):
        rise = (miss_a - fa_a) - (miss_b - fa_b)
        share = (miss_a - fa_a) / rise
        if 0 <= share <= 1:
            crossings.add(miss_a + share * (miss_b - miss_a))
    assert len(crossings) == 1
    return crossings.pop()


TRIALS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
    lambda trials: len({target for _, target in trials}) == 2
)


@given(TRIALS)
def test_eer_against_exact_brute_force_with_ties(trials):
    scores, is_target = zip(*trials, strict=True)
    expected = float(eer_by_brute_force(scores, is_target))
    assert eer(np.array(scores, dtype=float), np.array(is_target)) == pytest.approx(expected, abs=1e-12)


@given(TRIALS, st.sampled_from([0.01, 0.05, 0.5, 0.9]), st.sampled_from([1.0, 10.0]))
def test_min_dcf_against_brute_force(trials, p_target, c_miss):
    scores, is_target = zip(*trials, strict=True)
    costs = [
        c_miss * p_target * float(miss) + (1 - p_target) * float(false_alarm)
        for miss, false_alarm in points_by_brute_force(scores, is_target)
    ]
    expected = min(costs) / min(c_miss * p_target, 1 - p_target)
    value = min_dcf(np.array(scores, dtype=float), np.array(is_target), p_target=p_target, c_miss=c_miss)
    assert value == pytest.approx(expected, abs=1e-12)
    assert value <= 1 + 1e-12


@given(TRIALS)
def test_negated_scores_and_swapped_roles_give_the_same_eer(trials):
    scores, is_target = (np.array(x) for x in zip(*trials, strict=True))
    assert eer(-scores, ~is_target) == pytest.approx(eer(scores, is_target), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    is_target = rng.random(500) < 0.2
    scores = rng.normal(size=500) + 1.5 * is_target
    false_alarm, hit, _ = roc_curve(is_target, scores, drop_intermediate=False)
    expected = brentq(lambda x: 1 - x - np.interp(x, false_alarm, hit), 0, 1)
    # np.interp jumps where the curve is vertical, so the root is good to the solver's tolerance only.
    assert eer(scores, is_target) == pytest.approx(expected, abs=1e-6)
    costs = 0.05 * (1 - hit) + 0.95 * false_alarm
    assert min_dcf(scores, is_target) == pytest.approx(costs.min() / 0.05)
    miss, false_alarm = operating_points(scores, is_target)
    area = (np.diff(false_alarm) * (2 - miss[1:] - miss[:-1]) / 2).sum()
    assert area == pytest.approx(roc_auc_score(is_target, scores))


def test_eer_by_hand():
    # Targets 4, 2; others 3, 1. At threshold 3, one target of two is missed and one other of two accepted.
    assert eer(np.array([4.0, 2.0, 3.0, 1.0]), np.array([True, True, False, False])) == 0.5


def test_eer_is_interpolated_between_operating_points():
    # Accepting 2 and above: P_miss 1/2, P_fa 0. Accepting the tie at 1 too: P_miss 0, P_fa 1/3.
    # On the line between, (1 - x) / 2 = x / 3 at x = 3/5, where both rates are 1/5.
    scores = np.array([2.0, 1.0, 1.0, 0.0, 0.0])
    assert eer(scores, np.array([True, True, False, False, False])) == pytest.approx(1 / 5)


def test_perfect_and_useless_scores():
    is_target = np.array([True, True, False, False])
    assert eer(np.array([4.0, 3.0, 2.0, 1.0]), is_target) == 0.0
    assert min_dcf(np.array([4.0, 3.0, 2.0, 1.0]), is_target) == 0.0
    assert eer(np.zeros(4), is_target) == 0.5
    assert min_dcf(np.zeros(4), is_target) == 1.0
    assert eer(np.array([1.0, 2.0, 3.0, 4.0]), is_target) == 1.0


@pytest.mark.parametrize("is_target", [[True, True], [False, False], []])
def test_both_kinds_of_trial_are_needed(is_target):
    with pytest.raises(UserError, match="pairs of one speaker"):
        eer(np.zeros(len(is_target)), np.array(is_target, dtype=bool))


def test_accuracy():
    assert accuracy(["ann", "zoe", "ann"], ["ann", "ann", "ann"]) == pytest.approx(2 / 3)


def test_all_pairs_where_they_fit():
    first, second = trial_pairs(5, max_trials=10, rng=np.random.default_rng(0))
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert len(first) == 10 == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)


def test_drawn_pairs_are_bounded_seeded_and_even():
    first, second = trial_pairs(6, max_trials=14, rng=np.random.default_rng(7))
    again = trial_pairs(6, max_trials=14, rng=np.random.default_rng(7))
    assert len(first) == 14
    assert (first == again[0]).all() and (second == again[1]).all()
    first, second = trial_pairs(201, max_trials=20_000, rng=np.random.default_rng(0))
    assert (first != second).all()
    assert min(first.min(), second.min()) == 0 and max(first.max(), second.max()) == 200
    # Each clip is the second of about 20000/201 = 99.5 trials; six standard deviations are 60.
    counts = np.bincount(second, minlength=201)
    assert abs(counts - 20_000 / 201).max() < 60


def test_cosines_by_hand():
    embeddings = np.array([[1.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    scores = cosine_scores(embeddings, np.array([0, 0, 1, 0]), np.array([1, 2, 2, 3]))
    assert scores == pytest.approx([0.6, -1.0, -0.6, 0.0])


def test_cosines_do_not_depend_on_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings, (first, second) = rng.normal(size=(20, 4)), trial_pairs(20, max_trials=500, rng=rng)
    whole = cosine_scores(embeddings, first, second)
    monkeypatch.setattr("speechssl.evaluation.speaker._CHUNK", 7)
    assert cosine_scores(embeddings, first, second) == pytest.approx(whole, abs=1e-12)
