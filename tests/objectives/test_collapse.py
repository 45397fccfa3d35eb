"""A collapse that is provoked shows in the figures that every objective logs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from speechssl.config import OF_TRAINING, compose, plain
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import build_objective
from speechssl.training.optim import build_optimizer

SMALL = (
    "model=tiny",
    "feature_encoder=fbank40",
    "model.encoder.conv_channels=[20,16,16]",
    "model.encoder.hidden_size=32",
    "model.encoder.num_layers=1",
    "model.encoder.feed_forward_size=64",
    "model.encoder.position_kernel=8",
    "model.encoder.position_groups=4",
    "data.train=x",
    "run_dir=x",
)
LENGTHS = [9_000] * 6


@pytest.fixture
def train(make_batch):
    """`train(*overrides, steps)`: the figures of health on other clips after so many steps."""

    def speak(seed):
        batch = make_batch(LENGTHS, seed=seed)
        random = np.random.default_rng(seed)
        for waveform in batch.waveforms:
            time = np.arange(len(waveform)) / 16_000
            pitch, rhythm = random.uniform(100, 1000), random.uniform(2, 8)
            tone = np.sin(2 * np.pi * pitch * time) * np.sin(2 * np.pi * rhythm * time)
            waveform.copy_(torch.from_numpy(0.3 * tone).float() + 0.2 * waveform)
        return batch

    def run(*overrides, steps, weight_decay=0.01):
        config = compose("pretrain", [*SMALL, *overrides])
        torch.manual_seed(0)
        encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder)))
        options = {key: value for key, value in plain(config.objective).items() if key not in OF_TRAINING}
        objective = build_objective(options, encoder.config)
        model = nn.ModuleDict({"encoder": encoder, "objective": objective})
        optimizer = build_optimizer(
            model.named_parameters(), lr=3e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=weight_decay
        )
        for step in range(1, steps + 1):
            model.train()
            objective.begin_step(step, steps)
            terms = objective(encoder, speak(step), torch.Generator().manual_seed(step)).terms.values()
            sum(term.weight * term.sum / max(term.count, 1) for term in terms).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        objective.begin_step(steps, steps)
        with torch.no_grad():
            metrics = objective(encoder, speak(999)).metrics
        return {name: float(total) / count for name, (total, count) in metrics.items()}

    return run


def test_without_predictor_and_stop_gradient_all_clips_become_alike(train):
    simsiam = ("objective=byol", "objective.teacher=none")
    healthy = train(*simsiam, steps=30)
    provoked = (*simsiam, "objective.predictor=none", "objective.stop_gradient=false")
    before, collapsed = train(*provoked, steps=1), train(*provoked, steps=30)
    assert collapsed["target_variance"] < 0.25 * healthy["target_variance"]
    assert abs(collapsed["energy_gap"]) < 0.25 * before["energy_gap"]


def test_without_the_diversity_loss_fewer_codes_are_used(train):
    small = ("objective=wav2vec2", "objective.num_codewords=20", "objective.num_distractors=10")
    healthy = train(*small, "objective.diversity_weight=0.5", steps=30)
    collapsed = train(*small, "objective.diversity_weight=0.0", steps=30)
    assert collapsed["code_usage"] < 0.7 * healthy["code_usage"]


def test_weight_decay_decides_how_many_features_directcopy_keeps(train):
    """As arXiv 2110.04947 predicts: it is a threshold, and what correlates less than it asks for vanishes."""
    copy = ("objective=byol", "objective.teacher=none", "objective.predictor=copy")
    none, much = (train(*copy, steps=40, weight_decay=weight) for weight in (0.0, 5.0))
    assert much["effective_rank"] < 0.9 * none["effective_rank"]
