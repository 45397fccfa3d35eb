"""SimCLR for speech: two crops of a clip belong together, all other clips' crops do not (COLA, Saeed et al. 2021).

The loss is NT-Xent (Chen et al. 2020, equation 1) over the whole batch, of all ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.views import two_views
from speechssl.objectives.common import (
    PretrainingObjective,
    encode_views,
    gather_rows,
    in_fp32,
    mlp,
    pool,
    spread,
    view_gap,
)
from speechssl.types import Batch, LossOutput, Term


class SimCLRObjective(PretrainingObjective):
    """Cross-entropy of a crop's other half among all crops of the batch."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        sample_rate: int,
        crop_s: float,
        noise_snr_db: tuple[float, float],
        final_size: int,
        temperature: float,
        feature_gradient_scale: float,
    ):
        """Args:
        sample_rate: of the audio, samples a second.
        crop_s: seconds of a crop; a shorter clip is taken whole.
        noise_snr_db: range of signal to noise of each crop.
        final_size: of the projection, where cosines are taken.
        temperature: what cosines are divided by.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.feature_gradient_scale = feature_gradient_scale
        self.crop_length = max(round(crop_s * sample_rate), encoder.receptive_field)
        self.noise_snr_db, self.temperature = tuple(noise_snr_db), temperature
        size = encoder.hidden_size
        self.projector = mlp(size, size, final_size)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return: two crops a clip."""
        return {"contrastive": 2 * len(frame_lengths)}

    def loss(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, int]:
        """Projections of the first and the second crops [B, D] -> summed loss, how many find their other half, of all
        ranks' how many crops."""
        ours = F.normalize(torch.cat([first, second]).float(), dim=-1)
        every, start = gather_rows(ours)
        with in_fp32(ours):
            logits = ours @ every.T / self.temperature
        rows = torch.arange(len(ours), device=ours.device)
        logits[rows, start + rows] = -torch.inf
        other = start + (rows + len(first)) % len(ours)
        loss = F.cross_entropy(logits, other, reduction="sum")
        return loss, (logits.argmax(1) == other).sum(), len(every)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Loss of a batch in nats, summed over crops."""
        views = two_views(batch, self.crop_length, self.noise_snr_db)
        output = encode_views(encoder, views, gradient_scale=self.feature_gradient_scale, generator=generator)
        first, second = self.projector(pool(output)).chunk(2)
        loss, right, among = self.loss(first, second)
        count = 2 * len(first)
        metrics = {"accuracy": (right, count), "chance": (count / max(among - 1, 1), count)}
        if self.watching:
            metrics |= spread(output.packed[-1]) | spread(torch.cat([first, second]), "target_variance")
            metrics |= view_gap(first, second)
        return LossOutput({"contrastive": Term(loss, count)}, metrics)
