"""A manifest's clips as waveforms."""

from __future__ import annotations

import pytest
import torch

from speechssl import audio
from speechssl.data.augment import Augment
from speechssl.data.collate import BrokenClip, Example
from speechssl.data.dataset import ClipDataset
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


@pytest.mark.parametrize("values", [None, 10, 200_000])  # none, too little, and more than the batch needs
def test_a_batch_is_its_clips_padded_whatever_the_memory(build, values):
    clips = build()
    keys = [(0, index) for index in range(4)]
    alone = {clips[key].utterance.id: clips[key] for key in keys}
    for options in ({}, {"normalize": True}, {"sample_rate": 8_000}):
        clips = build(**options)
        memory = None if values is None else torch.full((values,), 7.0)
        batch, broken = clips.batch(keys, min_samples=400, memory=memory)
        assert not broken and batch.waveforms.is_contiguous()
        assert batch.waveforms.shape == (4, max(batch.lengths))
        assert [utterance.id for utterance in batch.utterances] == ["3", "1", "0", "2"]
        for waveform, length, utterance in zip(batch.waveforms, batch.lengths, batch.utterances, strict=True):
            expected = build(**options)[0, int(utterance.id)].waveform
            assert torch.equal(waveform[:length], expected) and not waveform[length:].any()
        assert batch.seeds == [alone[utterance.id].seed for utterance in batch.utterances]


@pytest.mark.parametrize("broken_clip", [0, 2, 3])
def test_a_batch_without_its_broken_clip(build, broken_clip):
    clips = build()
    clips.manifest[broken_clip].audio_path.write_bytes(b"RIFF")
    batch, broken = clips.batch([(0, index) for index in range(4)], min_samples=400)
    assert [clip.utterance.id for clip in broken] == [str(broken_clip)]
    assert [u.id for u in batch.utterances] == [i for i in ("3", "1", "0", "2") if i != str(broken_clip)]
    for waveform, length, utterance in zip(batch.waveforms, batch.lengths, batch.utterances, strict=True):
        assert torch.equal(waveform[:length], clips[0, int(utterance.id)].waveform) and not waveform[length:].any()


def test_a_faster_clip_is_read_longer_so_that_it_fills_its_crop(build):
    def augment(factor):
        return Augment(
            sample_rate=16_000,
            speed_probability=1.0,
            speed_factors=[factor],
            **{f"{name}_probability": 0.0 for name in ("room", "noise", "gain", "codec")},
            room=None,
            noise=None,
            room_rt60_s=[0.2, 0.4],
            noise_snr_db=[5, 10],
            gain_db=[0, 0],
            codecs=["opus"],
        )

    for factor in (0.9, 1.1):
        clips = build(max_clip_s=0.5, augment=augment(factor))
        assert len(clips[0, 3].waveform) == pytest.approx(8_000, abs=2)
        whole = build(augment=augment(factor))[0, 3].waveform
        assert len(whole) == pytest.approx(0.8 * 16_000 / factor, abs=2)
        batch, _ = clips.batch([(0, 3), (0, 1)], min_samples=400)
        assert torch.equal(
            batch.waveforms[0, : batch.lengths[0]], clips[0, 3 if batch.utterances[0].id == "3" else 1].waveform
        )
