"""Log-mel and MFCC against torchaudio's Kaldi features, at the frames of encoders of several shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas

from speechssl.models.spectrum import MFCC, LogMel, standardize

LENGTHS = [16_000, 9_999, 400]


def frames(length, hop=320, field=400):
    return (length - field) // hop + 1


def reference(clip, kind, **options):
    """Kaldi's features every 10 ms, with zeros behind the clip's end for the windows that reach over it."""
    clip = torch.nn.functional.pad(clip, (0, 800))
    return getattr(kaldi, kind)(clip[None], dither=0.0, sample_frequency=16_000, **options)


def test_log_mel_is_that_of_kaldi_at_every_frame(make_batch):
    batch = make_batch(LENGTHS, padding=float("nan"))
    found = LogMel(hop=320, field=400, sample_rate=16_000, num_bins=80)(
        batch.waveforms, batch.lengths, [frames(n) for n in LENGTHS]
    )
    assert found.shape[1:] == (2, 80)
    for clip, n, ours in zip(batch.waveforms, LENGTHS, found.split([frames(n) for n in LENGTHS]), strict=True):
        theirs = reference(clip[:n], "fbank", num_mel_bins=80)
        torch.testing.assert_close(ours.flatten(0, 1), theirs[: 2 * len(ours)], rtol=1e-4, atol=1e-3)


def test_windows_lie_in_the_middle_of_what_a_frame_sees(make_batch):
    """An encoder that sees 720 samples: its window of 400 begins 160 samples later."""
    batch = make_batch([8000])
    wide = LogMel(hop=640, field=720, sample_rate=16_000, num_bins=40)
    found = wide(batch.waveforms, batch.lengths, [frames(8000, 640, 720)])
    theirs = reference(batch.waveforms[0], "fbank", num_mel_bins=40)
    torch.testing.assert_close(found.flatten(0, 1), theirs[1 : 1 + 4 * len(found)], rtol=1e-4, atol=1e-3)


def test_mfcc_is_that_of_kaldi_with_differences(make_batch):
    batch = make_batch(LENGTHS[:2], padding=float("nan"))
    counts = [frames(n) for n in LENGTHS[:2]]
    found = MFCC(hop=320, field=400, sample_rate=16_000)(batch.waveforms, batch.lengths, counts)
    for clip, n, ours in zip(batch.waveforms, LENGTHS, found.split(counts), strict=False):
        x = reference(clip[:n], "mfcc", num_mel_bins=23, num_ceps=13, use_energy=False)[: 2 * len(ours)].T
        first = compute_deltas(x)
        expected = torch.cat([x, first, compute_deltas(first)]).T[::2]
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=5e-3)


def test_silence_is_finite():
    silent = torch.zeros(1, 16_000)
    found = LogMel(hop=320, field=400, sample_rate=16_000, num_bins=80)(silent, torch.tensor([16_000]), [49])
    assert found.isfinite().all()


def test_standardized_clips_have_mean_0_and_variance_1_over_their_own_time():
    x = 3 + 2 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = standardize(x, [30, 20])
    for part, source in zip(found.split([30, 20]), x.split([30, 20]), strict=True):
        source = source.numpy()
        expected = (source - source.mean(0)) / np.sqrt(source.var(0) + 1e-5)
        assert part.numpy() == pytest.approx(expected, abs=1e-5)
