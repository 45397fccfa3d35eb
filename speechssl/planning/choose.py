"""From a budget to a run: which model, objective, front end and batch, how many steps, and what limits.

Quality follows the hours of audio that a run sees (batch x steps; Vaessen and van Leeuwen, arXiv 2402.13723), more so
than the size of a batch, and a larger model needs more of them. The thresholds below are rules of thumb: from the
papers for base and large, from this project's recipes for tiny and small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speechssl.config import compose, plain
from speechssl.planning import cost
from speechssl.planning.cost import Work
from speechssl.planning.machine import Machine

# Hours of audio that a model should see at least before it is worth its size.
LEAST_HOURS_SEEN = {"tiny": 2, "small": 300, "base": 15_000, "large": 100_000}
# Audio seconds of a whole batch, over devices and accumulation: enough for gradients that are not mostly noise.
BATCH_SECONDS = {"tiny": 40, "small": 240, "base": 1400, "large": 2800}
# What a model is pretrained by, objective and front end, the best first: tiny by the error rates of its recipes
# (recipes/mboshi/RESULTS.md, recipes/fsdd/RESULTS.md), the others as published, the cheaper objective behind.
PREFERRED = {"tiny": (("hubert", "stack40"), ("wav2vec2", "conv"), ("best_rq", "stack40"))}
PUBLISHED = (("wav2vec2", "conv"), ("best_rq", "conv"))
# More passes than this over the same audio bring little.
MOST_PASSES = 400
# Shares: of the memory that a plan fills, and of the time that steps may take (the rest is validation, starts, data).
FILL, BUSY = 0.85, 0.9
CLIP_S = 10.0
HUGE = 10**9


@dataclass
class Plan:
    """A run that fits the budget.

    Attributes:
        overrides: what to give to `speechssl pretrain`.
        devices, precision: GPUs, of which 0 is the CPU, and that of the machine whose costs these are.
        step_s, memory_gib, disk_gib, days: predicted, a step being all micro-batches on all devices.
        fits: whether the batch fits into memory with some room left.
        most_seconds: audio of the largest batch that does, in whole clips of CLIP_S; 0 where not one fits.
        hours_seen, passes: audio that it sees in all, and how often each clip.
        limit: what keeps it from being larger.
    """

    model: str
    objective: str
    front: str
    batch_seconds: float
    accumulate: int
    steps: int
    devices: int
    precision: str
    step_s: float
    memory_gib: float
    fits: bool
    most_seconds: float
    disk_gib: float
    days: float
    hours_seen: float
    passes: float
    limit: str

    @property
    def overrides(self) -> list[str]:
        """What to give to `speechssl pretrain`."""
        return [
            f"model={self.model}",
            f"feature_encoder={self.front}",
            f"objective={self.objective}",
            f"data.batch_seconds={self.batch_seconds:g}",
            f"trainer.accumulate={self.accumulate}",
            f"trainer.max_steps={self.steps}",
            f"trainer.device={'cuda' if self.devices else 'cpu'}",
            f"trainer.devices={max(self.devices, 1)}",
            f"trainer.precision={self.precision}",
        ]


def choose(
    machine: Machine, *, hours: float, days: float, devices: int, memory_gib: float, models: Sequence[str]
) -> list[Plan]:
    """The plans that fit, the best first; [] where no model fits into memory.

    The largest model that sees enough audio within the days wins; with none, the one that comes nearest to it.
    """
    order = list(LEAST_HOURS_SEEN)
    plans = []
    for model in models:
        for objective, front in PREFERRED.get(model, PUBLISHED):
            overrides = (f"model={model}", f"objective={objective}", f"feature_encoder={front}")
            plan = plan_of(machine, overrides, hours=hours, days=days, devices=devices, memory_gib=memory_gib)
            if plan:
                plans.append(plan)

    def worth(plan: Plan) -> tuple[float, int]:
        return min(plan.hours_seen / LEAST_HOURS_SEEN[plan.model], 1.0), order.index(plan.model)

    return sorted(plans, key=worth, reverse=True)  # stable: in the order preferred


def plan_of(
    machine: Machine,
    overrides: Sequence[str],
    *,
    hours: float,
    days: float | None = None,
    steps: int | None = None,
    batch_seconds: float | None = None,
    accumulate: int | None = None,
    devices: int,
    memory_gib: float,
) -> Plan | None:
    """The run of a config within some days, or of so many steps; None where not even one clip fits into memory."""
    settings = plain(compose("pretrain", [*overrides, "data.train=x", "run_dir=x"]))
    model, objective = settings["model"], settings["objective"]
    name = model["name"]
    most = _fitting_batch(machine, model, objective, memory_gib)
    if most < CLIP_S and batch_seconds is None:
        return None
    workers = max(devices, 1)
    target = BATCH_SECONDS[name]
    batch = batch_seconds or min(most, max(target / workers, CLIP_S))
    accumulate = accumulate or max(round(target / workers / batch), 1)
    work = cost.of_step(model, objective, _clips(batch))
    step_s = accumulate * machine.step_seconds(work)
    seen_a_step_h = batch * accumulate * workers / 3600
    possible = int(BUSY * days * 86400 / step_s) if days else HUGE
    useful = int(MOST_PASSES * hours / seen_a_step_h)
    chosen = steps or max(min(possible, useful), 1)
    limit = "time" if possible <= useful else f"the audio: more than {MOST_PASSES} passes over it bring little"
    if days and chosen * seen_a_step_h < LEAST_HOURS_SEEN[name]:
        limit = f"time: {name} should see {LEAST_HOURS_SEEN[name]:,} h and sees {chosen * seen_a_step_h:,.0f} h"
    return Plan(
        model=name,
        objective=objective["name"],
        front=next((o.split("=")[1] for o in overrides if o.startswith("feature_encoder=")), "conv"),
        batch_seconds=batch,
        accumulate=accumulate,
        steps=chosen,
        devices=devices,
        precision=machine.precision,
        step_s=step_s,
        memory_gib=machine.peak_bytes(work) / 2**30,
        fits=_fits(machine, work, memory_gib),
        most_seconds=most,
        disk_gib=_disk_gib(work.parameters),
        days=chosen * step_s / BUSY / 86400,
        hours_seen=chosen * seen_a_step_h,
        passes=chosen * seen_a_step_h / hours,
        limit=limit if steps is None else "the steps that were asked for",
    )


def _fitting_batch(machine: Machine, model: dict[str, Any], objective: dict[str, Any], memory_gib: float) -> float:
    """Audio seconds of the largest batch that fits, in whole clips; 0 where not one does."""
    clips = 0
    while clips < 500:
        if not _fits(machine, cost.of_step(model, objective, [CLIP_S] * (clips + 1)), memory_gib):
            break
        clips += 1
    return clips * CLIP_S


def _fits(machine: Machine, work: Work, memory_gib: float) -> bool:
    return machine.peak_bytes(work) <= FILL * memory_gib * 2**30


def _clips(batch_seconds: float) -> list[float]:
    """Clips of CLIP_S, and what is left over."""
    whole = int(batch_seconds // CLIP_S)
    rest = batch_seconds - whole * CLIP_S
    return [CLIP_S] * whole + ([rest] if rest >= 1 else [])


def _disk_gib(parameters: float) -> float:
    """Three checkpoints of weights and two moments each, while one is written beside those that are kept."""
    return 3 * 12 * parameters / 2**30
