"""What the heads share: the encoder's output for fine-tuning, and which part of it is frozen when."""

from __future__ import annotations

import torch

from speechssl.models.encoder import Encoder
from speechssl.models.masking import span_mask
from speechssl.objectives.common import draw_masks
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, EncoderOutput


def is_frozen(step: int, max_steps: int, freeze_encoder: float) -> bool:
    """Whether the encoder is kept as it is at a step (from 1); up to 1 a fraction of the run, above so many steps."""
    return step <= (freeze_encoder if freeze_encoder > 1 else freeze_encoder * max_steps)


def encode(
    encoder: Encoder,
    batch: Batch,
    generator: torch.Generator | None,
    *,
    freeze_feature_encoder: bool,
    freeze_encoder: bool,
    mask: dict | None = None,
    channel_mask: dict | None = None,
) -> EncoderOutput:
    """The encoder's output for fine-tuning, without gradient where frozen.

    `mask` and `channel_mask` are options of `span_mask`, over a clip's frames and over its channels: both are drawn
    from the clip's seed and hide parts of the projected features (wav2vec 2.0, section 4.3, after SpecAugment).
    """
    grad = torch.is_grad_enabled()
    with torch.set_grad_enabled(grad and not freeze_feature_encoder and not freeze_encoder):
        features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    hidden = torch.cat(draw_masks(batch, frame_lengths, mask)) if mask else None
    hidden_channels = None
    if channel_mask:
        size = encoder.config.hidden_size
        masks = [span_mask(size, generator=make_generator(seed, "channels"), **channel_mask) for seed in batch.seeds]
        hidden_channels = torch.stack(masks).repeat_interleave(torch.tensor(frame_lengths), 0)
    with torch.set_grad_enabled(grad and not freeze_encoder):
        normed = encoder.feature_norm(features)
        return encoder.contextualize(
            normed, frame_lengths, mask=hidden, channel_mask=hidden_channels, generator=generator
        )
