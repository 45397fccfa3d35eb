"""Which checkpoints are the best, when a run stops, and what their average is."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.training.best import Ranking, average_weights


def test_the_best_are_kept_in_order():
    ranking = Ranking(keep=2, patience=0)
    kept = [ranking.add(value, step) for step, value in enumerate((5.0, 4.0, 6.0, 4.0, 3.0), start=1)]
    assert kept == [True, True, False, True, True]
    assert ranking.steps == [5, 2]  # of the two with 4.0 the first
    again = Ranking(keep=2, patience=0)
    again.load(ranking.state())
    assert (again.steps, again.since_best) == ([5, 2], 0)


def test_a_value_that_is_not_finite_is_never_the_best():
    ranking = Ranking(keep=1, patience=2)
    assert not ranking.add(math.inf, 1)
    assert ranking.steps == []
    assert not ranking.add(math.nan, 2)
    assert ranking.is_over


def test_patience_begins_where_there_is_something_to_be_better_than():
    ranking = Ranking(keep=1, patience=2)
    for step in range(1, 6):  # nothing but blanks: a CER of 1 each time
        ranking.add(1.0, step, waits=True)
        assert not ranking.is_over
    for step, cer in ((6, 0.9), (7, 0.95), (8, 0.92)):
        ranking.add(cer, step)
    assert ranking.is_over and ranking.steps == [6]


def test_patience_counts_validations_that_are_no_better():
    ranking = Ranking(keep=1, patience=2)
    over = []
    for step, value in enumerate((3.0, 3.0, 2.0, 2.5, 2.0), start=1):
        ranking.add(value, step)
        over.append(ranking.is_over)
    assert over == [False, False, False, False, True]


def test_the_average_is_the_mean_of_each_tensor():
    found = average_weights(
        {"weight": torch.full((2,), value), "count": torch.tensor(7), "half": torch.tensor(value).bfloat16()}
        for value in (1.0, 2.0, 6.0)
    )
    assert found["weight"].tolist() == [3.0, 3.0]
    assert (found["count"].item(), found["half"].item()) == (7, pytest.approx(3.0))
