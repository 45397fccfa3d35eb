"""Masked prediction of labels against torchaudio's HuBERT loss, and its figures by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from torchaudio.models.wav2vec2.components import LogitGenerator

from speechssl.errors import UserError
from speechssl.heads.labels import LabelHead, label_counts


def make(frames=60, size=8, labels=7):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(frames, size, generator=generator)
    mask = torch.rand(frames, generator=generator) < 0.4
    return x, torch.randint(labels, (frames,), generator=generator), mask


def test_cosine_loss_and_gradient_are_those_of_torchaudio():
    x, labels, mask = make()
    theirs = LogitGenerator(8, 7, 5, skip_masked=False, skip_nomask=False)
    ours = LabelHead(8, 7, logits="cosine", final_size=5, temperature=0.1)
    ours.projection.load_state_dict(theirs.final_proj.state_dict())
    ours.embeddings.data.copy_(theirs.label_embeddings)
    found = ours.loss(x, labels, mask, unmasked_weight=0.5, watching=True)
    masked, unmasked = theirs(x, labels, mask, ~mask)
    for name, logits in (("masked", masked), ("unmasked", unmasked)):
        expected = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
        torch.testing.assert_close(found.terms[name].sum, expected)
        assert found.terms[name].count == len(logits)
    (masked_gradient,) = torch.autograd.grad(found.terms["masked"].sum, ours.embeddings)
    logits = theirs(x, labels, mask, ~mask)[0]
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
    (expected,) = torch.autograd.grad(loss, theirs.label_embeddings)
    torch.testing.assert_close(masked_gradient, expected)
    assert found.terms["unmasked"].weight == 0.5


def test_frames_that_are_not_hidden_cost_nothing_without_weight():
    x, labels, mask = make()
    head = LabelHead(8, 7, logits="linear", final_size=5, temperature=0.1)
    found = head.loss(x, labels, mask, unmasked_weight=0.0, watching=False)
    assert found.terms.keys() == {"masked"} == label_counts(mask, unmasked_weight=0.0).keys()
    changed = torch.where(mask[:, None], x, 9.0)
    assert torch.equal(
        head.loss(changed, labels, mask, unmasked_weight=0.0, watching=False).terms["masked"].sum,
        found.terms["masked"].sum,
    )
    logits = x[mask] @ head.projection.weight.T + head.projection.bias
    torch.testing.assert_close(found.terms["masked"].sum, F.cross_entropy(logits, labels[mask], reduction="sum"))


def test_figures_by_hand():
    """Four masked frames with labels 0 0 0 1; logits say 0 for each, by 2 nats."""
    head = LabelHead(2, 2, logits="linear", final_size=0, temperature=1.0)
    with torch.no_grad():
        head.projection.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        head.projection.bias.zero_()
    x, mask = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.ones(4, dtype=torch.bool)
    found = head.loss(x, torch.tensor([0, 0, 0, 1]), mask, unmasked_weight=0.0, watching=True)
    expected = 4 * log(1 + torch.e**-2) + 2
    assert found.terms["masked"].sum.item() == pytest.approx(expected, rel=1e-5)
    figures = {name: float(total) / count for name, (total, count) in found.metrics.items()}
    # Rolled by two: 0 1 0 0, so frame 1 gains 2 against another's label, frame 3 loses 2, the others nothing.
    assert figures == {"accuracy": 0.75, "chance": 0.75, "energy_gap": 0.0}


def test_other_logits_are_refused():
    with pytest.raises(UserError, match="'linear' or 'cosine'"):
        LabelHead(8, 7, logits="dot", final_size=5, temperature=0.1)
