"""Which clips make which batch: buckets of similar duration, filled by audio seconds, a function of (seed, epoch).

The batches of all epochs are one endless sequence, the same for any number of processes; of W ranks, rank r takes
batches r, r + W, r + 2 W and so on. So no clip is lost or repeated at the end of an epoch, and a position in that
sequence says all that a resumed run has to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from speechssl.rng import derive_seed

# Clips are sorted by duration within pools of this many batches: enough for little padding, few enough that batches
# differ from epoch to epoch.
POOL_BATCHES = 50

Key = tuple[int, int]  # (epoch, index) of a clip; of several corpora, the epoch is its own corpus's


class DurationBuckets:
    """Endless batches of (epoch, index), resumable at any batch.

    Args:
        durations_s: of every clip, as the model will see it (after cropping), seconds.
        batch_seconds: audio seconds in a batch at most; a longer clip is a batch by itself.
        seed: of the run.
        shuffle: False keeps one order, sorted by duration, for every epoch (validation).
        sizes: clips of each corpus, where `durations_s` holds several one after the other.
        temperature: of mixing them; see `passes_per_epoch`.
        shards: int [number of clips], the file that a clip is in, where many share one. Shards come in random order,
            each from its begin to its end, and are shuffled by `buffer`.
        buffer: with shards, so many clips are shuffled among each other; a batch's clips come from among them.
    """

    def __init__(
        self,
        durations_s: np.ndarray,
        *,
        batch_seconds: float,
        seed: int,
        shuffle: bool = True,
        sizes: Sequence[int] | None = None,
        temperature: float = 1.0,
        shards: np.ndarray | None = None,
        buffer: int = 10_000,
    ):
        self.durations_s = np.asarray(durations_s, dtype=np.float64)
        self.batch_seconds, self.seed, self.shuffle = batch_seconds, seed, shuffle
        self.shards, self.buffer = shards, buffer
        self.bounds = np.cumsum([0, *(sizes or [len(self.durations_s)])])
        seconds = np.add.reduceat(self.durations_s, self.bounds[:-1])
        self.passes = passes_per_epoch(seconds, temperature)

    def epoch(self, epoch: int) -> Batches:
        """The batches of one epoch; with one corpus, or at temperature 1, every clip is in one of them."""
        if not self.shuffle:
            order = np.argsort(self.durations_s, kind="stable")
            return Batches(_keys(epoch, order), self._cut(order))
        random = _generator(self.seed, "order", epoch)
        if len(self.passes) == 1 and self.shards is None:
            keys = _keys(epoch, random.permutation(len(self.durations_s)))
        else:
            keys = self._draw(epoch)
        spans = []
        window = len(keys) if self.shards is None else self.buffer
        for start in range(0, len(keys), window):
            part = keys[start : start + window]
            if self.shards is not None:
                random.shuffle(part)
            spans.append(start + self._arrange(part, random))
        return Batches(keys, np.concatenate(spans))

    def batches(self, start: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[list[Key]]:
        """A rank's batches without end, from batch `start` + `rank` of the whole run on, each `world_size`-th."""
        epoch, place = 0, start + rank
        while True:
            batches = self.epoch(epoch)
            while place < len(batches):
                yield list(map(tuple, batches[place].tolist()))
                place += world_size
            place -= len(batches)
            epoch += 1

    def _draw(self, epoch: int) -> np.ndarray:
        """Keys [clips, 2] of an epoch, all corpora spread evenly over it."""
        drawn = [self._draw_corpus(corpus, epoch) for corpus in range(len(self.passes))]
        places = np.concatenate([(np.arange(len(keys)) + 0.5) / max(len(keys), 1) for keys in drawn])
        return np.concatenate(drawn)[np.argsort(places, kind="stable")]

    def _draw_corpus(self, corpus: int, epoch: int) -> np.ndarray:
        """Keys of the stretch of a corpus's endless passes over its clips that belongs to an epoch."""
        low, high = self.bounds[corpus], self.bounds[corpus + 1]
        size = int(high - low)
        begin, end = (int(number * self.passes[corpus] * size + 1e-3) for number in (epoch, epoch + 1))
        drawn = [np.empty((0, 2), np.int64)]
        for number in range(begin // size, -(-end // size)):
            random = _generator(self.seed, "corpus", corpus, number)
            order = random.permutation(size) if self.shards is None else _by_shard(self.shards[low:high], random)
            drawn.append(_keys(number, low + order[max(begin - number * size, 0) : end - number * size]))
        return np.concatenate(drawn)

    def _arrange(self, keys: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Sorts shuffled keys by duration within pools, in place; spans [batches, 2] of their batches, shuffled."""
        mean_s = max(self.durations_s.mean(), 1e-3)
        pool = max(int(POOL_BATCHES * self.batch_seconds / mean_s), 1)
        spans = []
        for start in range(0, len(keys), pool):
            part = keys[start : start + pool]
            part[:] = part[np.argsort(self.durations_s[part[:, 1]], kind="stable")]
            spans.append(start + self._cut(part[:, 1]))
        return random.permutation(np.concatenate(spans))

    def _cut(self, indexes: np.ndarray) -> np.ndarray:
        """Spans [batches, 2] of clips that follow each other."""
        firsts, total = [0], 0.0
        for position, duration in enumerate(self.durations_s[indexes].tolist()):
            if position > firsts[-1] and total + duration > self.batch_seconds:
                firsts.append(position)
                total = 0.0
            total += duration
        return np.stack([firsts, [*firsts[1:], len(indexes)]], axis=1)


class Batches(Sequence[np.ndarray]):
    """The batches of an epoch, kept as two arrays: keys [clips, 2] (epoch, index) and spans [batches, 2] of them."""

    def __init__(self, keys: np.ndarray, spans: np.ndarray):
        self.keys, self.spans = keys, spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> np.ndarray:
        begin, end = self.spans[number]
        return self.keys[begin:end]


def passes_per_epoch(seconds: np.ndarray, temperature: float) -> np.ndarray:
    """How often an epoch goes over each corpus, for a share of the epoch in proportion to seconds^(1 / temperature).

    Temperature 1 goes over each once; the higher it is, the more a small corpus is repeated, up to equal shares
    (XLS-R, Babu et al. 2021, section 2.2, whose alpha is 1 / temperature). An epoch lasts as long as all corpora.
    """
    weights = (seconds / seconds.sum()) ** (1 / temperature)
    return weights / weights.sum() * seconds.sum() / seconds


def _by_shard(shards: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Clips by their shards, which are in random order; within a shard as they lie there."""
    _, inverse = np.unique(shards, return_inverse=True)
    place = random.permutation(inverse.max() + 1)
    return np.argsort(place[inverse], kind="stable")


def _keys(epoch: int, indexes: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(indexes), epoch), indexes], axis=1)


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))
