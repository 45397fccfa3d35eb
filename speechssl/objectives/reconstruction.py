"""Reconstruction of the log-mel spectrum: plain, from a noisy clip, or of hidden frames and bands.

`plain` is an autoencoder over the encoder's bottleneck, `denoise` rebuilds the clean clip below noise and overlapping
speech (as WavLM mixes them, Chen et al. 2022), `masked` hides spans of frames and a band of frequencies (Mockingjay,
Liu et al. 2020; TERA, Liu et al. 2021) and asks for what was hidden. Absolute error, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.spectrum import LogMel, standardize
from speechssl.models.views import add_noise, clips_of, mix, remove_band, uniform, with_clips
from speechssl.objectives.common import PretrainingObjective, draw_masks, encoder_features, spread, vector_gap
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, LossOutput, Term, to_device

NUM_BINS = 80
MODES = ("plain", "denoise", "masked")


class ReconstructionObjective(PretrainingObjective):
    """Absolute error of the spectrum that the encoder's output gives."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        sample_rate: int,
        mode: str,
        noise_snr_db: tuple[float, float],
        overlap_probability: float,
        overlap_snr_db: tuple[float, float],
        band_width: int,
        mask_start_probability: float,
        mask_span: int,
        mask_min_spans: int,
        feature_gradient_scale: float,
    ):
        """Args:
        sample_rate: of the audio, samples a second.
        mode: "plain", "denoise" or "masked".
        noise_snr_db: denoise: range of signal to noise.
        overlap_probability, overlap_snr_db: denoise: how often another clip of the batch speaks too, and how loud.
        band_width: masked: mel bands that are hidden, at most, of 80.
        mask_start_probability, mask_span, mask_min_spans: masked: see `span_mask`.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        if mode not in MODES:
            raise UserError(f"objective.mode is {mode!r}, but must be 'plain', 'denoise' or 'masked'")
        self.mode, self.sample_rate, self.band_width = mode, sample_rate, band_width
        self.noise_snr_db, self.overlap_snr_db = tuple(noise_snr_db), tuple(overlap_snr_db)
        self.overlap_probability, self.feature_gradient_scale = overlap_probability, feature_gradient_scale
        self.mask_options = {
            "start_probability": mask_start_probability,
            "span": mask_span,
            "min_spans": mask_min_spans,
        }
        self.mel = LogMel(hop=encoder.hop, field=encoder.receptive_field, sample_rate=sample_rate, num_bins=NUM_BINS)
        size = encoder.hidden_size
        # Two layers, as Mockingjay's prediction network.
        self.regression = nn.Sequential(
            nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size), nn.Linear(size, NUM_BINS * self.mel.per_frame)
        )

    def _bands(self, batch: Batch) -> list[tuple[int, int]]:
        """The hidden band of each clip, from and to."""
        bands = []
        for seed in batch.seeds:
            generator = make_generator(seed, "band")
            width = int(torch.randint(self.band_width + 1, (), generator=generator))
            low = int(torch.randint(NUM_BINS - width + 1, (), generator=generator))
            bands.append((low, low + width))
        return bands

    def hidden(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """bool [P, bins]: which values the loss asks for."""
        if self.mode != "masked":
            return torch.ones(sum(frame_lengths), NUM_BINS, dtype=torch.bool)
        parts = []
        for mask, (low, high) in zip(
            draw_masks(batch, frame_lengths, self.mask_options), self._bands(batch), strict=True
        ):
            part = mask[:, None].repeat(1, NUM_BINS)
            part[:, low:high] = True
            parts.append(part)
        return torch.cat(parts)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return: values of the spectrum."""
        return {"regression": int(self.hidden(batch, frame_lengths).sum()) * self.mel.per_frame}

    def alter(self, batch: Batch) -> Batch:
        """What the encoder hears: noisy and overlapped, or without a band."""
        clips = clips_of(batch)
        if self.mode == "plain":
            return batch
        if self.mode == "masked":
            bands = self._bands(batch)
            return with_clips(
                batch,
                [remove_band(clip, *band, NUM_BINS, self.sample_rate) for clip, band in zip(clips, bands, strict=True)],
            )
        altered = []
        for number, (clip, seed) in enumerate(zip(clips, batch.seeds, strict=True)):
            generator = make_generator(seed, "noise")
            heard = add_noise(clip, uniform(*self.noise_snr_db, generator), generator)
            if uniform(0, 1, generator) < self.overlap_probability:
                # Half of the clip at most, so that it is clear who is to be rebuilt.
                other = clips[(number + 1) % len(clips)][: len(clip) // 2]
                start = int(torch.randint(len(clip) - len(other) + 1, (), generator=generator))
                other = torch.cat([other.new_zeros(start), other])
                heard = mix(heard, other, uniform(*self.overlap_snr_db, generator))
            altered.append(heard)
        return with_clips(batch, altered)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Absolute error, summed over the values that are asked for."""
        features, frame_lengths = encoder_features(encoder, self.alter(batch), self.feature_gradient_scale)
        mask = None
        if self.mode == "masked":
            mask = torch.cat(draw_masks(batch, frame_lengths, self.mask_options))
        output = encoder.contextualize(encoder.feature_norm(features), frame_lengths, mask=mask, generator=generator)
        with torch.no_grad():
            spectrum = self.mel(batch.waveforms, batch.lengths, frame_lengths)
            targets = standardize(spectrum.flatten(1), frame_lengths)
        predictions = self.regression(output.packed[-1]).float()
        hidden = self.hidden(batch, frame_lengths)
        asked = to_device(hidden, targets.device).repeat(1, self.mel.per_frame)
        loss = ((predictions - targets).abs() * asked).sum()
        metrics = {}
        if self.watching:
            metrics = spread(output.packed[-1]) | vector_gap(predictions, targets)
        return LossOutput({"regression": Term(loss, int(hidden.sum()) * self.mel.per_frame)}, metrics)
