"""How sure an error rate is, and whether one system is better than another on the same clips.

Clips are the units: errors within one are not independent (Bisani and Ney 2004, "Bootstrap estimates for confidence
intervals in ASR performance evaluation").
"""

from __future__ import annotations

from typing import Any

import numpy as np

NUM_DRAWS = 2000
_CHUNK = 5_000_000  # numbers in memory at a time


def interval(edits: np.ndarray, lengths: np.ndarray, *, level: float = 0.95, seed: int = 0) -> list[float] | None:
    """[low, high] of sum(edits) / sum(lengths), by the percentile bootstrap over clips; None for fewer than two.

    Draws without a reference word have no rate and do not count.

    Args:
        edits, lengths: [clips].
        level: probability that the interval covers.
        seed: of the draws.
    """
    if len(edits) < 2 or not lengths.sum():
        return None
    rates = np.concatenate([e[n > 0] / n[n > 0] for e, n in _draws(seed, edits, lengths)])
    return [float(x) for x in np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])]


def compare(ours: np.ndarray, theirs: np.ndarray, lengths: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Two systems on the same clips.

    Args:
        ours, theirs: [clips] edits of each.
        lengths: [clips] of the references.
        seed: of the draws.

    Returns:
        `difference` of the rates (ours minus theirs, below 0 is better; None without a reference word), its 95 %
        `interval` by the paired bootstrap (None as `interval` is), and `p`, two-sided, by the permutation test that
        swaps the systems clip by clip.
    """
    total = int(lengths.sum())
    difference = np.asarray(ours, dtype=np.int64) - theirs
    observed = difference.sum()
    rng = np.random.default_rng(seed)
    swapped = []
    for count in _parts(len(difference)):
        signs = rng.integers(0, 2, (count, len(difference)), dtype=np.int8) * 2 - 1
        swapped.append(signs @ difference)
    extreme = int((np.abs(np.concatenate(swapped)) >= abs(observed)).sum())
    return {
        "difference": float(observed / total) if total else None,
        "interval": interval(difference, lengths, seed=seed),
        "p": (extreme + 1) / (NUM_DRAWS + 1),
        "num_utterances": len(difference),
    }


def _draws(seed: int, *columns: np.ndarray):
    """Sums of each column over clips drawn with replacement, some draws at a time."""
    rng, size = np.random.default_rng(seed), len(columns[0])
    for count in _parts(size):
        clips = rng.integers(0, size, (count, size))
        yield tuple(np.asarray(column)[clips].sum(1) for column in columns)


def _parts(size: int):
    """NUM_DRAWS in parts that fit into memory."""
    left, most = NUM_DRAWS, max(_CHUNK // max(size, 1), 1)
    while left:
        yield min(left, most)
        left -= min(left, most)
