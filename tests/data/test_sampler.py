"""Batches of clips by duration: complete, bounded, seeded, resumable, mixed, by shards."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from speechssl.data.sampler import DurationBuckets, passes_per_epoch

DURATIONS = np.random.default_rng(0).uniform(0.2, 15.0, size=997)
SHARDS = np.repeat(np.arange(40), 25)[:997]  # 25 clips each


def buckets(**changes):
    return DurationBuckets(DURATIONS, **{"batch_seconds": 40.0, "seed": 1} | changes)


def indexes(batches):
    return [batch[:, 1].tolist() for batch in batches]


def flat(batches):
    return [index for batch in indexes(batches) for index in batch]


KINDS = {
    "files": {},
    "in one order": {"shuffle": False},
    "two corpora": {"sizes": [700, 297]},
    "shards": {"shards": SHARDS, "buffer": 100},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_every_clip_comes_once_an_epoch(kind):
    for epoch in range(3):
        assert sorted(flat(buckets(**kind).epoch(epoch))) == list(range(997))
        assert {int(e) for batch in buckets(**kind).epoch(epoch) for e in batch[:, 0]} == {epoch}


@every_kind
def test_the_bound_of_seconds_holds(kind):
    for batch_seconds in (1.0, 15.0, 40.0, 1e9):
        for batch in indexes(buckets(batch_seconds=batch_seconds, **kind).epoch(0)):
            assert len(batch) == 1 or DURATIONS[batch].sum() <= batch_seconds
    assert len(buckets(batch_seconds=1e9).epoch(0)) == 1


def test_batches_are_well_filled_with_like_durations():
    batches = indexes(buckets().epoch(0))
    assert sum(DURATIONS[batch].sum() for batch in batches) / len(batches) > 0.75 * 40
    padding = sum(len(batch) * DURATIONS[batch].max() - DURATIONS[batch].sum() for batch in batches)
    assert padding / DURATIONS.sum() < 0.1


def test_order_is_a_function_of_seed_and_epoch():
    assert indexes(buckets().epoch(3)) == indexes(buckets().epoch(3))
    assert indexes(buckets().epoch(3)) != indexes(buckets().epoch(4))
    assert indexes(buckets().epoch(3)) != indexes(buckets(seed=2).epoch(3))
    assert indexes(buckets(shuffle=False).epoch(3)) == indexes(buckets(shuffle=False, seed=2).epoch(4))


@pytest.mark.parametrize("kind", ["files", "two corpora", "shards"])
def test_membership_differs_from_epoch_to_epoch(kind):
    first, second = ({tuple(sorted(b)) for b in indexes(buckets(**KINDS[kind]).epoch(epoch))} for epoch in (0, 1))
    assert len(first & second) < 0.1 * len(first)


@every_kind
def test_it_can_begin_at_any_batch(kind):
    an_epoch = len(buckets(**kind).epoch(0))
    whole = list(islice(buckets(**kind).batches(), 3 * an_epoch))
    assert whole[an_epoch][0][0] == 1  # (epoch, index)
    for start in (0, 1, an_epoch - 1, an_epoch, an_epoch + 1, 2 * an_epoch + 5):
        assert list(islice(buckets(**kind).batches(start), 10)) == whole[start : start + 10]


@every_kind
@pytest.mark.parametrize("world_size", range(1, 9))
def test_ranks_share_one_sequence(kind, world_size):
    alone = list(islice(buckets(**kind).batches(3), 24 * world_size))
    for rank in range(world_size):
        own = islice(buckets(**kind).batches(3, rank=rank, world_size=world_size), 24)
        assert list(own) == alone[rank::world_size]


def test_more_ranks_than_batches():
    few = DurationBuckets(np.ones(3), batch_seconds=1.0, seed=0)
    taken = [list(islice(few.batches(rank=rank, world_size=8), 3)) for rank in range(8)]
    assert Counter(key for rank in taken for [key] in rank) == Counter((e, i) for e in range(8) for i in range(3))


def test_one_clip_longer_than_the_bound_is_a_batch():
    assert indexes(DurationBuckets(np.array([9.0]), batch_seconds=2.0, seed=0).epoch(0)) == [[0]]


def test_temperature_gives_shares_of_the_power_of_the_seconds():
    seconds = np.array([900.0, 90.0, 10.0])
    np.testing.assert_allclose(passes_per_epoch(seconds, 1.0), 1.0)
    # Square roots 30, 9.4868 and 3.1623 sum to 42.649: shares 0.7034, 0.2224 and 0.0741 of 1000 s.
    np.testing.assert_allclose(passes_per_epoch(seconds, 2.0) * seconds, [703.4, 222.4, 74.1], atol=0.06)
    np.testing.assert_allclose(passes_per_epoch(seconds, 1e9) * seconds, [1000 / 3] * 3, rtol=1e-6)


@pytest.mark.parametrize("shards", [None, np.arange(400) // 10])
def test_a_repeated_corpus_is_gone_through_evenly(shards):
    mixed = DurationBuckets(
        np.ones(400), batch_seconds=20.0, seed=0, sizes=[300, 100], temperature=1e9, shards=shards, buffer=100
    )
    keys = [key for epoch in range(6) for batch in mixed.epoch(epoch) for key in map(tuple, batch.tolist())]
    assert len(keys) == 6 * 400
    small = Counter(index for _, index in keys if index >= 300)
    large = Counter(index for _, index in keys if index < 300)
    assert set(small.values()) == {12} and set(large.values()) == {4}  # 200 of each an epoch
    assert len(set(keys)) == len(keys)  # of a pass a clip comes once, so a repeated clip has another crop and mask
    first = [index for batch in indexes(mixed.epoch(0)[i] for i in range(5)) for index in batch]
    assert 0.2 < sum(index >= 300 for index in first) / len(first) < 0.8  # neither corpus waits for the other


def test_shards_are_read_one_after_the_other():
    by_shard = buckets(shards=SHARDS, buffer=100)
    batches = indexes(by_shard.epoch(0))
    order = [SHARDS[index] for batch in batches for index in batch]
    for start in range(0, 900, 100):
        # A window of 100 clips touches 4 shards of 25, and one more at either end.
        assert len(set(order[start : start + 100])) <= 6
    assert order != sorted(order)
    assert indexes(by_shard.epoch(0)) == batches
    others = [SHARDS[index] for batch in indexes(by_shard.epoch(1)) for index in batch]
    assert len(set(order[:100]) & set(others[:100])) <= 3  # of 40 shards, 4 or so each: the order is another
