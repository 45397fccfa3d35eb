"""Windows against the frames of the whole recording, and against hand-counted ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import SpeechModel
from speechssl.models.encoder import Encoder
from speechssl.recognizer import Recognizer
from speechssl.windows import WHOLE, Windowing

RATE = 16_000


def windowing(config, window_s, context_s):
    return Windowing(config, sample_rate=RATE, window_s=window_s, context_s=context_s)


def test_windows_by_hand(small_config):
    # Windows of 10 frames (9 hops and a field of 400 samples) with a context of 3 on a recording of 16 frames.
    first, second, third = windowing(small_config(), 0.205, 0.06).cut(15 * 320 + 400)
    assert (first.start, first.end, first.keep) == (0, 9 * 320 + 400, slice(0, 7))  # frames 0 to 6
    assert (second.start, second.end, second.keep) == (4 * 320, 13 * 320 + 400, slice(3, 7))  # 7 to 10
    assert (third.start, third.end, third.keep) == (6 * 320, None, slice(5, None))  # 11 to 15, moved back
    assert [(w.is_first, w.is_last) for w in (first, second, third)] == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize(("window_s", "context_s"), [(0.205, 0.06), (0.025, 0.0), (0.3, 0.0), (1.0, 0.45)])
def test_the_frames_kept_are_those_of_the_recording_once_each(small_config, window_s, context_s):
    config = small_config()
    for length in (400, 1039, 1040, 3280, 3599, 3600, 16_000, 31_999, 50_123):
        total = (length - 400) // 320 + 1
        kept = []
        for window in windowing(config, window_s, context_s).cut(length):
            end = length if window.end is None else window.end
            assert window.start % 320 == 0 and 0 <= window.start < end <= length
            frames = range((end - window.start - 400) // 320 + 1)
            kept += [window.start // 320 + frame for frame in frames[window.keep]]
        assert kept == list(range(total))


def test_a_recording_of_a_window_is_not_cut(small_config):
    assert windowing(small_config(), 1.0, 0.2).cut(RATE) == [WHOLE]
    # 49 frames need 48 * 320 + 400 = 15,760 samples, and the fiftieth 320 more.
    assert windowing(small_config(), 1.0, 0.2).cut(16_079) == [WHOLE]
    assert len(windowing(small_config(), 1.0, 0.2).cut(16_080)) == 2


@pytest.mark.parametrize(("window_s", "context_s"), [(2.0, 1.0), (1.0, 2.0), (0.02, 0.0)])
def test_a_window_within_its_contexts_is_refused(small_config, window_s, context_s):
    with pytest.raises(UserError, match=f"window_s={window_s:g}.*context_s={context_s:g}"):
        windowing(small_config(), window_s, context_s)


@pytest.fixture
def model(small_config):
    """Layer norm and no attention, so that a frame sees its field and 4 neighbours either side, and no more."""
    torch.manual_seed(0)
    encoder = Encoder(small_config(conv_norm="layer", num_layers=0, hidden_size=32)).eval()
    head = CTCObjective(
        encoder.config,
        vocabulary=["<blank>", " ", *"abcdef"],
        lowercase=False,
        dropout=0.0,
        mask_start_probability=0.0,
        mask_span=10,
        freeze_feature_encoder=False,
        freeze_encoder=0.0,
    ).eval()
    for parameter in [*head.parameters(), *encoder.context.positions.parameters()]:
        nn.init.normal_(parameter)
    return SpeechModel(encoder, head, RATE, normalize=False, device=torch.device("cpu"), source="run")


def in_windows(model, waveform, *, context_s):
    """The logits that the decoder is given."""
    recognizer = Recognizer(model, decoder=lambda logits: logits, window_s=0.5, context_s=context_s)
    [logits] = recognizer.decode(waveform[None], torch.tensor([len(waveform)]))
    return logits


def test_with_enough_context_the_logits_are_those_of_the_whole(model):
    waveform = torch.randn(35_000, generator=torch.Generator().manual_seed(1))
    [whole] = Recognizer(model).logits(waveform[None], torch.tensor([35_000]))
    enough, none = (in_windows(model, waveform, context_s=context_s) for context_s in (0.08, 0.0))
    assert enough.shape == none.shape == whole.shape == ((35_000 - 400) // 320 + 1, 8)
    assert torch.allclose(enough, whole, atol=1e-4)
    text = Recognizer(model, window_s=None).transcribe(waveform, RATE).text
    assert len(text) > 20
    assert Recognizer(model, window_s=0.5, context_s=0.08).transcribe(waveform, RATE).text == text
    differ = (none - whole).abs().amax(1) > 1e-2  # without context the joins show
    assert differ.any() and differ.sum() <= 8 * math.ceil(35_000 / 8_000)
