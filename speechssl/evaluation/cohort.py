"""Scores that mean the same for every voice: a cosine, measured against clips of others (AS-norm)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from speechssl.errors import UserError
from speechssl.evaluation.speaker import directions
from speechssl.training.checkpoint import read_tensors

COHORT = "cohort.safetensors"


@dataclass(frozen=True)
class Cohort:
    """Clips of speakers who are neither tested nor enrolled.

    Attributes:
        directions: float64 [others, E], of length 1.
        top: how many of them each clip is measured against, the nearest; all where there are fewer.
    """

    directions: np.ndarray
    top: int

    @classmethod
    def of(cls, embeddings: np.ndarray, *, top: int) -> Cohort:
        """From embeddings [others, E]; a UserError where they are fewer than two."""
        if len(embeddings) < 2:
            raise UserError(f"the cohort has {len(embeddings)} clips, and AS-norm needs two or more; give a larger one")
        return cls(directions(embeddings), top)

    def statistics(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [clips, E] -> [2, clips]: mean and deviation of each one's cosines to its nearest."""
        similar = directions(embeddings) @ self.directions.T
        nearest = -np.partition(-similar, min(self.top, len(self.directions)) - 1, axis=1)[:, : self.top]
        return np.stack([nearest.mean(1), np.maximum(nearest.std(1), 1e-6)])

    def save(self, folder: Path) -> None:
        """Write cohort.safetensors: `directions` in float32, and `top`."""
        tensors = {"directions": torch.from_numpy(self.directions.astype(np.float32)), "top": torch.tensor(self.top)}
        save_file(tensors, folder / COHORT)

    @classmethod
    def load(cls, folder: Path) -> Cohort:
        """What `save` wrote; a UserError where it is missing or damaged."""
        advice = "it lies beside what `speechssl evaluate cohort=` or `speechssl enrol cohort=` wrote: copy it too"
        found = read_tensors(folder / COHORT, instead=advice)
        if set(found) != {"directions", "top"} or found["directions"].ndim != 2 or found["top"].numel() != 1:
            raise UserError(f"{folder / COHORT} holds no cohort; {advice}")
        return cls(found["directions"].double().numpy(), int(found["top"]))


def likeness(one: np.ndarray, others: np.ndarray, cohort: Cohort | None) -> np.ndarray:
    """Scores of an embedding [E] with others [n, E]: float64 [n], cosines, or with a cohort those of AS-norm."""
    cosines = directions(others) @ directions(one)
    return as_norm(cosines, cohort.statistics(one[None]), cohort.statistics(others)) if cohort else cosines


def as_norm(cosines: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Adaptive symmetric score normalisation (Matejka et al. 2017): the mean over both sides of (s - mean) / deviation.

    Args:
        cosines: float [trials].
        one, other: [2, trials], `Cohort.statistics` of either side, or what can be broadcast to it.

    Returns:
        float [trials], in deviations.
    """
    return 0.5 * ((cosines - one[0]) / one[1] + (cosines - other[0]) / other[1])
