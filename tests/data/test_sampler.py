"""Batches of clips by duration: complete, bounded, seeded, resumable."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from speechssl.data.sampler import DurationBuckets

DURATIONS = np.random.default_rng(0).uniform(0.2, 15.0, size=997)


def buckets(**changes):
    return DurationBuckets(DURATIONS, **{"batch_seconds": 40.0, "seed": 1} | changes)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_clip_comes_once_an_epoch(shuffle):
    for epoch in range(3):
        indexes = np.concatenate(buckets(shuffle=shuffle).epoch(epoch))
        assert sorted(indexes) == list(range(997))


def test_the_bound_of_seconds_holds():
    for batch_seconds in (1.0, 15.0, 40.0, 1e9):
        for batch in buckets(batch_seconds=batch_seconds).epoch(0):
            assert len(batch) == 1 or DURATIONS[batch].sum() <= batch_seconds
    assert len(buckets(batch_seconds=1e9).epoch(0)) == 1


def test_batches_are_well_filled_with_like_durations():
    batches = buckets().epoch(0)
    assert sum(DURATIONS[batch].sum() for batch in batches) / len(batches) > 0.75 * 40
    padding = sum(len(batch) * DURATIONS[batch].max() - DURATIONS[batch].sum() for batch in batches)
    assert padding / DURATIONS.sum() < 0.1


def test_order_is_a_function_of_seed_and_epoch():
    assert as_lists(buckets().epoch(3)) == as_lists(buckets().epoch(3))
    assert as_lists(buckets().epoch(3)) != as_lists(buckets().epoch(4))
    assert as_lists(buckets().epoch(3)) != as_lists(buckets(seed=2).epoch(3))
    assert as_lists(buckets(shuffle=False).epoch(3)) == as_lists(buckets(shuffle=False, seed=2).epoch(4))


def test_membership_differs_from_epoch_to_epoch():
    first, second = ({tuple(sorted(batch)) for batch in buckets().epoch(epoch)} for epoch in (0, 1))
    assert len(first & second) < 0.1 * len(first)


def test_it_can_begin_at_any_batch():
    an_epoch = len(buckets().epoch(0))
    whole = list(islice(buckets().batches(), 3 * an_epoch))
    assert whole[an_epoch][0][0] == 1  # (epoch, index)
    for start in (0, 1, an_epoch - 1, an_epoch, an_epoch + 1, 2 * an_epoch + 5):
        assert list(islice(buckets().batches(start), 20)) == whole[start : start + 20]


def test_one_clip_longer_than_the_bound_is_a_batch():
    assert as_lists(DurationBuckets(np.array([9.0]), batch_seconds=2.0, seed=0).epoch(0)) == [[0]]
