"""Which clips make which batch: buckets of similar duration, filled by audio seconds, a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from speechssl.rng import derive_seed

# Clips are sorted by duration within pools of this many batches: enough for little padding, few enough that batches
# differ from epoch to epoch.
POOL_BATCHES = 50


class DurationBuckets:
    """Endless batches of (epoch, index), resumable at any batch.

    Args:
        durations_s: of every clip, as the model will see it (after cropping), seconds.
        batch_seconds: audio seconds in a batch at most; a longer clip is a batch by itself.
        seed: of the run.
        shuffle: False keeps one order, sorted by duration, for every epoch (validation).
    """

    def __init__(self, durations_s: np.ndarray, *, batch_seconds: float, seed: int, shuffle: bool = True):
        self.durations_s = np.asarray(durations_s, dtype=np.float64)
        self.batch_seconds, self.seed, self.shuffle = batch_seconds, seed, shuffle

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch, each an array of indexes; every clip once."""
        if not self.shuffle:
            return self._cut(np.argsort(self.durations_s, kind="stable"))
        random = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "order", epoch)))
        order = random.permutation(len(self.durations_s))
        mean_s = max(self.durations_s.mean(), 1e-3)
        pool = max(int(POOL_BATCHES * self.batch_seconds / mean_s), 1)
        batches = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            batches += self._cut(part[np.argsort(self.durations_s[part], kind="stable")])
        return [batches[i] for i in random.permutation(len(batches))]

    def _cut(self, indexes: np.ndarray) -> list[np.ndarray]:
        batches, first, total = [], 0, 0.0
        for position, duration in enumerate(self.durations_s[indexes]):
            if position > first and total + duration > self.batch_seconds:
                batches.append(indexes[first:position])
                first, total = position, 0.0
            total += duration
        return [*batches, indexes[first:]]

    def batches(self, start: int = 0) -> Iterator[list[tuple[int, int]]]:
        """Batches from number `start` of the whole run on, without end."""
        epoch, skip = 0, start
        while True:
            batches = self.epoch(epoch)
            for indexes in batches[skip:]:
                yield [(epoch, int(i)) for i in indexes]
            skip = max(skip - len(batches), 0)
            epoch += 1
