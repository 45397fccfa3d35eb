"""Which Transformer layers run again in the backward pass, so that a training step fits into a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechssl.errors import UserError
from speechssl.planning import cost
from speechssl.planning.machine import Machine


def layers_to_recompute(
    machine: Machine,
    model: dict[str, Any],
    objective: dict[str, Any],
    *,
    clip_seconds: Sequence[float],
    parameters: int,
    memory_gib: float,
) -> int:
    """The fewest layers, counted from the first, that must keep their input alone for a step to fit.

    What a step takes is counted as by `speechssl plan`, with this machine's coefficients where it was calibrated; of an
    objective that is not counted there the encoder alone.

    Args:
        machine: what a parameter and a value take.
        model, objective: `encoder` and `sample_rate`; the objective's options.
        clip_seconds: of a batch.
        parameters: numbers that train.
        memory_gib: what a step may take above an empty process.

    Raises:
        UserError: it does not fit with all layers either.
    """
    _, frames = cost.lengths(model, clip_seconds)
    per_parameter, per_value, base = machine.bytes
    layers = cost.kept_values(model["encoder"], frames)
    total = cost.activations(model, objective, clip_seconds)
    needed = []
    for count in range(len(layers) + 1):
        # Of a layer that runs again its input is kept, and for a while all that it makes.
        saved = sum(values - inputs for values, inputs in layers[:count])
        again = max((values for values, _ in layers[:count]), default=0.0)
        needed.append((base + per_parameter * parameters + per_value * (total - saved + again)) / 2**30)
        if needed[-1] <= memory_gib:
            return count
    raise UserError(
        f"trainer.memory_gib={memory_gib:g} is too little: a step takes about {min(needed):.2f} GiB even where every "
        "layer runs again in the backward pass; give a smaller data.batch_seconds or model"
    )
