"""APC predicts the spectrum that comes, by hand."""

from __future__ import annotations

import pytest
import torch

from speechssl.models.encoder import Encoder
from speechssl.objectives.apc import APCObjective

LENGTHS = [9_000, 6_000, 1_000]  # the last has 2 frames, none three ahead


def test_loss_is_the_absolute_error_so_many_frames_ahead(small_config, make_batch):
    torch.manual_seed(0)
    encoder = Encoder(small_config(**APCObjective.encoder_needs)).eval()
    objective = APCObjective(encoder.config, sample_rate=16_000, num_steps=3, feature_gradient_scale=1.0).eval()
    batch = make_batch(LENGTHS)
    output = encoder(batch.waveforms, batch.lengths)
    targets = objective.targets(batch, output.frame_lengths).split(output.frame_lengths)
    expected, count = 0.0, 0
    for frames, target in zip(output.packed[-1].split(output.frame_lengths), targets, strict=True):
        for t in range(len(frames) - 3):
            expected += float((objective.regression(frames[t]) - target[t + 3]).abs().mean())
            count += 1
    found = objective(encoder, batch).terms["regression"]
    assert found.sum.item() == pytest.approx(expected, rel=1e-4)
    assert found.count == count == 27 - 3 + 18 - 3
