"""The recogniser: text and times of clips that spell what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from speechssl import audio
from speechssl.errors import UserError
from speechssl.recognizer import Recognizer


def test_text_words_times_and_confidence_of_a_file(spelling_model, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("ab c"))
    result = Recognizer(spelling_model).transcribe(path)
    assert result.text == "ab c"
    ab, c = result.words
    # Three frames of 20 ms a character and one of blank: "ab" takes frames 0 to 6, "c" frames 12 to 14.
    assert (ab.text, ab.start_s, ab.end_s) == ("ab", 0.0, pytest.approx(0.14))
    assert (c.text, c.start_s, c.end_s) == ("c", pytest.approx(0.24), pytest.approx(0.30))
    assert c.confidence == pytest.approx(math.exp(5) / (math.exp(5) + 4), abs=1e-5)


def test_arrays_and_tensors_are_taken_with_their_rate(spelling_model, audio_tools):
    recognizer, waveform = Recognizer(spelling_model), audio_tools.spell("cab")
    assert recognizer.transcribe(waveform, 16_000).text == "cab"
    assert recognizer.transcribe(waveform.numpy().astype(np.float64), 16_000).text == "cab"
    slow = waveform.repeat_interleave(2)  # the same sound, sampled twice as often
    assert recognizer.transcribe(slow, sample_rate=32_000).text == "cab"


def test_a_clip_is_decoded_alike_alone_and_in_a_batch(spelling_model, audio_tools):
    recognizer, texts = Recognizer(spelling_model), ["a", "abc cba", "bb"]
    clips = [audio_tools.spell(text) for text in texts]
    lengths = torch.tensor([len(clip) for clip in clips])
    together = recognizer.decode(pad_sequence(clips, batch_first=True), lengths)
    assert [transcript.text for transcript in together] == texts
    alone = [recognizer.decode(c[None], n[None]) for c, n in zip(clips, lengths, strict=True)]
    assert [[transcript] for transcript in together] == alone


def test_the_decoder_can_be_replaced(spelling_model, audio_tools):
    seen = []
    recognizer = Recognizer(spelling_model, decoder=lambda logits: seen.append(logits.shape))
    recognizer.decode(audio_tools.spell("ab")[None], torch.tensor([len(audio_tools.spell("ab"))]))
    assert seen == [(8, 5)]


LONG = "abc cab a bb ccc " * 20 + "abc"  # 343 characters of 80 ms, 27 s


@pytest.mark.parametrize("context_s", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("window_s", [1.3, 5.0])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_no_word_is_lost_or_repeated_at_a_join(spelling_model, audio_tools, tmp_path, name, window_s, context_s):
    path = audio_tools.save(tmp_path / name, audio_tools.spell(LONG))
    whole = Recognizer(spelling_model, window_s=None).transcribe(path)
    windows = Recognizer(spelling_model, window_s=window_s, context_s=context_s)
    assert whole.text == LONG
    assert windows.transcribe(path) == windows.transcribe(audio_tools.spell(LONG), 16_000) == whole


def test_files_of_another_rate_join_as_well(spelling_model, audio_tools, tmp_path):
    slow = audio_tools.spell(LONG).repeat_interleave(2)
    path = audio_tools.save(tmp_path / "a.wav", slow, rate=32_000)
    assert Recognizer(spelling_model, window_s=2.0, context_s=0.1).transcribe(path).text == LONG


@pytest.mark.parametrize("copies", [1, 4])
def test_what_is_read_and_encoded_at_a_time_does_not_grow_with_the_file(
    spelling_model, audio_tools, tmp_path, monkeypatch, copies
):
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell(LONG * copies))
    load, encode, read, encoded = audio.load, spelling_model.encode, [], []

    def counted_load(*args, **options):
        read.append(len(waveform := load(*args, **options)))
        return waveform

    def counted_encode(waveforms, lengths):
        encoded.append(waveforms.numel())
        return encode(waveforms, lengths)

    monkeypatch.setattr("speechssl.audio.load", counted_load)
    spelling_model.encode = counted_encode
    recognizer = Recognizer(spelling_model, window_s=2.0, context_s=0.25)
    [(_, transcript)] = recognizer.transcripts([path], batch_seconds=4.0)
    assert transcript.text == LONG * copies
    assert max(read) <= 45 * 16_000 and max(encoded) <= 4.0 * 16_000
    # Once to look for pauses; and each window moves on by 1.5 s, so a third more is read than there is.
    assert sum(read) == pytest.approx(7 / 3 * len(audio_tools.spell(LONG * copies)), rel=0.1)


def test_short_and_long_files_come_in_their_order(spelling_model, audio_tools, tmp_path):
    texts = ["a", LONG, "b", "abc", LONG + "c"]
    paths = [audio_tools.save(tmp_path / f"{i}.wav", audio_tools.spell(text)) for i, text in enumerate(texts)]
    recognizer = Recognizer(spelling_model, window_s=3.0, context_s=0.5)
    found = list(recognizer.transcripts(paths, batch_seconds=10.0))
    assert [(path, transcript.text) for path, transcript in found] == list(zip(paths, texts, strict=True))


def test_a_long_file_that_breaks_off_leaves_nothing_behind(spelling_model, audio_tools, tmp_path):
    cut = audio_tools.save(tmp_path / "a.flac", audio_tools.spell(LONG))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    good = audio_tools.save(tmp_path / "b.flac", audio_tools.spell(LONG))
    found = Recognizer(spelling_model, window_s=3.0, context_s=0.5).transcripts([cut, good], batch_seconds=3.0)
    path, transcript = next(found)
    assert (path, transcript.text) == (good, LONG)
    with pytest.raises(UserError, match=r"1 of 2 files.*a\.flac"):
        next(found)


def test_each_window_is_normalised_where_the_model_wants_that(spelling_model, audio_tools, tmp_path):
    spelling_model.normalize = True
    waveform = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 0.2, 50_000)
    path, seen = audio_tools.save(tmp_path / "a.wav", waveform), []
    spelling_model.encode = lambda waveforms, lengths: seen.append(waveforms[0]) or 1 / 0
    recognizer = Recognizer(spelling_model, window_s=1.0, context_s=0.1)
    for clip in (path, waveform):
        with pytest.raises(ZeroDivisionError):
            recognizer.transcribe(clip, 16_000)
    from_file, from_array = seen
    assert from_file.std() == pytest.approx(1.0, abs=1e-2) and len(from_file) == len(from_array)
    assert torch.allclose(from_file, from_array, atol=1e-2)  # 16 bits in the file


def test_a_checkpoint_without_ctc_head_is_refused(voice_model):
    with pytest.raises(UserError, match=r"no CTC head.*finetune task=ctc init=run/checkpoints/best"):
        Recognizer(voice_model)


@pytest.mark.parametrize("from_file", [True, False])
def test_a_recording_is_cut_at_its_pauses_into_clips_like_those_of_the_training(
    spelling_model, audio_tools, tmp_path, from_file
):
    spelling_model.objective.clip_seconds = [0.3, 0.6, 1.0]
    texts = ["ab c", "bb", "c a b", "abc", "a"] * 4
    parts = [part for text in texts for part in (audio_tools.spell(text)[:-80], torch.zeros(12_800))]
    waveform = torch.cat([torch.zeros(32_000), *parts, torch.zeros(80)])
    seen, encode = [], spelling_model.encode
    spelling_model.encode = lambda waveforms, n: seen.extend(n.tolist()) or encode(waveforms, n)
    recognizer = Recognizer(spelling_model, context_s=0.1)
    source = audio_tools.save(tmp_path / "a.wav", waveform) if from_file else waveform
    found = recognizer.transcribe(source, 16_000)
    assert found.text == " ".join(texts)
    assert max(seen) <= 1.3 * 16_000 and len(seen) == 20
    # Silence of 2 s, then a character takes 80 ms; after "ab c" 800 ms of silence.
    assert found.words[0].start_s == pytest.approx(2.0)
    assert found.words[2].start_s == pytest.approx(2.0 + 4 * 0.08 + 0.8)
    assert found.duration_s == pytest.approx(len(waveform) / 16_000, abs=0.03)


def test_nothing_but_silence_says_nothing(spelling_model, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "a.wav", torch.zeros(40 * 16_000))
    assert Recognizer(spelling_model).transcribe(path).text == ""
