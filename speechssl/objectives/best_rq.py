"""BEST-RQ: predict at masked frames the labels that a random projection gives (Chiu et al. 2022, arXiv 2202.01855).

A frame's log-mel, standardised, goes through a random matrix to the nearest of random codewords (equation 1). Neither
is ever trained, so there is no teacher, no codebook to collapse and nothing to prepare: the cheapest family.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.heads.labels import LabelHead, label_counts
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.spectrum import LogMel, standardize
from speechssl.objectives.common import PretrainingObjective, draw_masks, encode_masked, spread, usage
from speechssl.types import Batch, LossOutput

NUM_BINS = 80


class BestRQObjective(PretrainingObjective):
    """Cross-entropy with random-projection labels at masked frames."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        sample_rate: int,
        num_codewords: int,
        code_size: int,
        logits: str,
        final_size: int,
        temperature: float,
        unmasked_weight: float,
        mask_start_probability: float,
        mask_span: int,
        mask_min_spans: int,
        feature_gradient_scale: float,
    ):
        """Args:
        sample_rate: of the audio, samples a second.
        num_codewords, code_size: of the random codebook (section 3.1).
        logits, final_size, temperature: see `LabelHead`; the paper's is "linear".
        unmasked_weight: of the loss at frames that are not hidden; the paper has none.
        mask_start_probability, mask_span, mask_min_spans: see `span_mask`.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.mel = LogMel(hop=encoder.hop, field=encoder.receptive_field, sample_rate=sample_rate, num_bins=NUM_BINS)
        projection = nn.init.xavier_uniform_(torch.empty(NUM_BINS * self.mel.per_frame, code_size))
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", F.normalize(torch.randn(num_codewords, code_size), dim=-1))
        self.head = LabelHead(
            encoder.hidden_size, num_codewords, logits=logits, final_size=final_size, temperature=temperature
        )
        self.unmasked_weight, self.feature_gradient_scale = unmasked_weight, feature_gradient_scale
        self.mask_options = {
            "start_probability": mask_start_probability,
            "span": mask_span,
            "min_spans": mask_min_spans,
        }

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return, from lengths and seeds alone."""
        masks = draw_masks(batch, frame_lengths, self.mask_options)
        return label_counts(torch.cat(masks), unmasked_weight=self.unmasked_weight)

    @torch.no_grad()
    def labels(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """int64 [P]: the nearest codeword of each frame, both on the unit sphere."""
        spectrum = self.mel(batch.waveforms, batch.lengths, frame_lengths)
        spectrum = standardize(spectrum.flatten(1), frame_lengths)
        with torch.autocast(spectrum.device.type, enabled=False):
            # On the sphere the nearest is the one with the largest product, whatever the length of the projection.
            return ((spectrum @ self.projection) @ self.codebook.T).argmax(-1)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Loss of a batch in nats, summed over frames."""
        output, mask = encode_masked(
            encoder,
            batch,
            self.mask_options,
            gradient_scale=self.feature_gradient_scale,
            generator=generator,
        )
        labels = self.labels(batch, output.frame_lengths)
        frames = output.packed[-1]
        found = self.head.loss(frames, labels, mask, unmasked_weight=self.unmasked_weight, watching=self.watching)
        if self.watching:
            found.metrics |= spread(frames) | usage(labels[mask], len(self.codebook))
        return found
