"""AdamW and learning-rate schedules as functions of the step."""

from __future__ import annotations

from collections.abc import Iterable

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
) -> torch.optim.AdamW:
    """AdamW over the parameters that train; weight decay on matrices only, not on biases, norms and gains."""
    trained = [p for _, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=True)


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
