"""Figures of speaker identification and verification: accuracy, EER, minDCF, and the trials they rest on.

A trial is a pair of clips with a score, high where the voices are alike; a target trial is a pair by one
speaker. A threshold accepts the trials that score at least as high. It misses some targets (P_miss) and
accepts some non-targets (P_fa); trials with equal scores are accepted or rejected together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechssl.errors import UserError

_CHUNK = 8192  # trials scored at a time, which bounds the memory


def accuracy(labels: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of clips whose prediction is their label."""
    assert len(labels) == len(predictions) > 0, (len(labels), len(predictions))
    return sum(a == b for a, b in zip(labels, predictions, strict=True)) / len(labels)


def eer(scores: np.ndarray, is_target: np.ndarray, *, weights: np.ndarray | None = None) -> float:
    """Equal error rate: where P_miss equals P_fa, on the line between the two operating points around it.

    Args:
        scores: float [trials], finite.
        is_target: bool [trials].
        weights: how often each trial counts, [trials]; once each where not given.

    Raises:
        UserError: there is no target trial, or no other.
    """
    miss, false_alarm = operating_points(scores, is_target, weights=weights)
    gap = miss - false_alarm  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    return float(miss[before] + share * (miss[after] - miss[before]))


def min_dcf(
    scores: np.ndarray,
    is_target: np.ndarray,
    *,
    p_target: float = 0.05,
    c_miss: float = 1.0,
    c_false_alarm: float = 1.0,
    weights: np.ndarray | None = None,
) -> float:
    """Lowest detection cost over all thresholds, as a share of the cost of always answering alike.

    The normalised detection cost of NIST's speaker recognition evaluations, with a = c_miss · p_target and
    b = c_false_alarm · (1 - p_target): (a · P_miss + b · P_fa) / min(a, b). Never above 1.

    Args and errors: as `eer`; `p_target` is the share of target trials in the intended use.
    """
    miss, false_alarm = operating_points(scores, is_target, weights=weights)
    reject_all, accept_all = c_miss * p_target, c_false_alarm * (1 - p_target)
    return float((reject_all * miss + accept_all * false_alarm).min() / min(reject_all, accept_all))


def operating_points(
    scores: np.ndarray, is_target: np.ndarray, *, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """P_miss and P_fa at every threshold that makes a difference, from accepting nothing to accepting all.

    Returns:
        Two float64 [distinct scores + 1]: P_miss falling from 1 to 0, P_fa rising from 0 to 1.
    """
    scores, is_target = np.asarray(scores), np.asarray(is_target, dtype=bool)
    assert scores.shape == is_target.shape and scores.ndim == 1, (scores.shape, is_target.shape)
    assert np.isfinite(scores).all(), "scores must be finite"
    counts = np.ones(len(scores), dtype=np.int64) if weights is None else np.asarray(weights)
    num_targets, num_others = counts[is_target].sum(), counts[~is_target].sum()
    if not num_targets or not num_others:
        raise UserError(
            f"EER and minDCF need pairs of one speaker and pairs of two, and there are {num_targets} and "
            f"{num_others}: give at least two clips of one speaker and one of another"
        )
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    accepted_targets = np.cumsum((counts * is_target)[order])[last_of_ties]
    accepted_others = np.cumsum((counts * ~is_target)[order])[last_of_ties]
    miss = 1 - np.append(0, accepted_targets) / num_targets
    return miss, np.append(0, accepted_others) / num_others


def trial_pairs(num_clips: int, *, max_trials: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which clips to compare: all pairs, or `max_trials` drawn with replacement where there are more.

    Returns:
        Two int64 [trials], the first and the second clip of each pair; never a clip with itself.
    """
    if num_clips * (num_clips - 1) // 2 <= max_trials:
        first, second = np.triu_indices(num_clips, k=1)
        return first, second
    first = rng.integers(num_clips, size=max_trials)
    second = rng.integers(num_clips - 1, size=max_trials)
    return first, second + (second >= first)


def cosine_scores(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of the embeddings [clips, E] of each pair of `trial_pairs`: float64 [trials]."""
    unit = directions(embeddings)
    scores = np.empty(len(first))
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores[part] = np.einsum("te,te->t", unit[first[part]], unit[second[part]])
    return scores


def directions(embeddings: np.ndarray) -> np.ndarray:
    """[..., E] -> float64 [..., E] of length 1; an embedding of zeros stays so."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
