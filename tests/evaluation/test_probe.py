"""Probes on features whose best linear answer is known, and the floors' features against their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from speechssl.data.text import Vocabulary
from speechssl.evaluation.probe import WEIGHTED, Split, probe, verify

OPTIONS = {"lrs": [1e-4, 1e-2, 1e-1], "steps": 120, "batch_clips": 32, "seed": 0}


def classes(seed, num_clips=150, num_classes=3, size=6):
    """Layer 0 holds nothing about the class, layer 1 something; on scales far from 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_clips)
    centres = np.random.default_rng(99).normal(size=(num_classes, size))
    noise = rng.normal(size=(2, num_clips, size))
    layers = [100 * noise[0] + 7, 0.01 * (centres[labels] + 0.8 * noise[1])]
    return Split([list(torch.tensor(x, dtype=torch.float32)) for x in layers], list(torch.tensor(labels)))


def test_a_layer_that_knows_and_one_that_does_not():
    splits = {name: classes(seed) for seed, name in enumerate(("train", "valid", "test"))}
    noise, signal, weighted = probe(splits, ["0", "1"], num_outputs=3, vocabulary=None, **OPTIONS)
    assert (noise.layer, signal.layer, weighted.layer) == ("0", "1", WEIGHTED)
    assert noise.test < 0.5 < signal.test
    arrays = {name: (torch.stack(s.layers[1]).numpy(), torch.stack(s.labels).numpy()) for name, s in splits.items()}
    scaler = StandardScaler().fit(arrays["train"][0])
    theirs = LogisticRegression(C=100.0).fit(scaler.transform(arrays["train"][0]), arrays["train"][1])
    expected = theirs.score(scaler.transform(arrays["test"][0]), arrays["test"][1])
    assert signal.test == pytest.approx(expected, abs=0.05)
    assert weighted.test > noise.test + 0.2
    low, high = signal.interval
    assert low < signal.test < high and 0.05 < high - low < 0.3  # 150 clips: about 2 * 1.96 * sqrt(p (1 - p) / 150)
    assert signal.valid == max(signal.lrs.values()) == signal.lrs[signal.lr]
    assert set(signal.lrs) == set(OPTIONS["lrs"])


def test_a_probe_is_the_same_again():
    splits = {name: classes(seed) for seed, name in enumerate(("train", "valid", "test"))}
    one, again = (probe(splits, ["0", "1"], num_outputs=3, vocabulary=None, **OPTIONS) for _ in range(2))
    assert one == again


def test_characters_by_ctc():
    """Frames are noisy one-hot symbols; a blank between equal neighbours."""
    vocabulary = Vocabulary(("<blank>", "a", "b", "c"))
    rng = np.random.default_rng(0)

    def clips(count):
        frames, labels = [], []
        for _ in range(count):
            label = rng.integers(1, 4, size=rng.integers(2, 6))
            path = [x for symbol in label for x in (symbol, symbol, 0)]
            frames.append(torch.tensor(np.eye(4)[path] + 0.1 * rng.normal(size=(len(path), 4))).half())
            labels.append(torch.tensor(label))
        return Split([frames], labels)

    splits = {"train": clips(60), "valid": clips(10), "test": clips(20)}
    [result] = probe(splits, ["0"], num_outputs=4, vocabulary=vocabulary, **OPTIONS)
    assert result.test < 0.05 and set(result.lrs) == set(OPTIONS["lrs"])


@pytest.mark.parametrize("clips_a_speaker", [1, 3])
def test_other_speakers_are_told_apart_by_whitened_cosines(clips_a_speaker):
    """A direction that varies within speakers only, and loudly: without whitening it drowns the voices."""
    rng = np.random.default_rng(0)

    def clips(num_speakers, each):
        whose = np.repeat(np.arange(num_speakers), each)
        x = np.concatenate([rng.normal(size=(num_speakers, 5))[whose], 50 * rng.normal(size=(len(whose), 1))], 1)
        x[:, :5] += 0.2 * rng.normal(size=(len(whose), 5))
        return Split([list(torch.tensor(x, dtype=torch.float32))], list(torch.tensor(whose))), whose

    train, _ = clips(60, clips_a_speaker)
    others, whose = clips(20, 2)
    found = verify(train, others, 0, speakers=whose.astype(str), p_target=0.05)
    assert found["num_target_trials"] == 20 and found["num_trials"] == 40 * 39 // 2
    assert found["eer"] < 0.12
    low, high = found["eer_interval"]
    assert low <= found["eer"] <= high
