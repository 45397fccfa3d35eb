"""BEST-RQ's labels against a numpy search for the nearest codeword."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.models.encoder import Encoder
from speechssl.models.spectrum import LogMel
from speechssl.objectives.best_rq import BestRQObjective

LENGTHS = [16_000, 9_999, 3_000]


@pytest.fixture
def build(small_config):
    """`build(**options)`: a small encoder and objective."""

    def make(**options):
        torch.manual_seed(0)
        encoder = Encoder(small_config())
        values = {
            "sample_rate": 16_000,
            "num_codewords": 32,
            "code_size": 4,
            "logits": "linear",
            "final_size": 8,
            "temperature": 0.1,
            "unmasked_weight": 0.0,
            "mask_start_probability": 0.1,
            "mask_span": 5,
            "mask_min_spans": 1,
            "feature_gradient_scale": 1.0,
        }
        return encoder, BestRQObjective(encoder.config, **values | options)

    return make


def test_labels_are_the_nearest_codewords(build, make_batch):
    encoder, objective = build()
    batch = make_batch(LENGTHS, padding=float("nan"))
    counts = [encoder.config.num_frames(n) for n in LENGTHS]
    found = objective.labels(batch, counts).split(counts)
    mel = LogMel(hop=320, field=400, sample_rate=16_000, num_bins=80)
    codebook = objective.codebook.numpy().astype(np.float64)
    for waveform, n, count, labels in zip(batch.waveforms, LENGTHS, counts, found, strict=True):
        x = mel(waveform[None, :n], torch.tensor([n]), [count]).flatten(1).double().numpy()
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        projected = x @ objective.projection.double().numpy()
        projected /= np.linalg.norm(projected, axis=1, keepdims=True)
        distances = np.square(projected[:, None] - codebook[None]).sum(-1)
        assert (labels.numpy() == distances.argmin(1)).mean() >= 0.98  # single precision decides ties otherwise


def test_projection_and_codebook_stay_as_they_begin(build, make_batch):
    encoder, objective = build()
    assert {name for name, _ in objective.named_parameters()} == {"head.projection.weight", "head.projection.bias"}
    assert {"projection", "codebook"} <= objective.state_dict().keys()
    assert objective.codebook.norm(dim=-1).tolist() == pytest.approx([1.0] * 32)
    loss = objective(encoder, make_batch(LENGTHS)).terms["masked"].sum
    loss.backward()
    assert objective.codebook.grad is None
    assert encoder.feature_encoder.layers[0].weight.grad.abs().sum() > 0
