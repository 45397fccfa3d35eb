"""What the doctor may change in a run that goes on: `doctor.act=adjust`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechssl.training.trainer import Trainer

RATE_FACTOR, LEAST_DIVERSITY = 0.3, 0.1
# How often a run may be changed for one kind of finding; what that does not mend is for a person.
MOST_TIMES = 3


def _lower_rate(trainer: Trainer) -> str:
    trainer.base_lrs = [rate * RATE_FACTOR for rate in trainer.base_lrs]
    return f"the learning rate is {RATE_FACTOR:g} times what it was"


def _more_diversity(trainer: Trainer) -> str | None:
    objective = trainer.objective
    if not hasattr(objective, "diversity_weight"):
        return None
    objective.diversity_weight = max(2 * objective.diversity_weight, LEAST_DIVERSITY)
    return f"objective.diversity_weight is now {objective.diversity_weight:g}"


BY_FINDING = {
    "rate_too_high": _lower_rate,
    "non_finite": _lower_rate,
    "collapse": _lower_rate,
    "codebook_collapse": _more_diversity,
}


def adjust(trainer: Trainer, finding: str) -> str | None:
    """Change what mends a finding, if a running run can; what was done, in words."""
    return BY_FINDING[finding](trainer) if finding in BY_FINDING else None
