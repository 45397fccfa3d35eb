"""Learning-rate schedules by hand, and what weight decay touches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.errors import UserError
from speechssl.training.optim import build_optimizer, lr_scale

PRETRAIN = {"warmup": 0.08, "hold": 0.0, "decay": "linear", "floor": 0.0}
TRI_STAGE = {"warmup": 0.1, "hold": 0.4, "decay": "exponential", "floor": 0.05}


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 1 / 80), (40, 0.5), (80, 1.0), (81, 919 / 920), (540, 0.5), (1000, 0.0)]
)
def test_warm_up_and_linear_decay(step, expected):
    assert lr_scale(step, 1000, **PRETRAIN) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 0.01), (50, 0.5), (100, 1.0), (500, 1.0), (750, 0.05**0.5), (1000, 0.05)]
)
def test_the_three_stages_of_fine_tuning(step, expected):
    assert lr_scale(step, 1000, **TRI_STAGE) == pytest.approx(expected)


def test_above_one_warm_up_and_hold_are_steps():
    absolute = PRETRAIN | {"warmup": 32_000, "hold": 8_000}
    assert lr_scale(16_000, 400_000, **absolute) == pytest.approx(0.5)
    assert lr_scale(40_000, 400_000, **absolute) == 1.0
    assert lr_scale(220_000, 400_000, **absolute) == pytest.approx(0.5)


@pytest.mark.parametrize("max_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("schedule", [PRETRAIN, TRI_STAGE])
def test_short_runs_have_rates_from_zero_to_one(schedule, max_steps):
    scales = [lr_scale(step, max_steps, **schedule) for step in range(1, max_steps + 1)]
    assert all(0 <= scale <= 1 for scale in scales)
    assert max(scales) > 0


def test_no_warm_up_begins_at_the_full_rate():
    assert lr_scale(1, 1000, **PRETRAIN | {"warmup": 0.0}) == pytest.approx(1.0, abs=2e-3)


def test_an_unknown_decay_is_one_sentence():
    with pytest.raises(UserError, match=r"optim\.decay is 'cosine'.*'linear' or 'exponential'"):
        lr_scale(1, 10, **PRETRAIN | {"decay": "cosine"})


def test_weight_decay_is_for_matrices():
    module = nn.Sequential(nn.Conv1d(2, 3, 5), nn.LayerNorm(3), nn.Linear(3, 4))
    module[2].weight.requires_grad_(False)
    optimizer = build_optimizer(module.named_parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups == {0.01: {"0.weight"}, 0.0: {"0.bias", "1.weight", "1.bias", "2.bias"}}


def test_layers_have_rates_of_their_own():
    names = [
        "objective.linear.weight",
        "encoder.context.layers.0.feed_in.weight",
        "encoder.context.layers.1.feed_in.weight",
        "encoder.context.norm.weight",
        "encoder.projection.weight",
    ]
    parameters = [(name, nn.Parameter(torch.zeros(2, 2))) for name in names]
    optimizer = build_optimizer(
        parameters, lr=1.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, encoder_scale=0.5, layer_decay=0.1
    )
    by_id = {id(p): name for name, p in parameters}
    rates = {by_id[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = dict(zip(names, [1.0, 0.05, 0.5, 0.5, 0.005], strict=True))
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == 1.0  # the one that is logged
