"""DirectPred's and DirectCopy's predictors and VICReg's terms against numpy; where gradient stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder
from speechssl.objectives.byol import BYOLObjective

LENGTHS = [12_000, 9_000, 9_000, 7_600]
OPTIONS = {
    "sample_rate": 16_000,
    "crop_s": 0.3,
    "noise_snr_db": (10.0, 40.0),
    "teacher": "none",
    "predictor": "mlp",
    "stop_gradient": True,
    "final_size": 6,
    "correlation_decay": 0.3,
    "correlation_eps": 0.1,
    "variance_weight": 0.0,
    "covariance_weight": 0.0,
    "teacher_memory": (0.1, 0.1),
    "teacher_anneal": 0.0,
    "feature_gradient_scale": 1.0,
}


@pytest.fixture
def build(small_config):
    """`build(**options)`: encoder and objective in training mode."""

    def make(**options):
        torch.manual_seed(0)
        encoder = Encoder(small_config()).train()
        objective = BYOLObjective(encoder.config, **OPTIONS | options).train()
        objective.begin_step(1, 10)
        return encoder, objective

    return make


@pytest.mark.parametrize("kind", ["direct", "copy"])
def test_predictors_follow_from_the_correlation_matrix(build, kind):
    _, objective = build(predictor=kind)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    objective._correlate(torch.from_numpy(x[:20]))
    objective._correlate(torch.from_numpy(x[20:]))
    correlation = 0.3 * x[:20].T @ x[:20] / 20 + 0.7 * x[20:].T @ x[20:] / 20
    assert objective.correlation.numpy() == pytest.approx(correlation, abs=1e-4)
    values, vectors = np.linalg.eigh(correlation)
    if kind == "direct":
        expected = vectors @ np.diag(np.sqrt(values / values.max()) + 0.1) @ vectors.T
    else:
        expected = correlation / np.linalg.norm(correlation, 2) + 0.1 * np.eye(6)
    assert objective.weights().numpy() == pytest.approx(expected, abs=1e-4)
    assert "correlation" in objective.state_dict()


def test_variance_and_covariance_are_those_of_numpy(build):
    _, objective = build(variance_weight=1.0, covariance_weight=0.5)
    x = np.random.default_rng(0).normal(size=(2, 10, 6)) * 0.5
    found = objective._decorrelate(torch.from_numpy(x.reshape(20, 6)), 20)
    variance = covariance = 0.0
    for part in x:
        matrix = np.cov(part.T)
        variance += np.maximum(1 - np.sqrt(np.diag(matrix) + 1e-4), 0).mean() / 2
        covariance += (np.square(matrix).sum() - np.square(np.diag(matrix)).sum()) / 6 / 2
    assert found["variance"].sum.item() / 20 == pytest.approx(variance, rel=1e-6)
    assert found["covariance"].sum.item() / 20 == pytest.approx(covariance, rel=1e-6)
    assert found["covariance"].weight == 0.5


def test_gradient_stops_at_targets_unless_it_is_asked_for(build, make_batch):
    batch, losses = make_batch(LENGTHS), {}
    for stop in (True, False):
        encoder, objective = build(predictor="none", stop_gradient=stop)
        term = objective(encoder, batch).terms["similarity"]
        term.sum.backward()
        losses[stop] = term.sum.item(), objective.projector[3].weight.grad.clone()
    assert losses[True][0] == losses[False][0]
    # Without a predictor both ways are alike: half of the gradient was stopped.
    torch.testing.assert_close(losses[False][1], 2 * losses[True][1], rtol=1e-3, atol=1e-4)


def test_the_teachers_projections_are_the_targets(build, make_batch):
    encoder, objective = build(teacher="ema")
    found = objective(encoder, make_batch(LENGTHS)).terms["similarity"]
    assert (found.count, bool(objective.teacher.started)) == (8, True)
    assert 0 <= found.sum.item() <= 4 * 8
    assert not any(p.requires_grad for p in objective.teacher.parameters())


def test_unknown_kinds_are_one_sentence(build):
    with pytest.raises(UserError, match=r"objective\.teacher is 'slow'"):
        build(teacher="slow")
    with pytest.raises(UserError, match=r"objective\.predictor is 'linear'"):
        build(predictor="linear")
