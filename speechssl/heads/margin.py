"""Classes on a sphere: cosines to class centres, with a margin that the right class has to win by.

AM-softmax (Wang et al. 2018, eq. 6) and AAM-softmax (ArcFace, Deng et al. 2019, eq. 3); several centres a class, of
which the nearest counts (sub-centre ArcFace, Deng et al. 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSSES = ("softmax", "am_softmax", "aam_softmax")

# A sine this small has no usable slope: 1 - cos^2 is rounding there.
_MIN_SQUARED_SINE = 1e-7


class MarginClassifier(nn.Module):
    """Embeddings to scaled cosines.

    Args:
        size: of an embedding.
        num_classes: classes.
        kind: "am_softmax" or "aam_softmax".
        scale: factor on the cosines, the papers' s.
        sub_centres: centres a class.
    """

    def __init__(self, size: int, num_classes: int, *, kind: str, scale: float, sub_centres: int):
        super().__init__()
        self.kind, self.scale, self.sub_centres = kind, scale, sub_centres
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centres, size))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, E] -> logits [B, classes] without a margin."""
        return self.scale * self._cosines(embeddings)

    def with_margin(self, embeddings: Tensor, targets: Tensor, margin: float) -> Tensor:
        """[B, E], int64 [B] -> logits [B, classes], the right class's lowered by `margin` (for AAM, radians)."""
        cosines = self._cosines(embeddings)
        right = cosines.gather(1, targets[:, None])
        if self.kind == "am_softmax":
            lowered = right - margin
        else:
            # cos(t + m) without an arc cosine, whose slope at 0 and pi is infinite.
            sines = (1 - right.square()).clamp_min(_MIN_SQUARED_SINE).sqrt()
            angle = torch.tensor(margin, dtype=right.dtype, device=right.device)
            lowered = right * angle.cos() - sines * angle.sin()
        return self.scale * cosines.scatter(1, targets[:, None], lowered)

    def _cosines(self, embeddings: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        return cosines.unflatten(1, (-1, self.sub_centres)).amax(2)
