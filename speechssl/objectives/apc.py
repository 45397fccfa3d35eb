"""APC: predict the log-mel spectrum some steps ahead from the past alone (Chung et al. 2019, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.spectrum import LogMel, standardize
from speechssl.objectives.common import PretrainingObjective, encoder_features, spread, vector_gap
from speechssl.types import Batch, LossOutput, Term, to_device

NUM_BINS = 80


class APCObjective(PretrainingObjective):
    """Absolute error of the spectrum `num_steps` frames ahead, over a Transformer that sees the past alone."""

    encoder_needs = {"causal": True}  # noqa: RUF012

    def __init__(self, encoder: EncoderConfig, *, sample_rate: int, num_steps: int, feature_gradient_scale: float):
        """Args:
        sample_rate: of the audio, samples a second.
        num_steps: n, frames ahead.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.num_steps, self.feature_gradient_scale = num_steps, feature_gradient_scale
        self.mel = LogMel(hop=encoder.hop, field=encoder.receptive_field, sample_rate=sample_rate, num_bins=NUM_BINS)
        self.regression = nn.Linear(encoder.hidden_size, NUM_BINS * self.mel.per_frame)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return: frames that have one so far ahead."""
        return {"regression": sum(max(frames - self.num_steps, 0) for frames in frame_lengths)}

    @torch.no_grad()
    def targets(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """[P, bins of a frame]: log-mel, each band standardised over the clip."""
        return standardize(self.mel(batch.waveforms, batch.lengths, frame_lengths).flatten(1), frame_lengths)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Absolute error, the mean over bands, summed over frames."""
        features, frame_lengths = encoder_features(encoder, batch, self.feature_gradient_scale)
        output = encoder.contextualize(encoder.feature_norm(features), frame_lengths, generator=generator)
        left = torch.cat([torch.arange(n, 0, -1) for n in frame_lengths])
        here = to_device((left > self.num_steps).nonzero().squeeze(1), features.device)
        wanted = self.targets(batch, frame_lengths)[here + self.num_steps]
        predictions = self.regression(output.packed[-1].index_select(0, here)).float()
        loss = (predictions - wanted).abs().mean(-1).sum()
        metrics = {}
        if self.watching:
            metrics = spread(output.packed[-1]) | vector_gap(predictions, wanted)
        return LossOutput({"regression": Term(loss, len(here))}, metrics)
