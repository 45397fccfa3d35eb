"""The recogniser: text and times of clips that spell what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

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


def test_a_checkpoint_without_ctc_head_is_refused(voice_model):
    with pytest.raises(UserError, match=r"no CTC head.*finetune task=ctc init=run/checkpoints/best"):
        Recognizer(voice_model)
