"""Predicts a label of each frame: what HuBERT, BEST-RQ and DinoSR put on top of the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.masking import pad_rows
from speechssl.objectives.common import Metrics, in_fp32
from speechssl.types import LossOutput, Term, to_device


class LabelHead(nn.Module):
    """Frames to logits over labels.

    Args:
        input_size: C.
        num_labels: K.
        logits: "linear", or "cosine" with a learned vector a label (HuBERT, equation 3).
        final_size: where cosines are taken.
        temperature: what cosines are divided by.
    """

    def __init__(self, input_size: int, num_labels: int, *, logits: str, final_size: int, temperature: float):
        super().__init__()
        if logits not in ("linear", "cosine"):
            raise UserError(f"objective.logits is {logits!r}, but must be 'linear' or 'cosine'")
        self.num_labels, self.temperature = num_labels, temperature
        self.projection = nn.Linear(input_size, final_size if logits == "cosine" else num_labels)
        self.embeddings = nn.Parameter(torch.rand(num_labels, final_size)) if logits == "cosine" else None

    def forward(self, x: Tensor) -> Tensor:
        """[M, C] -> float32 [M, K]."""
        x = self.projection(x)
        if self.embeddings is None:
            return x.float()
        x, embeddings = F.normalize(x.float(), dim=-1), F.normalize(self.embeddings.float(), dim=-1)
        with in_fp32(x):
            return x @ embeddings.T / self.temperature

    def loss(self, frames: Tensor, labels: Tensor, mask: Tensor, *, unmasked_weight: float, watching: bool):
        """Cross-entropy of frames [P, C] with labels int64 [P] -> LossOutput: over masked frames, and over the others.

        The mask, bool [P], is on the CPU.
        Where the others weigh nothing they are not computed.
        """
        terms, metrics = {}, {}
        for name, weight, chosen in (("masked", 1.0, mask), ("unmasked", unmasked_weight, ~mask)):
            if not weight:
                continue
            count = int(chosen.sum())
            rows = to_device(pad_rows(chosen.nonzero().squeeze(1)), frames.device)
            logits, wanted = self(frames.index_select(0, rows))[:count], labels.index_select(0, rows[:count])
            terms[name] = Term(F.cross_entropy(logits, wanted, reduction="sum"), count, weight)
            if name == "masked":
                metrics = self._figures(logits.detach(), wanted, watching)
        return LossOutput(terms, metrics)

    def _figures(self, logits: Tensor, labels: Tensor, watching: bool) -> Metrics:
        count = len(labels)
        metrics: Metrics = {"accuracy": ((logits.argmax(-1) == labels).sum(), count)}
        if count and watching:
            # Guessing always the label that is most frequent here.
            metrics["chance"] = (torch.bincount(labels).max(), count)
            # The log-probability of a frame's label less that of another frame's.
            own = logits.gather(1, labels[:, None])
            other = logits.gather(1, labels.roll(count // 2)[:, None])
            metrics["energy_gap"] = ((own - other).sum(), count)
        return metrics


def label_counts(mask: Tensor, *, unmasked_weight: float) -> dict[str, int]:
    """The count of each term that `LabelHead.loss` gives."""
    masked = int(mask.sum())
    return {"masked": masked} | ({"unmasked": len(mask) - masked} if unmasked_weight else {})
