"""A slow copy of a network, whose weights follow the student's: theta' <- m theta' + (1 - m) theta (BYOL, data2vec).

Its weights are part of the objective's, so a checkpoint has them and a resumed run continues exactly. How long it
remembers is a share of the run, so that a short run is a whole small run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from speechssl.errors import UserError


class Teacher(nn.Module):
    """A network like the student's that is never trained, and always in evaluation mode.

    Args:
        network: of the student's shape; its weights are the student's from the first update on.
        memory: steps that it averages over, at the beginning and at the end: fractions of the run, above 1 steps.
        anneal: when the end is reached, likewise.
        copied: names of parts that are the student's at once, such as data2vec's positions.
    """

    def __init__(self, network: nn.Module, *, memory: Sequence[float], anneal: float, copied: tuple[str, ...] = ()):
        super().__init__()
        if len(memory) != 2 or not all(x > 0 for x in memory):
            raise UserError(f"objective.teacher_memory is {list(memory)}, but must be two numbers above 0")
        self.network = network.requires_grad_(False).eval()
        self.memory, self.anneal, self.copied = tuple(memory), anneal, copied
        self.register_buffer("started", torch.tensor(False))
        self.momentum, self.due = 0.0, False

    def train(self, mode: bool = True) -> Teacher:
        """A teacher does not drop anything out."""
        return super().train(False)

    def begin_step(self, step: int, max_steps: int) -> None:
        """Set the momentum of a step (from 1); the first `follow` after it in training moves the weights."""
        start, end = (max(x if x > 1 else x * max_steps, 1.0) for x in self.memory)
        anneal = self.anneal if self.anneal > 1 else self.anneal * max_steps
        share = min(step / anneal, 1.0) if anneal else 1.0
        # The momentum is what moves linearly (data2vec, section 3.2).
        self.momentum = (1 - share) * (1 - 1 / start) + share * (1 - 1 / end)
        self.due = True

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Once a step: towards the student, or equal to it the first time."""
        if not self.due:
            return
        self.due = False
        ours = dict(self.network.named_parameters())
        share = torch.where(self.started, 1 - self.momentum, 1.0)  # of the student, decided on its device
        for name, parameter in student.named_parameters():
            if name.startswith(self.copied):
                ours[name].copy_(parameter)
            else:
                ours[name].lerp_(parameter.to(ours[name].dtype), share.to(ours[name].dtype))
        self.started.fill_(True)

    def forward(self, *inputs, **options):
        """What the network gives, without gradient."""
        with torch.no_grad():
            return self.network(*inputs, **options)
