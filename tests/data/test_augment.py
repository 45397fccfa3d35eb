"""Augmentation: what each effect does to a clip, that it is a function of the seed alone, and that it can be off."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from speechssl import manifest
from speechssl.data.augment import Augment, coded, colored_noise, room_response
from speechssl.errors import UserError
from speechssl.rng import generator

RATE = 16_000
TONE = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(2 * RATE) / RATE)


def augment(**changes):
    options = {
        "sample_rate": RATE,
        "speed_probability": 0.0,
        "speed_factors": [0.9, 1.1],
        "room_probability": 0.0,
        "room": None,
        "room_rt60_s": [0.3, 0.6],
        "noise_probability": 0.0,
        "noise": None,
        "noise_snr_db": [5.0, 20.0],
        "gain_probability": 0.0,
        "gain_db": [-10.0, -2.0],
        "codec_probability": 0.0,
        "codecs": ["opus", "mp3"],
    }
    return Augment(**options | changes)


EFFECTS = ("speed", "room", "noise", "gain", "codec")


def test_nothing_happens_at_probability_0():
    assert augment()(TONE, 3) is TONE
    assert augment().fastest == 1.0


@pytest.mark.parametrize("effect", EFFECTS)
def test_each_effect_is_a_function_of_the_seed(effect):
    change = augment(**{f"{effect}_probability": 1.0})
    changed = change(TONE, 3)
    assert torch.equal(changed, change(TONE, 3))
    assert not torch.equal(changed[:1000], TONE[:1000])
    assert changed.dtype == torch.float32 and changed.isfinite().all()
    others = [change(TONE, seed) for seed in range(4, 10)]
    assert any(len(other) != len(changed) or not torch.equal(other, changed) for other in others)


def test_an_effect_changes_none_of_the_others():
    gains = [augment(gain_probability=0.5, noise_probability=p)(torch.ones(100), 7).mean() for p in (0.0, 0.0)]
    assert gains[0] == gains[1]
    drawn = [augment(speed_probability=0.5, noise_probability=p).speed(s) for s in range(50) for p in (0.0, 1.0)]
    assert drawn[::2] == drawn[1::2]


def test_probabilities_are_kept():
    drawn = [augment(speed_probability=0.4).speed(seed) for seed in range(1000)]
    # Four standard deviations of a binomial: sqrt(1000 * 0.4 * 0.6) = 15.5.
    assert abs(sum(speed != 1.0 for speed in drawn) - 400) < 62
    assert abs(drawn.count(0.9) - 200) < 51


def test_speed_changes_length_and_pitch():
    change = augment(speed_probability=1.0, speed_factors=[1.1])
    changed = change(TONE, 0)
    assert len(changed) == pytest.approx(2 * RATE / 1.1, abs=1)
    spectrum = np.abs(np.fft.rfft(changed.numpy()))
    assert np.argmax(spectrum) * RATE / len(changed) == pytest.approx(484, abs=1)  # 440 Hz, 1.1 times faster
    assert change.fastest == 1.1


@pytest.mark.parametrize("recorded", [False, True])
def test_noise_has_the_level_that_was_asked_for(tmp_path, recorded):
    noise = None
    if recorded:
        samples = np.random.default_rng(0).normal(0, 0.01, RATE // 2)  # shorter than the clip
        soundfile.write(tmp_path / "noise.wav", samples, RATE)
        noise = tmp_path / "noise.jsonl"
        manifest.write(noise, [{"audio_filepath": "noise.wav", "duration": 0.5}])
    change = augment(noise_probability=1.0, noise_snr_db=[10.0, 10.0], noise=noise)
    added = change(TONE, 0) - TONE
    snr_db = 10 * torch.log10(TONE.square().mean() / added.square().mean())
    assert snr_db.item() == pytest.approx(10.0, abs=0.1)
    assert torch.equal(change(torch.zeros(100), 0), torch.zeros(100))


def test_a_room_keeps_the_direct_sound_in_place(tmp_path):
    click = torch.zeros(RATE)
    click[5000] = 0.5
    made = augment(room_probability=1.0)(click, 0)
    assert int(made.abs().argmax()) == 5000 and made[5000].item() == pytest.approx(0.5, abs=1e-3)
    assert made[:4999].abs().max() < 1e-5 and made[5100:9000].square().sum() > 0
    response = np.zeros(300)
    response[[100, 200]] = 0.5, -0.2
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    manifest.write(tmp_path / "room.jsonl", [{"audio_filepath": "room.wav", "duration": 300 / RATE}])
    recorded = augment(room_probability=1.0, room=tmp_path / "room.jsonl")(click, 0)
    expected = torch.zeros(RATE)
    expected[[5000, 5100]] = torch.tensor([0.5, -0.2])
    torch.testing.assert_close(recorded, expected, atol=1e-5, rtol=0)


def test_a_made_room_decays_by_60_db_in_its_time():
    response = room_response(0.5, RATE, generator(0)).numpy()
    energy = np.cumsum(response[::-1] ** 2)[::-1]  # Schroeder's backward integral
    decay_db = 10 * np.log10(energy / energy[int(0.01 * RATE)])
    # From -5 to -35 dB it takes half of the time, were the tail not cut off at its end.
    begin, end = (int(np.argmax(decay_db[int(0.01 * RATE) :] < level)) for level in (-5, -35))
    assert (end - begin) / RATE == pytest.approx(0.25, rel=0.15)


@pytest.mark.parametrize("codec", ["opus", "mp3"])
def test_a_codec_keeps_length_place_and_most_of_the_sound(codec):
    speech = TONE * (1 + torch.sin(2 * torch.pi * 3 * torch.arange(len(TONE)) / RATE))
    for clip in (speech, speech[:5_001], 3 * speech):  # the last is beyond full scale
        back = coded(clip, codec, sample_rate=RATE, compression=0.5)
        assert back.shape == clip.shape
        assert torch.corrcoef(torch.stack([clip, back]))[0, 1] > 0.98
        assert not torch.equal(back, clip)
    assert coded(TONE[:8000], codec, sample_rate=22_050, compression=0.5).shape == (8000,)


def test_made_noise_is_at_unit_level():
    for seed in range(5):
        assert colored_noise(8000, generator(seed)).square().mean().item() == pytest.approx(1.0, abs=1e-3)


def test_users_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"augment\.codecs has 'aac'"):
        augment(codecs=["aac"])
    with pytest.raises(UserError, match=r"augment\.speed_factors=\[3\.0\]"):
        augment(speed_factors=[3.0])
    with pytest.raises(UserError, match="cannot read this manifest"):
        augment(noise=tmp_path / "none.jsonl")
