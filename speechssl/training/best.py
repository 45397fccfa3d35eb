"""Which checkpoints of a run are its best by validation, when to stop because none is better, and their average."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor


class Ranking:
    """The best steps of a run.

    Args:
        keep: how many of them are kept.
        patience: validations in a row without a better one after which the run is to stop; 0 is never.

    Attributes:
        best: (value, step) of the best steps, the best first; lower is better.
        since_best: validations since the best.
    """

    def __init__(self, *, keep: int, patience: int):
        self.keep, self.patience = keep, patience
        self.best: list[tuple[float, int]] = []
        self.since_best = 0

    def add(self, value: float, step: int, *, waits: bool = False) -> bool:
        """Take note of a validation; true if it is among the best that are kept. Of equal values the first stays.

        A value that is not finite is never among them. One that `waits`, as on CTC's plateau of blanks, takes no
        patience.
        """
        is_better = value < min((value for value, _ in self.best), default=math.inf)
        self.since_best = 0 if is_better else self.since_best + (not waits)
        if not math.isfinite(value):
            return False
        self.best = sorted([*self.best, (value, step)])[: self.keep]
        return (value, step) in self.best

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return bool(self.patience) and self.since_best >= self.patience

    @property
    def steps(self) -> list[int]:
        """The steps that are kept, the best first."""
        return [step for _, step in self.best]

    def state(self) -> dict[str, Any]:
        """Plain data that `load` takes."""
        return {"best": self.best, "since_best": self.since_best}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.best = [(value, step) for value, step in state["best"]]
        self.since_best = state["since_best"]


def average_weights(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several models' weights, in fp32, one at a time beside their sum."""
    total: dict[str, Tensor] = {}
    count = 0
    for weights in parts:
        count += 1
        for name, tensor in weights.items():
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            total[name] = total[name] + tensor if count > 1 and tensor.is_floating_point() else tensor
    return {name: tensor / count if tensor.is_floating_point() else tensor for name, tensor in total.items()}
