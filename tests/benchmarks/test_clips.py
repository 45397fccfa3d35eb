"""What batch= may be, and the noise that it stands for."""

from __future__ import annotations

import pytest
import torch

from speechssl.benchmarks.clips import LEVEL, clip_seconds, make_batch, padding_share
from speechssl.errors import UserError

RATE = 16_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4x5", [5.0] * 4),
        ("10x1.5", [1.5] * 10),
        ("[1.5,3,15]", [1.5, 3.0, 15.0]),
        ("[2, 1]", [2.0, 1.0]),
        ("uneven", [1.0, 3.0, 5.0, 8.0, 12.0, 15.0]),
    ],
)
def test_batches(text, seconds):
    assert clip_seconds(text) == seconds


@pytest.mark.parametrize("text", ["4", "4x", "x5", "4y5", "4x-5", "4x0", "0x5", "[]", "[1,]", "[1,a]", "[0,1]", "1,2"])
def test_what_is_no_batch_is_one_sentence(text):
    with pytest.raises(UserError) as error:
        clip_seconds(text)
    assert str(error.value).startswith(f"batch={text} is no batch: give CLIPSxSECONDS such as 4x5")


def test_padding_share():
    assert padding_share([5.0] * 4) == 0
    assert padding_share([1.0, 3.0, 4.0]) == pytest.approx(1 / 3)  # 8 of 12 seconds are audio


def make(**changes):
    options = {"sample_rate": RATE, "normalize": False, "num_labels": 5, "seed": 0} | changes
    return make_batch([0.5, 1.25], **options)


def test_clips_have_their_length_and_speech_level():
    batch = make()
    assert batch.lengths.tolist() == [8_000, 20_000]
    assert batch.waveforms.shape == (2, 20_000)
    assert not batch.waveforms[0, 8_000:].any()
    for waveform, length in zip(batch.waveforms, batch.lengths, strict=True):
        assert waveform[:length].square().mean().sqrt() == pytest.approx(LEVEL, rel=1e-4)


def test_normalised_clips_have_unit_variance():
    batch = make(normalize=True)
    assert batch.waveforms[1].std() == pytest.approx(1, rel=1e-3)


def test_labels_leave_out_the_blank():
    targets = make().targets
    assert [len(target) for target in targets] == [7, 18]  # 14 a second; 17.5 rounds to even
    assert set(torch.cat(targets).tolist()) <= {1, 2, 3, 4}


def test_the_seed_decides():
    assert torch.equal(make().waveforms, make().waveforms)
    assert not torch.equal(make().waveforms, make(seed=1).waveforms)
