"""What reconstruction hides and mixes in, and its loss by hand."""

from __future__ import annotations

import pytest
import torch

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder
from speechssl.models.spectrum import standardize
from speechssl.objectives.reconstruction import ReconstructionObjective

LENGTHS = [12_000, 9_000]
OPTIONS = {
    "sample_rate": 16_000,
    "mode": "masked",
    "noise_snr_db": (0.0, 20.0),
    "overlap_probability": 1.0,
    "overlap_snr_db": (0.0, 0.0),
    "band_width": 16,
    "mask_start_probability": 0.05,
    "mask_span": 5,
    "mask_min_spans": 1,
    "feature_gradient_scale": 1.0,
}


def build(small_config, **options):
    torch.manual_seed(0)
    encoder = Encoder(small_config()).eval()
    return encoder, ReconstructionObjective(encoder.config, **OPTIONS | options).eval()


@pytest.mark.parametrize("mode", ["plain", "denoise", "masked"])
def test_loss_is_the_absolute_error_of_what_was_hidden(small_config, make_batch, mode):
    encoder, objective = build(small_config, mode=mode)
    batch = make_batch(LENGTHS)
    heard = objective.alter(batch)
    assert torch.equal(heard.waveforms, batch.waveforms) == (mode == "plain")
    features, frame_lengths = encoder.features(heard.waveforms, heard.lengths)
    from speechssl.objectives.common import draw_masks

    mask = torch.cat(draw_masks(batch, frame_lengths, objective.mask_options)) if mode == "masked" else None
    frames = encoder.contextualize(encoder.feature_norm(features), frame_lengths, mask=mask).packed[-1]
    targets = standardize(objective.mel(batch.waveforms, batch.lengths, frame_lengths).flatten(1), frame_lengths)
    error = (objective.regression(frames) - targets).abs().view(-1, 2, 80)
    hidden = objective.hidden(batch, frame_lengths)
    found = objective(encoder, batch).terms["regression"]
    assert found.sum.item() == pytest.approx(float((error * hidden[:, None]).sum()), rel=1e-4)
    assert found.count == 2 * int(hidden.sum())
    if mode == "masked":
        assert hidden[mask].all()
        assert 0 < hidden.float().mean() < 1


def test_other_modes_are_refused(small_config):
    with pytest.raises(UserError, match="'plain', 'denoise' or 'masked'"):
        build(small_config, mode="clean")
