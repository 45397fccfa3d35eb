"""Margins against their papers' formulas, written out in numpy with angles, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.heads.margin import MarginClassifier

CLIPS, SIZE, CLASSES, SCALE, MARGIN = 40, 6, 5, 17.0, 0.35


def by_the_paper(embeddings, centres, targets, kind, margin):
    """Mean of -log( e^{s t(y)} / (e^{s t(y)} + sum of e^{s cos} over the others) ), one clip after the other."""
    losses = []
    for x, y in zip(embeddings, targets, strict=True):
        angles = []
        for group in centres:  # [sub-centres, E]
            cosines = group @ x / np.linalg.norm(group, axis=1) / np.linalg.norm(x)
            angles.append(np.arccos(cosines.max()))
        angles = np.array(angles)
        right = np.cos(angles[y] + margin) if kind == "aam_softmax" else np.cos(angles[y]) - margin
        others = np.delete(np.exp(SCALE * np.cos(angles)), y).sum()
        losses.append(-np.log(np.exp(SCALE * right) / (np.exp(SCALE * right) + others)))
    return np.mean(losses)


@pytest.mark.parametrize("kind", ["am_softmax", "aam_softmax"])
@pytest.mark.parametrize("sub_centres", [1, 3])
@pytest.mark.parametrize("margin", [0.0, MARGIN])
def test_loss_is_the_papers(kind, sub_centres, margin):
    rng = np.random.default_rng(0)
    embeddings, targets = rng.normal(size=(CLIPS, SIZE)), rng.integers(CLASSES, size=CLIPS)
    torch.manual_seed(0)
    head = MarginClassifier(SIZE, CLASSES, kind=kind, scale=SCALE, sub_centres=sub_centres).double()
    centres = head.weight.detach().numpy().reshape(CLASSES, sub_centres, SIZE)
    logits = head.with_margin(torch.from_numpy(embeddings), torch.from_numpy(targets), margin)
    ours = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets))
    assert ours.item() == pytest.approx(by_the_paper(embeddings, centres, targets, kind, margin), rel=1e-10)


def test_gradients_are_finite_on_a_centre_and_opposite_of_it():
    head = MarginClassifier(2, 2, kind="aam_softmax", scale=30.0, sub_centres=1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], requires_grad=True)
    head.with_margin(x, torch.tensor([0, 0]), MARGIN).sum().backward()
    assert x.grad.isfinite().all() and head.weight.grad.isfinite().all()


def test_without_a_margin_logits_are_scaled_cosines():
    head = MarginClassifier(2, 2, kind="am_softmax", scale=10.0, sub_centres=1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    logits = head(torch.tensor([[5.0, 0.0]]))
    torch.testing.assert_close(logits, torch.tensor([[10.0, 10 / 2**0.5]]))
