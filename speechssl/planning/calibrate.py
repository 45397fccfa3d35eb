"""Measuring steps here: what the planner's coefficients are fitted to, and what its predictions are checked against."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from speechssl.benchmarks.clips import clip_seconds
from speechssl.benchmarks.turns import Child, spread
from speechssl.benchmarks.worker import OURS, Worker
from speechssl.config import compose, plain
from speechssl.planning import cost
from speechssl.planning.cost import Work
from speechssl.planning.machine import Machine, fit

log = logging.getLogger("speechssl")

# As overrides of `speechssl benchmark`: from tiny to base, short clips and long, both objectives, both front ends.
SEEN = (
    ("model=tiny", "batch=4x5"),
    ("model=tiny", "batch=16x2.5"),
    ("model=tiny", "batch=2x15"),
    ("model=tiny", "batch=6x5", "feature_encoder=fbank40"),
    ("model=tiny", "batch=6x5", "objective=best_rq"),
    ("model=small", "batch=4x5"),
    ("model=small", "batch=uneven"),
    ("model=base", "batch=2x5"),
)
# Shapes and batches that the calibration has not seen.
UNSEEN = (
    ("model=small", "batch=3x8", "model.encoder.num_layers=9", "model.encoder.hidden_size=320"),
    ("model=base", "batch=[3,6,11]"),
)


@dataclass
class Measured:
    """A config's steps: seconds of each, and the peak of memory above an empty process, bytes."""

    overrides: tuple[str, ...]
    work: Work
    seconds: list[float]
    peak_bytes: float

    @property
    def median(self) -> float:
        """Of the repeats."""
        return statistics.median(self.seconds)


def settings_of(overrides: Sequence[str], *, steps: int, device: str, precision: str) -> dict[str, Any]:
    """The complete settings of a benchmark."""
    given = [f"steps={steps}", "warmup_steps=1", f"trainer.device={device}", f"trainer.precision={precision}"]
    return plain(compose("benchmark", [*overrides, *given]))


def work_of(settings: dict[str, Any]) -> Work:
    """What its step has to do."""
    return cost.of_step(settings["model"], settings["objective"], clip_seconds(settings["batch"]))


def measure(
    configs: Sequence[tuple[str, ...]], *, rounds: int, steps: int, device: str, precision: str
) -> list[Measured]:
    """Each config in every round, in a process of its own, so that whatever slows the machine slows all alike."""
    found: dict[tuple[str, ...], Measured] = {}
    for turn in range(rounds):
        for overrides in configs:
            log.info("round %d of %d: %s", turn + 1, rounds, " ".join(overrides))
            settings = settings_of(overrides, steps=steps, device=device, precision=precision)
            with Child(Worker, OURS, settings) as child:
                child.ask("warm_up")
                seconds = [child.ask("step") for _ in range(steps)]
                peak = child.ask("peak")
            one = found.setdefault(overrides, Measured(overrides, work_of(settings), [], 0.0))
            one.seconds += seconds
            one.peak_bytes = max(one.peak_bytes, peak or 0.0)
    return list(found.values())


def calibrate(*, device: str, precision: str, steps: int = 3) -> Machine:
    """This machine's coefficients, in about two minutes."""
    measured = measure(SEEN, rounds=1, steps=steps, device=device, precision=precision)
    return machine_of(measured, device, precision)


def machine_of(measured: Sequence[Measured], device: str, precision: str) -> Machine:
    """The coefficients that measured steps say."""
    return fit(
        name=device,
        precision=precision,
        works=[one.work for one in measured],
        seconds=[one.median for one in measured],
        peaks=[max(one.peak_bytes, 1.0) for one in measured],
        memory_gib=memory_gib(device),
    )


def check(*, device: str, precision: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Predicted against measured, for the configs of the calibration and those that it has not seen.

    In each round the first step of a config is for calibrating and the others are what is predicted: a machine that is
    slow for a while is so for both.
    """
    found = measure([*SEEN, *UNSEEN], rounds=rounds, steps=steps + 1, device=device, precision=precision)
    first = [replace(one, seconds=one.seconds[:: steps + 1]) for one in found]
    machine = machine_of([one for one in first if one.overrides in SEEN], device, precision)
    measured = [replace(one, seconds=[s for i, s in enumerate(one.seconds) if i % (steps + 1)]) for one in found]
    return [
        {
            "config": " ".join(one.overrides),
            "seen": one.overrides in SEEN,
            "measured_s": one.median,
            "spread_s": spread(one.seconds),
            "predicted_s": machine.step_seconds(one.work),
            "time_error": machine.step_seconds(one.work) / one.median - 1,
            "measured_gib": one.peak_bytes / 2**30,
            "predicted_gib": machine.peak_bytes(one.work) / 2**30,
            "memory_error": machine.peak_bytes(one.work) / max(one.peak_bytes, 1.0) - 1,
        }
        for one in measured
    ]


def memory_gib(device: str) -> float:
    """What a GPU or this computer has."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 2**30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
