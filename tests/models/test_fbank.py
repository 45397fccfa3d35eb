"""The log-mel front end: its arithmetic with torchaudio's and numpy's, and that no clip sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchaudio.compliance import kaldi

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig

LENGTHS = [16_000, 9_999, 1360, 20_500]
SHAPES = {
    "20 ms": {"conv_channels": (80, 12), "conv_kernels": (400, 3), "conv_strides": (160, 2)},
    "stacked": {"conv_channels": (40, 160), "conv_kernels": (400, 4), "conv_strides": (160, 4)},
    "40 ms": {"conv_channels": (40, 12, 10), "conv_kernels": (400, 3, 3), "conv_strides": (160, 2, 2)},
}


@pytest.fixture
def build(small_config):
    """`build(shape, norm)`: an encoder with the log-mel front end."""

    def make(shape, norm="group") -> Encoder:
        torch.manual_seed(0)
        kind = "stacked" if shape == "stacked" else "fbank"
        config = small_config(feature_encoder=kind, conv_norm=norm, conv_bias=True, **SHAPES[shape])
        return Encoder(config).eval()

    return make


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("shape", ["20 ms", "40 ms"])
def test_frames_are_those_of_plain_convolutions_over_kaldis_spectrum(build, make_batch, shape, norm):
    encoder, batch = build(shape, norm).feature_encoder, make_batch(LENGTHS, padding=float("nan"))
    frames, frame_lengths = encoder(batch.waveforms, batch.lengths)
    assert frame_lengths == [encoder.num_frames(n) for n in LENGTHS]
    for clip, n, ours in zip(batch.waveforms, LENGTHS, frames.split(frame_lengths), strict=True):
        bins = encoder.mel.num_bins
        x = kaldi.fbank(clip[None, :n], dither=0.0, sample_frequency=16_000, num_mel_bins=bins).numpy()
        axis = 0 if norm == "group" else 1
        x = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)
        x = torch.from_numpy(x).T[None]
        for layer in encoder.layers:
            weight = layer.linear.weight.view(layer.linear.out_features, -1, layer.kernel)
            x = F.gelu(F.conv1d(x, weight, layer.linear.bias, stride=layer.stride))
        torch.testing.assert_close(ours, x[0].T, rtol=1e-3, atol=2e-3)


def test_spectra_side_by_side_are_those_of_kaldi(build, make_batch, small_config):
    encoder, batch = build("stacked").feature_encoder, make_batch(LENGTHS, padding=float("nan"))
    frames, frame_lengths = encoder(batch.waveforms, batch.lengths)
    assert not list(encoder.parameters())
    for clip, n, ours in zip(batch.waveforms, LENGTHS, frames.split(frame_lengths), strict=True):
        x = kaldi.fbank(clip[None, :n], dither=0.0, sample_frequency=16_000, num_mel_bins=40).numpy()
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        whole = len(x) // 4
        assert len(ours) == whole
        np.testing.assert_allclose(ours.numpy(), x[: 4 * whole].reshape(whole, 160), rtol=1e-3, atol=2e-3)
    with pytest.raises(UserError, match=r"conv_channels are \[40, 99\], and frames side by side make \[40, 160\]"):
        small_config(feature_encoder="stacked", **SHAPES["stacked"] | {"conv_channels": (40, 99)})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_clip_is_the_same_alone_and_in_a_batch(build, make_batch, shape):
    encoder, batch = build(shape), make_batch(LENGTHS, padding=float("nan"))
    with torch.no_grad():
        output = encoder(batch.waveforms, batch.lengths)
        for i, length in enumerate(LENGTHS):
            alone = encoder(batch.waveforms[i : i + 1, :length], torch.tensor([length]))
            torch.testing.assert_close(
                output.frames[i, : alone.frame_lengths[0]], alone.frames[0], rtol=1e-4, atol=1e-4
            )


def test_geometry_follows_from_kernels_and_strides(build):
    config = build("40 ms").config
    assert (config.hop, config.receptive_field) == (640, 1360)
    assert EncoderConfig.from_dict(config.to_dict()) == config


def test_too_short_a_clip_and_an_unknown_front_end_are_one_sentence(build, make_batch, small_config):
    batch = make_batch([1360, 1359])
    with pytest.raises(UserError, match=r"clip 1 of the batch has 1359 samples.*at least 1360"):
        build("40 ms")(batch.waveforms, batch.lengths)
    with pytest.raises(UserError, match="'conv', 'fbank' or 'stacked'"):
        small_config(feature_encoder="mfcc")
