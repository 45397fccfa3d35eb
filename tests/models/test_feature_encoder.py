"""The feature encoder's windows and folded norm against plain conv1d, group_norm, layer_norm and gelu of each clip."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder
from speechssl.models.feature_encoder import WINDOW

VARIANTS = {"group": ("group", False), "group with bias": ("group", True), "layer": ("layer", True)}
# Shortest, one below and above a frame, around one window's worth of frames, and more windows than a tile has.
LENGTHS = [400, 719, 720, 5000, 400 + 320 * (WINDOW - 1), 400 + 320 * WINDOW, 400 + 320 * WINDOW - 1, 150_123]


@pytest.fixture
def build(small_config):
    """`build(variant)`: a feature encoder whose every parameter is random."""

    def make(variant):
        norm, bias = VARIANTS[variant]
        torch.manual_seed(0)
        config = small_config(conv_channels=(6, 7, 8, 8, 8, 8, 9), conv_norm=norm, conv_bias=bias)
        encoder = Encoder(config).feature_encoder
        for name, parameter in encoder.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.uniform_(parameter, 0.5, 1.5)
            elif name.endswith("bias"):
                nn.init.normal_(parameter)
        return encoder

    return make


def plain(encoder, clip):
    """[N] -> [T, C], as the paper's reference computes one clip."""
    x = clip[None, None]
    for layer in encoder.layers:
        x = F.conv1d(x, layer.weight, layer.bias, stride=layer.stride)
        if layer.norm_kind == "group":
            x = F.group_norm(x, x.shape[1], layer.norm.weight, layer.norm.bias)
        elif layer.norm_kind == "layer":
            x = F.layer_norm(x.mT, x.shape[1:2], layer.norm.weight, layer.norm.bias).mT
        x = F.gelu(x)
    return x[0].T


def gradients(encoder, loss):
    """Of each parameter, by name. A bias before group norm has none: the norm takes it away."""
    found = torch.autograd.grad(loss, encoder.parameters(), allow_unused=True, materialize_grads=True)
    return dict(zip(dict(encoder.named_parameters()), found, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_and_gradients_are_those_of_plain_convolutions(build, variant, make_batch):
    encoder, batch = build(variant).double(), make_batch(LENGTHS)
    batch.waveforms = batch.waveforms.double()
    frames, frame_lengths = encoder(batch.waveforms, batch.lengths)
    expected = [plain(encoder, waveform[:n]) for waveform, n in zip(batch.waveforms, LENGTHS, strict=True)]
    assert frame_lengths == [len(x) for x in expected]
    torch.testing.assert_close(frames, torch.cat(expected), rtol=1e-9, atol=1e-9)

    weights = torch.randn(frames.shape, dtype=frames.dtype, generator=torch.Generator().manual_seed(1))
    ours = gradients(encoder, (frames * weights).sum())
    theirs = gradients(encoder, (torch.cat(expected) * weights).sum())
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_is_the_same_alone_and_in_a_batch(build, variant, make_batch):
    encoder, batch = build(variant), make_batch(LENGTHS, padding=float("nan"))  # padding that poisons if it is read
    frames, frame_lengths = encoder(batch.waveforms, batch.lengths)
    for waveform, n, in_batch in zip(batch.waveforms, LENGTHS, frames.split(frame_lengths), strict=True):
        alone, _ = encoder(waveform[None, :n], torch.tensor([n]))
        torch.testing.assert_close(in_batch, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_comes_from_padding(build, variant, make_batch):
    encoder, batch = build(variant), make_batch([400, 9000, 777], padding=float("nan"))
    frames, _ = encoder(batch.waveforms, batch.lengths)
    for gradient in gradients(encoder, frames.square().sum()).values():
        assert gradient.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_silence_gives_finite_frames_and_gradients(build, variant):
    encoder = build(variant)
    frames, _ = encoder(torch.zeros(2, 8000), torch.tensor([8000, 400]))
    assert frames.isfinite().all()
    for gradient in gradients(encoder, frames.square().sum()).values():
        assert gradient.isfinite().all()


def test_a_constant_offset_is_normed_away(build, make_batch):
    """Group norm ignores a constant added to the audio; single precision must not lose the audio beside it."""
    encoder, batch = build("group"), make_batch([16_000])
    plain_frames, _ = encoder(batch.waveforms, batch.lengths)
    offset_frames, _ = encoder(batch.waveforms + 0.9, batch.lengths)
    torch.testing.assert_close(offset_frames, plain_frames, rtol=1e-3, atol=1e-3)


def test_a_quiet_clip_is_normed_as_in_double_precision(build, make_batch):
    encoder, batch = build("group"), make_batch([16_000])
    quiet = 1e-3 * batch.waveforms + 0.1
    frames, _ = encoder(quiet, batch.lengths)
    exact = plain(encoder.double(), quiet[0].double())
    torch.testing.assert_close(frames.double(), exact, rtol=1e-3, atol=1e-3)


def test_the_folded_norm_loses_nothing_to_bf16(small_config):
    """A hum and little else: filters that pass little of it have a variance that is a small difference of large terms.

    As far from fp32 as plain convolutions and a group norm under the same autocast, within half as much again.
    """
    torch.manual_seed(0)
    encoder = Encoder(small_config(conv_channels=(64,) * 7, conv_norm="group")).feature_encoder
    time = torch.arange(16_000) / 16_000
    clip = 0.3 * torch.sin(2 * math.pi * 100 * time) + 0.001 * torch.randn(16_000)
    with torch.no_grad():
        expected = plain(encoder, clip)
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = encoder(clip[None], torch.tensor([len(clip)]))
            reference = plain(encoder, clip)

    def error(frames):
        return ((frames.float() - expected).norm() / expected.norm()).item()

    assert error(found) < 1.5 * error(reference)
    assert found.dtype == torch.bfloat16  # nothing beside it makes it wider


def test_too_short_a_clip_is_named(build, make_batch):
    batch = make_batch([500, 399])
    with pytest.raises(UserError, match=r"clip 1 of the batch has 399 samples.*at least 400"):
        build("group")(batch.waveforms, batch.lengths)


def test_averaging_filters_begin_near_the_mean_of_one_channel(small_config):
    torch.manual_seed(0)
    config = small_config(conv_channels=(64,) * 7, conv_init="average")
    for layer in Encoder(config).feature_encoder.layers[1:]:
        means = layer.weight.mean(-1)  # [out, in]
        own = means.diagonal()
        assert own.mean().item() == pytest.approx(1 / layer.kernel, rel=0.1)
        assert (means.sum() - own.sum()).item() / (64 * 63) == pytest.approx(0, abs=0.01)


def test_gabor_filters_pass_their_band(small_config):
    """The n-th of 64 bands between 60 and 7600 Hz, evenly spaced in mel, answers most to its own centre."""
    config = small_config(
        conv_channels=(128, 128), conv_kernels=(320, 3), conv_strides=(40, 2), conv_init="gabor", hidden_size=16
    )
    filters = Encoder(config).feature_encoder.layers[0].weight.detach().squeeze(1)  # [128, 320]
    response = torch.fft.rfft(filters, 16_000).abs()  # bins of 1 Hz
    mel = [2595 * math.log10(1 + hertz / 700) for hertz in (60, 7600)]
    for band in range(20, 64):  # below, a band is narrower than a kernel of 20 ms can be
        centre = 700 * (10 ** ((mel[0] + (band + 1) / 65 * (mel[1] - mel[0])) / 2595) - 1)
        for phase in (0, 1):
            assert response[2 * band + phase].argmax().item() == pytest.approx(centre, rel=0.02)
    cosine, sine = filters[::2], filters[1::2]
    assert (cosine * sine).sum(1).abs().max().item() < 1e-4 * cosine.square().sum(1).min().item()
