"""What holds for every objective of configs/objective: counts, health, padding, falling loss, exact continuation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from speechssl.config import OF_TRAINING, compose, config_dir, objective_class, options, plain
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import build_objective
from speechssl.training.optim import build_optimizer

NAMES = options("objective", configs=config_dir())
SMALL = (
    "model=tiny",
    "model.encoder.conv_channels=[8,8,8,8,16]",
    "model.encoder.hidden_size=32",
    "model.encoder.num_layers=2",
    "model.encoder.feed_forward_size=64",
    "model.encoder.position_kernel=8",
    "model.encoder.position_groups=4",
    "model.pretrain.feature_gradient_scale=0.5",
)
LENGTHS = [12_000, 9_000, 9_000, 7_600]


@pytest.fixture
def build():
    """`build(name, *overrides)`: a small encoder and the objective as its yaml has it."""

    def make(name, *overrides) -> tuple[Encoder, nn.Module]:
        config = compose("pretrain", [*SMALL, f"objective={name}", *overrides, "data.train=x", "run_dir=x"])
        torch.manual_seed(0)
        values = plain(config.model.encoder) | objective_class(name).encoder_needs
        encoder = Encoder(EncoderConfig.from_dict(values))
        values = {key: value for key, value in plain(config.objective).items() if key not in OF_TRAINING}
        values = objective_class(name).complete(values, config)
        objective = build_objective(values, encoder.config)
        if hasattr(objective, "stored"):
            objective.stored = lambda _utterance, _start_s, frames: torch.arange(frames) // 3 % 7
        return encoder, objective

    return make


@pytest.fixture
def speak(make_batch):
    """`speak(seed)`: a batch of modulated tones, the same number and length each time."""

    def make(seed=0, **options):
        batch = make_batch(LENGTHS, seed=seed, **options)
        random = np.random.default_rng(seed)
        for waveform, n in zip(batch.waveforms, LENGTHS, strict=True):
            time = np.arange(n) / 16_000
            tone = np.sin(2 * np.pi * random.uniform(100, 1000) * time) * np.sin(2 * np.pi * 3 * time)
            waveform[:n] = torch.from_numpy(0.3 * tone).float() + 0.1 * waveform[:n]
        return batch

    return make


def step(encoder, objective, batch, optimizer, number, max_steps=20):
    """One training step as the trainer makes it; the loss."""
    encoder.train()
    objective.train()
    objective.begin_step(number, max_steps)
    torch.manual_seed(number)
    output = objective(encoder, batch, torch.Generator().manual_seed(number))
    loss = sum(term.weight * term.sum / max(term.count, 1) for term in output.terms.values())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def adam(encoder, objective, lr=2e-3):
    named = nn.ModuleDict({"encoder": encoder, "objective": objective}).named_parameters()
    return build_optimizer(named, lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_known_before_health_has_its_names_and_padding_is_never_seen(build, speak, name):
    encoder, objective = build(name)
    encoder.eval(), objective.eval()
    batch, poisoned = speak(), speak(padding=float("nan"))
    frames = [encoder.config.num_frames(n) for n in LENGTHS]
    objective.begin_step(1, 20)
    found = objective(encoder, batch)
    assert {key: term.count for key, term in found.terms.items()} == objective.counts(batch, frames)
    assert {"output_variance", "effective_rank", "energy_gap"} <= found.metrics.keys()
    assert all(torch.as_tensor(total).isfinite() for total, _ in found.metrics.values())
    for key, term in objective(encoder, poisoned).terms.items():
        torch.testing.assert_close(found.terms[key].sum, term.sum)


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_and_a_run_continues_from_its_weights_alone(build, speak, name):
    """Teachers, codebooks and correlations are among the weights: as a checkpoint has them."""
    encoder, objective = build(name)
    optimizer = adam(encoder, objective)
    losses = [step(encoder, objective, speak(0), optimizer, number) for number in range(1, 11)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    other_encoder, other = build(name)
    other_encoder.load_state_dict(copy.deepcopy(encoder.state_dict()))
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    resumed = adam(other_encoder, other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in (11, 12):
        pair = ((encoder, objective, optimizer), (other_encoder, other, resumed))
        ours, theirs = (step(*parts[:2], speak(number), parts[2], number) for parts in pair)
        assert ours == theirs
    for (key, tensor), theirs in zip(objective.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, theirs), key


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_encoder_that_is_kept_gets_no_gradient(build, speak, name):
    encoder, objective = build(name)
    for part in (objective, *getattr(objective, "parts", {}).values()):
        part.feature_gradient_scale = 0.0
    encoder.train(), objective.train()
    objective.begin_step(1, 20)
    output = objective(encoder, speak())
    sum(term.weight * term.sum for term in output.terms.values()).backward()
    assert all(p.grad is None for p in encoder.feature_encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in encoder.context.parameters())


@pytest.mark.parametrize("name", [*NAMES, "byol predictor=copy", "byol predictor=direct"])
def test_bf16_computes_losses_and_health_from_full_products(build, speak, name, monkeypatch):
    """Under autocast only the networks are rounded. A product of the losses in bf16 would end in eigh on a GPU."""
    for function in ("eigh", "eigvalsh"):
        given = getattr(torch.linalg, function)
        monkeypatch.setattr(torch.linalg, function, lambda x, given=given: _fp32(x) and given(x))
    name, *settings = name.split()
    encoder, objective = build(name, *(f"objective.{setting}" for setting in settings))
    encoder.train(), objective.train()
    objective.begin_step(1, 20)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(encoder, speak())
    assert all(term.sum.dtype == torch.float32 and term.sum.isfinite() for term in output.terms.values())


def _fp32(x):
    assert x.dtype == torch.float32
    return True
