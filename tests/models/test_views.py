"""Altered waveforms do what they say, measured."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.models.views import add_noise, change_speed, crop, mix, remove_band, reorder, two_views


def tone(hertz, n=16_000):
    return torch.sin(2 * math.pi * hertz * torch.arange(n) / 16_000)


def test_noise_and_other_speech_come_at_their_ratio():
    clip, generator = tone(440), torch.Generator().manual_seed(0)
    for altered in (add_noise(clip, 10.0, generator), mix(clip, torch.cos(torch.arange(16_000.0)), 10.0)):
        ratio = clip.square().mean() / (altered - clip).square().mean()
        assert 10 * math.log10(ratio) == pytest.approx(10.0, abs=0.05)
    assert len(mix(clip, torch.ones(10), 0.0)) == len(clip)


def test_a_removed_band_is_gone_and_the_others_stay():
    low, high = tone(300), tone(5000)
    altered = remove_band(low + high, 60, 76, 80, 16_000)  # around 3 to 7 kHz
    torch.testing.assert_close(altered, low, rtol=0, atol=0.02)
    assert torch.equal(remove_band(low, 5, 5, 80, 16_000), low)


def test_speed_moves_the_pitch():
    fast = change_speed(tone(400), 1.25)
    assert len(fast) == 12_800
    assert torch.fft.rfft(fast).abs().argmax().item() * 16_000 / 12_800 == pytest.approx(500, abs=2)


def test_parts_come_in_the_order_asked_for():
    clip = torch.arange(12.0).repeat_interleave(100)
    found = reorder(clip, [2, 0, 1], fade=10)
    assert found[50].item() == 8 and found[450].item() == 0 and found[850].item() == 4
    assert found[0].item() == found[399].item() == 0.0


def test_views_are_crops_of_the_same_clips(make_batch):
    batch = make_batch([9_000, 3_000], padding=float("nan"))
    views = two_views(batch, 4_000, (60.0, 60.0))
    assert views.lengths.tolist() == [4_000, 3_000, 4_000, 3_000]
    assert views.waveforms[1, :3_000].isfinite().all()
    again = two_views(batch, 4_000, (60.0, 60.0))
    assert torch.equal(views.waveforms, again.waveforms)
    own = torch.corrcoef(torch.stack([views.waveforms[1, :3_000], batch.waveforms[1, :3_000]]))[0, 1]
    assert own > 0.99
    assert len(crop(batch.waveforms[0], 100, torch.Generator())) == 100
