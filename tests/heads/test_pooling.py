"""Poolings and x-vector's layers: by hand, and that a clip's vector is its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.heads.pooling import POOLINGS, TDNN, build_pooling

LENGTHS = [7, 1, 12]


@pytest.fixture
def frames():
    return torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", POOLINGS)
def test_a_clip_is_pooled_alike_alone_and_with_others(frames, name):
    torch.manual_seed(0)
    pooling = build_pooling(name, 6)
    together = pooling(frames, LENGTHS)
    assert together.shape == (3, pooling.size) and together.isfinite().all()
    for vector, clip in zip(together, frames.split(LENGTHS), strict=True):
        torch.testing.assert_close(pooling(clip, [len(clip)])[0], vector)


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_are_finite_where_nothing_varies(name):
    x = torch.zeros(3, 6, requires_grad=True)
    build_pooling(name, 6)(x, [1, 2]).sum().backward()
    assert x.grad.isfinite().all()


def test_mean_and_statistics_by_hand(frames):
    clips = [clip.double().numpy() for clip in frames.split(LENGTHS)]
    means = np.stack([clip.mean(0) for clip in clips])
    deviations = np.stack([np.sqrt(clip.var(0) + 1e-5) for clip in clips])
    np.testing.assert_allclose(build_pooling("mean", 6)(frames, LENGTHS), means, atol=1e-6)
    both = build_pooling("statistics", 6)(frames, LENGTHS)
    np.testing.assert_allclose(both, np.concatenate([means, deviations], 1), atol=1e-5)


def test_attention_by_the_papers_equations(frames):
    """ECAPA-TDNN, equations 1 to 4 of section 2.1, on the frame and the clip's mean and deviation."""
    torch.manual_seed(0)
    pooling = build_pooling("attentive", 6).double()
    clip = frames[:7].double()
    h = clip.numpy()
    context = np.concatenate([h.mean(0), np.sqrt(h.var(0) + 1e-5)])
    w, b = (p.detach().numpy() for p in (pooling.hidden.weight, pooling.hidden.bias))
    v, k = (p.detach().numpy() for p in (pooling.scores.weight, pooling.scores.bias))
    e = np.stack([v @ np.tanh(w @ np.concatenate([frame, context]) + b) + k for frame in h])
    alpha = np.exp(e) / np.exp(e).sum(0)
    mean = (alpha * h).sum(0)
    deviation = np.sqrt((alpha * h**2).sum(0) - mean**2 + 1e-5)
    ours = pooling(clip, [7])[0].detach().numpy()
    np.testing.assert_allclose(ours, np.concatenate([mean, deviation]), rtol=1e-6)


def test_x_vectors_layers_see_fifteen_frames_of_their_own_clip():
    """Kernels 5, 3, 3, 1, 1 dilated by 1, 2, 3, 1, 1: two, two and three frames to each side, seven in all."""
    torch.manual_seed(0)
    layers = TDNN(6, [8, 8, 8, 8, 4])
    x = torch.randn(30 + 3, 6, generator=torch.Generator().manual_seed(0))
    before = layers(x, [30, 3])
    assert before.shape == (33, 4)
    changed = x.clone()
    changed[15] += 1
    moved = (layers(changed, [30, 3]) - before).abs().amax(1) > 0
    assert moved.nonzero().squeeze(1).tolist() == list(range(15 - 7, 15 + 7 + 1))
    torch.testing.assert_close(layers(x[30:], [3]), before[30:])
