"""Dropout of our own: the right share, the right mean, seeded; attention with it is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speechssl.models import dropout as module
from speechssl.models.dropout import attend, drawn, dropout


def given(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_mean(probability):
    torch.manual_seed(0)
    count = 200_001
    kept, factor = drawn(torch.Size([count]), probability)
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs(kept.double().mean() - (1 - probability)) < 4 * deviation
    assert factor == pytest.approx(1 / (1 - probability), rel=2e-4)
    # Each of the four values that share 64 bits, and neighbours are independent.
    for place in range(4):
        assert abs(kept[place::4].double().mean() - (1 - probability)) < 8 * deviation
    both = (kept[1:] & kept[:-1]).double().mean()
    assert abs(both - (1 - probability) ** 2) < 8 * deviation


def test_the_same_seed_gives_the_same():
    x, found = torch.ones(33, 7), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(dropout(x, 0.3, training=True))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert set(found[0].unique().tolist()) == {0.0, found[0].max().item()}
    assert torch.equal(dropout(x, 0.3, training=False), x)


@pytest.mark.parametrize("together", [1, 3 * 5**2, module.WEIGHTS])
def test_attention_and_its_gradient(together, monkeypatch):
    """Against the formula written out, with the mask that the seed gives."""
    monkeypatch.setattr(module, "WEIGHTS", together)
    clips, heads, length, size = 2, 3, 5, 4
    qkv = given(3, clips, heads, length, size).requires_grad_()
    torch.manual_seed(0)
    found = attend(qkv, 0.3)
    torch.manual_seed(0)
    kept, factor = drawn(torch.Size([clips * heads, length, length]), 0.3)
    weights = (qkv[0] @ qkv[1].transpose(-1, -2) / size**0.5).softmax(-1)
    expected = (weights * kept.view(weights.shape) * factor) @ qkv[2]
    torch.testing.assert_close(found, expected)
    upstream = given(*found.shape, seed=1)
    gradients = [torch.autograd.grad((y * upstream).sum(), qkv)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("probability", [0.0, 1e-9])
def test_without_dropout_it_is_torchs_attention_with_its_gradient(probability):
    qkv = given(3, 2, 2, 9, 8).requires_grad_()
    found, expected = attend(qkv, probability), F.scaled_dot_product_attention(*qkv)
    torch.testing.assert_close(found, expected)
    upstream = given(*found.shape, seed=1)
    gradients = [torch.autograd.grad((y * upstream).sum(), qkv)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(attend(qkv, probability), expected)


def test_bf16():
    qkv = given(3, 1, 2, 9, 8).bfloat16().requires_grad_()
    attend(qkv, 0.1).sum().backward()
    assert qkv.grad.dtype == torch.bfloat16 and qkv.grad.isfinite().all()
