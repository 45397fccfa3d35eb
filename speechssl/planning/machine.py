"""A machine's coefficients: how many seconds and bytes each kind of work costs there.

Fitted by non-negative least squares on relative errors to measured steps, drawn towards the proportions of the machine
that the shipped coefficients were measured on, so that a few measurements suffice. For GPUs that are not at hand there
is a table of peaks, and an assumed share of the peak that is reached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechssl.errors import UserError
from speechssl.planning.cost import Work

SECONDS = ("convolutions", "products", "attention", "elements", "parameters", "clips", "steps")
BYTES = ("parameters", "activations", "steps")
# Where the fit begins: seconds of an operation of each kind, a value, a parameter, a clip, a step; and bytes of a
# parameter (weight, gradient, two moments), a value that is kept, and of libraries and buffers. They give the steps of
# recipes/benchmark/RESULTS.md (two cores, fp32: small 4x5, small uneven, base 4x5) within 10 %.
CPU_SECONDS = (4.0e-12, 3.2e-12, 6.0e-12, 3.5e-10, 1.2e-9, 2e-3, 5e-3)
CPU_BYTES = (17.0, 6.0, 1.6e8)
# How strongly the fit is held to these proportions.
PULL = 0.05

# Name: GiB, and TFLOP/s of each precision, as the makers state them; those without bf16 are older than it.
GPUS = {
    "t4": (15, {"fp32": 8.1}),
    "v100": (32, {"fp32": 15.7}),
    "a10": (24, {"bf16": 125, "fp32": 31.2}),
    "l4": (24, {"bf16": 121, "fp32": 30.3}),
    "rtx3090": (24, {"bf16": 71, "fp32": 35.6}),
    "rtx4090": (24, {"bf16": 165, "fp32": 82.6}),
    "l40s": (48, {"bf16": 362, "fp32": 91.6}),
    "a100": (80, {"bf16": 312, "fp32": 19.5}),
    "h100": (80, {"bf16": 989, "fp32": 66.9}),
    "h200": (141, {"bf16": 989, "fp32": 66.9}),
}
# Bytes of a value that is kept on a GPU.
GPU_VALUE = {"bf16": 3.0, "fp32": 6.0}
# Share of the peak that training reaches: an assumption, not a measurement.
ASSUMED_SHARE = 0.25


@dataclass(frozen=True)
class Machine:
    """Coefficients at a precision ("fp32" or "bf16"), and where they come from, in words."""

    name: str
    precision: str
    seconds: tuple[float, ...]
    bytes: tuple[float, ...]
    memory_gib: float
    source: str

    def step_seconds(self, work: Work) -> float:
        """Of one step on one device."""
        return float(np.dot(_row(work, SECONDS), self.seconds))

    def peak_bytes(self, work: Work) -> float:
        """Peak memory of a step above an empty process."""
        return float(np.dot(_row(work, BYTES), self.bytes))


def fit(
    name: str,
    precision: str,
    works: Sequence[Work],
    seconds: Sequence[float],
    peaks: Sequence[float],
    memory_gib: float,
) -> Machine:
    """A machine from measured steps."""
    return Machine(
        name=name,
        precision=precision,
        seconds=_fit([_row(work, SECONDS) for work in works], seconds, CPU_SECONDS),
        bytes=_fit([_row(work, BYTES) for work in works], peaks, CPU_BYTES),
        memory_gib=memory_gib,
        source=f"measured here on {len(works)} configs",
    )


def gpu(name: str, precision: str | None = None) -> Machine:
    """A GPU of the table, from its peak; None is the fastest precision that it has."""
    if name not in GPUS:
        raise UserError(f"gpu={name} is not in the table: it has {', '.join(GPUS)}; or leave it out and calibrate here")
    memory, peaks = GPUS[name]
    precision = precision or next(iter(peaks))
    if precision not in peaks:
        raise UserError(f"gpu={name} has no precision={precision}: use precision={', '.join(peaks)}, or leave it out")
    rate = 1 / (peaks[precision] * 1e12 * ASSUMED_SHARE)
    return Machine(
        name=name,
        precision=precision,
        seconds=(2 * rate, rate, rate, 2e-12, 1e-11, 2e-4, 2e-2),
        bytes=(16.0, GPU_VALUE[precision], 1.5e9),
        memory_gib=memory,
        source=f"an estimate: {ASSUMED_SHARE:.0%} of the {peaks[precision]:g} TFLOP/s that its maker states",
    )


def gpu_with(memory_gib: float | None, precision: str | None = None) -> str:
    """The GPU of the table with the least memory that is enough, of these the slowest, so as not to promise much."""
    fitting = [
        (memory, peaks[precision or next(iter(peaks))], name)
        for name, (memory, peaks) in GPUS.items()
        if memory >= (memory_gib or 0) and (precision is None or precision in peaks)
    ]
    return min(fitting)[2] if fitting else "h200"


def cache_path(device: str, precision: str) -> Path:
    """Where this machine's coefficients are kept, those of each device and precision in a file of their own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "speechssl" / f"machine_{device}_{precision}.json"


def known(device: str, precision: str) -> Machine:
    """This machine's coefficients if it was calibrated (`speechssl plan`), else those that are shipped."""
    path = cache_path(device, precision)
    if path.is_file():
        return load(path)
    if device == "cuda":
        return gpu("h200", precision)
    return Machine("cpu", precision, CPU_SECONDS, CPU_BYTES, 0.0, "shipped")


def save(machine: Machine, path: Path) -> None:
    """Keep the coefficients."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(machine), indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> Machine:
    """The coefficients that `save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Machine(**{**content, "seconds": tuple(content["seconds"]), "bytes": tuple(content["bytes"])})


def _row(work: Work, names: Sequence[str]) -> np.ndarray:
    values = work.as_dict()
    return np.array([values[name] for name in names])


def _fit(rows: Sequence[np.ndarray], measured: Sequence[float], prior: Sequence[float]) -> tuple[float, ...]:
    """Coefficients >= 0 that minimise relative errors, in units of the prior scaled to this machine."""
    from scipy.optimize import nnls

    rows, measured, prior = np.array(rows), np.array(measured), np.array(prior)
    scale = np.median(measured / (rows @ prior))
    relative = rows * (prior * scale) / measured[:, None]
    pull = PULL * np.eye(len(prior))
    factors, _ = nnls(np.vstack([relative, pull]), np.concatenate([np.ones(len(rows)), PULL * np.ones(len(prior))]))
    return tuple(float(x) for x in factors * prior * scale)
