"""A manifest's clips as waveforms."""

from __future__ import annotations

import pytest
import torch

from speechssl import audio
from speechssl.data.dataset import BrokenClip, ClipDataset, Example
from speechssl.manifest import Manifest


@pytest.fixture
def build(write_corpus):
    """`build(**options)`: four clips of 0.5, 0.6, 0.4 and 0.8 s."""

    def make(**options):
        defaults = {"sample_rate": 16_000, "normalize": False, "seed": 0}
        return ClipDataset(Manifest(write_corpus()), **defaults | options)

    return make


def test_a_clip_is_what_audio_reads(build):
    example = build(encode=lambda utterance: torch.tensor([len(utterance.text)]))[0, 1]
    assert isinstance(example, Example)
    assert torch.equal(example.waveform, audio.load(example.utterance.audio_path))
    assert (example.utterance.id, len(example.waveform), example.target.tolist()) == ("1", 9_600, [2])
    assert build()[0, 1].target is None


def test_clips_are_at_the_models_rate_and_level(build):
    waveform = build(sample_rate=8_000, normalize=True)[0, 1].waveform
    assert len(waveform) == 4_800
    assert waveform.mean().item() == pytest.approx(0, abs=1e-5)
    assert waveform.var(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_long_clips_are_cropped_at_a_place_of_seed_epoch_and_clip(build):
    cropped = build(max_clip_s=0.5)
    for index, seconds in enumerate((0.5, 0.5, 0.4, 0.5)):
        assert len(cropped[0, index].waveform) == round(seconds * 16_000)
    whole, part = build()[0, 3].waveform, cropped[0, 3].waveform
    assert any(torch.equal(part, whole[start : start + 8_000]) for start in range(4_801))
    assert torch.equal(part, build(max_clip_s=0.5)[0, 3].waveform)
    assert not torch.equal(part, cropped[1, 3].waveform)
    assert not torch.equal(part, build(max_clip_s=0.5, seed=1)[0, 3].waveform)


def test_seeds_differ_by_run_epoch_and_clip(build):
    seeds = {build(seed=seed)[epoch, index].seed for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)}
    assert len(seeds) == 8
    assert build()[1, 1].seed == build()[1, 1].seed


def test_a_clip_that_cannot_be_read_is_an_answer(build):
    clips = build()
    clips.manifest[2].audio_path.write_bytes(b"RIFF")
    answer = clips[0, 2]
    assert isinstance(answer, BrokenClip)
    assert (answer.utterance.id, "2.wav" in answer.reason) == ("2", True)
