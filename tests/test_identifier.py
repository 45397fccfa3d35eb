"""The identifier: speakers and likeness of clips whose voice is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from speechssl.errors import UserError
from speechssl.identifier import Identifier


def test_the_speaker_of_a_file(voice_model, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("bbbb"))
    found = Identifier(voice_model).identify(path)
    assert found.label == "bob"
    assert 1 / 3 < found.score < 1


def test_scores_are_the_softmax_over_known_speakers(voice_model, audio_tools):
    identifier = Identifier(voice_model)
    embedding = identifier.embed_clip(audio_tools.spell("cca"), 16_000)
    # The head takes the share of "a", "b" and "c" out of the embedding: places 2, 3 and 4.
    probabilities = embedding[2:5].exp() / embedding[2:5].exp().sum()
    [found] = identifier.classify(embedding[None])
    assert found.label == "cid"
    assert found.score == pytest.approx(probabilities[2].item(), abs=1e-6)


def test_the_same_voice_is_more_alike(voice_model, audio_tools, tmp_path):
    paths = {
        text: audio_tools.save(tmp_path / f"{i}.wav", audio_tools.spell(text))
        for i, text in enumerate(["aaa", "aaaaaaab", "ccc"])
    }
    identifier = Identifier(voice_model)
    assert identifier.compare(paths["aaa"], paths["aaa"]) == pytest.approx(1.0, abs=1e-5)
    same, other = (identifier.compare(paths["aaa"], paths[x]) for x in ("aaaaaaab", "ccc"))
    assert other < same < 1
    one, two = (identifier.embed_clip(paths[x]).double().numpy() for x in ("aaa", "ccc"))
    assert other == pytest.approx((one @ two) / ((one @ one) * (two @ two)) ** 0.5, abs=1e-5)


def test_a_clip_is_embedded_alike_alone_and_in_a_batch(voice_model, audio_tools):
    identifier = Identifier(voice_model)
    clips = [audio_tools.spell(text) for text in ("ab", "cccccc a", "b")]
    lengths = torch.tensor([len(clip) for clip in clips])
    together = identifier.embed(pad_sequence(clips, batch_first=True), lengths)
    alone = torch.cat([identifier.embed(c[None], n[None]) for c, n in zip(clips, lengths, strict=True)])
    torch.testing.assert_close(together, alone)


def test_a_long_recording_is_the_mean_of_its_minutes(voice_model, audio_tools, monkeypatch, tmp_path):
    monkeypatch.setattr("speechssl.identifier.WINDOW_S", 0.5)
    identifier = Identifier(voice_model)
    waveform = audio_tools.spell("aaaabbbbccc" * 3)
    path = audio_tools.save(tmp_path / "long.wav", waveform)
    windows = identifier.windowing.cut(len(waveform))
    assert len(windows) > 2
    parts = [identifier.embed_clip(waveform[window.start : window.end], 16_000) for window in windows]
    [(_, found)] = identifier.embed_files([path], batch_seconds=1.2)  # two windows at a time
    torch.testing.assert_close(found, torch.stack(parts).mean(0), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_without_classifier_is_refused(spelling_model):
    with pytest.raises(UserError, match=r"no classifier.*finetune task=speaker"):
        Identifier(spelling_model)


def test_a_silent_part_of_a_long_recording_says_nothing(voice_model, audio_tools, monkeypatch, tmp_path):
    """And one that is all silence is refused, as a short one is."""
    monkeypatch.setattr("speechssl.identifier.WINDOW_S", 0.5)
    identifier = Identifier(voice_model)
    silence, alone = torch.zeros(24_000), audio_tools.save(tmp_path / "alone.wav", audio_tools.spell("aaa"))
    waveform = torch.cat((audio_tools.spell("aaab" * 2), silence, audio_tools.spell("bbb")))
    path = audio_tools.save(tmp_path / "long.wav", waveform)
    parts = [waveform[window.start : window.end] for window in identifier.windowing.cut(len(waveform))]
    voices = [identifier.embed_clip(part, 16_000) for part in parts if part.any()]
    assert len(parts) - 3 < len(voices) < len(parts)
    [(_, found)] = identifier.embed_files([path], batch_seconds=1.2)
    torch.testing.assert_close(found, torch.stack(voices).mean(0), atol=1e-4, rtol=1e-4)
    nothing = audio_tools.save(tmp_path / "nothing.wav", silence)
    found = identifier.embed_files([nothing, alone], batch_seconds=2.0)
    assert next(found)[0] == alone
    with pytest.raises(UserError, match=r"nothing.wav: is silence, in which there is no voice; give another"):
        next(found)
