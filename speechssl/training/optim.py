"""AdamW and learning-rate schedules as functions of the step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from speechssl.errors import UserError


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    encoder_scale: float = 1.0,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW over the parameters that train; weight decay on matrices only, not on biases, norms and gains.

    Parameters `encoder.*` have `lr * encoder_scale`; of its layers each has `layer_decay` times the rate of the one
    above it, and what lies below the first layer once more (ULMFiT's discriminative rates, Howard and Ruder 2018). The
    highest rate comes first, so that it is the one that is logged.
    """
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    num_layers = 1 + max((layer for name, _ in trained if (layer := _layer(name)) is not None), default=-1)
    scales: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained:
        scale = 1.0
        if name.startswith("encoder."):
            layer = _layer(name)
            depth = 0 if name.startswith("encoder.context.norm.") else num_layers - (-1 if layer is None else layer) - 1
            scale = encoder_scale * layer_decay**depth
        scales.setdefault(scale, []).append(parameter)
    groups = []
    for scale in sorted(scales, reverse=True):
        groups += _groups(scales[scale], lr * scale, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=True)


def _layer(name: str) -> int | None:
    """The number of the context network's layer that a parameter of the encoder belongs to."""
    found = re.match(r"encoder\.context\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def _groups(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> list[dict]:
    """AdamW's groups of parameters with one rate."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay, "lr": lr},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "lr": lr},
    ]


def lr_scale(step: int, max_steps: int, *, warmup: float, hold: float, decay: str, floor: float) -> float:
    """Factor on the learning rate at a step (counted from 1).

    Linear warm-up to 1, hold at 1, then decay to `floor` at the last step: "linear" (the pretraining of wav2vec
    2.0) or "exponential" (its fine-tuning, the tri-stage schedule). `warmup` and `hold` are fractions of
    `max_steps`, or absolute steps where above 1.
    """
    if decay not in ("linear", "exponential"):
        raise UserError(f"optim.decay is {decay!r}, but must be 'linear' or 'exponential'")
    warmup, hold = (x if x > 1 else x * max_steps for x in (warmup, hold))
    if step < warmup:
        return step / warmup
    if step <= warmup + hold:
        return 1.0
    progress = min((step - warmup - hold) / max(max_steps - warmup - hold, 1), 1.0)
    return floor**progress if decay == "exponential" else 1.0 + progress * (floor - 1.0)
