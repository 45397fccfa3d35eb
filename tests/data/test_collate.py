"""Examples to a batch."""

from __future__ import annotations

import torch

from speechssl.data.collate import BrokenClip, Example, collate
from speechssl.types import Utterance


def example(name, num_samples, tmp_path, target=None):
    waveform = torch.full((num_samples,), float(num_samples))
    return Example(waveform, num_samples, Utterance(name, tmp_path / f"{name}.wav", 1.0), target)


def test_clips_come_longest_first_with_all_that_is_theirs(tmp_path):
    examples = [example(name, n, tmp_path, torch.tensor([n])) for name, n in (("a", 5), ("b", 9), ("c", 7))]
    batch, broken = collate(examples, min_samples=5)
    assert broken == []
    assert [utterance.id for utterance in batch.utterances] == ["b", "c", "a"]
    assert batch.lengths.tolist() == batch.seeds == [9, 7, 5]
    assert [target.tolist() for target in batch.targets] == [[9], [7], [5]]
    for waveform, n in zip(batch.waveforms, [9, 7, 5], strict=True):
        assert waveform.tolist() == [float(n)] * n + [0.0] * (9 - n)


def test_broken_and_too_short_clips_are_told_apart_from_the_rest(tmp_path):
    gone = BrokenClip(Utterance("gone", tmp_path / "gone.wav", 1.0), "no such file")
    batch, broken = collate([gone, example("short", 4, tmp_path), example("good", 5, tmp_path)], min_samples=5)
    assert [utterance.id for utterance in batch.utterances] == ["good"]
    assert batch.targets is None
    assert [clip.utterance.id for clip in broken] == ["gone", "short"]
    assert "short.wav gives 4 samples, fewer than the 5" in broken[1].reason


def test_no_clip_is_no_batch(tmp_path):
    assert collate([example("short", 4, tmp_path)], min_samples=5)[0] is None
