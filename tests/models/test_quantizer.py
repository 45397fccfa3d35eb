"""The product quantizer against a plain loop, and its figures by hand."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.models.quantizer import GumbelQuantizer, gumbel_noise, perplexity

M, G, V, C, D = 11, 2, 5, 6, 8


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return GumbelQuantizer(C, num_groups=G, num_codewords=V, code_size=D)


@pytest.fixture
def x():
    return torch.randn(M, C, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return gumbel_noise([M], G, V, generators=[torch.Generator().manual_seed(2)])


def logits_of(quantizer, x):
    return (x @ quantizer.projection.weight.T + quantizer.projection.bias).view(M, G, V)


@pytest.mark.parametrize("noisy", [False, True])
def test_each_group_gives_the_codeword_of_its_best_logit(quantizer, x, noise, noisy):
    ours = quantizer(x, temperature=0.7, noise=noise if noisy else None)
    logits = logits_of(quantizer, x) + (noise if noisy else 0)
    for frame in range(M):
        for group in range(G):
            code = max(range(V), key=lambda v, row=logits[frame, group]: row[v].item())
            assert ours.codes[frame, group] == code
            part = ours.vectors[frame, group * D // G : (group + 1) * D // G]
            torch.testing.assert_close(part, quantizer.codebook[group, code], rtol=1e-5, atol=1e-6)
    assert ours.vectors.shape == (M, D)
    torch.testing.assert_close(ours.probabilities, logits_of(quantizer, x).softmax(-1))


@pytest.mark.parametrize("noisy", [False, True])
def test_a_codewords_gradient_is_the_sum_over_frames_that_chose_it(quantizer, x, noise, noisy):
    upstream = torch.randn(M, D, generator=torch.Generator().manual_seed(3))
    ours = quantizer(x, temperature=0.7, noise=noise if noisy else None)
    (gradient,) = torch.autograd.grad((ours.vectors * upstream).sum(), quantizer.codebook)
    expected = torch.zeros(G, V, D // G)
    for frame in range(M):
        for group in range(G):
            expected[group, ours.codes[frame, group]] += upstream[frame, group * D // G : (group + 1) * D // G]
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_goes_straight_through_to_the_softmax(quantizer, x, noise):
    """Forward is the one-hot choice, backward as if it were the softmax of noisy logits at that temperature."""
    upstream = torch.randn(M, D, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad(
        (quantizer(x, temperature=0.7, noise=noise).vectors * upstream).sum(), quantizer.projection.weight
    )[0]
    soft = ((logits_of(quantizer, x) + noise) / 0.7).softmax(-1)
    vectors = torch.cat([soft[:, group] @ quantizer.codebook[group].detach() for group in range(G)], -1)
    expected = torch.autograd.grad((vectors * upstream).sum(), quantizer.projection.weight)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_codebook_gets_the_gradient_of_the_chosen_codewords(quantizer, x, noise):
    quantized = quantizer(x, temperature=0.7, noise=noise)
    gradient = torch.autograd.grad(quantized.vectors.sum(), quantizer.codebook)[0]
    for group in range(G):
        used = torch.bincount(quantized.codes[:, group], minlength=V).float()
        torch.testing.assert_close(gradient[group], used[:, None].expand(V, D // G), rtol=1e-4, atol=1e-5)


def test_noise_is_gumbel():
    """Mean is Euler's constant, variance pi^2 / 6."""
    drawn = gumbel_noise([500], 2, 100, generators=[torch.Generator().manual_seed(0)])
    assert drawn.shape == (500, 2, 100)
    assert drawn.isfinite().all()
    assert drawn.mean().item() == pytest.approx(0.57722, abs=0.02)
    assert drawn.var().item() == pytest.approx(1.64493, rel=0.03)


def test_perplexity_by_hand():
    one = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert perplexity(torch.full((2, 320), 1 / 320)).item() == pytest.approx(640, rel=1e-5)
    assert perplexity(torch.stack([one, one])).item() == pytest.approx(2)
    half = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert perplexity(torch.stack([one, half])).item() == pytest.approx(1 + 2)


def test_perplexity_has_a_gradient_where_a_codeword_underflows():
    mean = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    perplexity(mean).backward()
    # By hand: -exp(entropy) (log p + 1).
    assert mean.grad[0, :2].tolist() == pytest.approx([-2 * (math.log(0.5) + 1)] * 2, rel=1e-5)
    assert mean.grad.isfinite().all()


def test_perplexity_has_a_gradient_where_a_codeword_is_never_likely():
    probabilities = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(perplexity(probabilities), probabilities)
    assert gradient.isfinite().all()
    # d/dp of exp(-sum p log p) is exp(entropy) times -(log p + 1).
    torch.testing.assert_close(gradient[0, :2], torch.full((2,), 2 * (0.6931472 - 1)))
