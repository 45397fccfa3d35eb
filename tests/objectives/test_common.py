"""The figures that show a collapse, by hand."""

from __future__ import annotations

import pytest
import torch

from speechssl.objectives.common import spread, usage, vector_gap


def test_equal_frames_have_no_variance_and_orthogonal_ones_all():
    equal = spread(torch.ones(10, 4))
    assert equal["output_variance"][0].item() == pytest.approx(0.0, abs=1e-6)
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    found = spread(axes)
    assert found["output_variance"][0].item() == pytest.approx(1.0)
    assert found["effective_rank"][0].item() == pytest.approx(4.0, rel=1e-4)


def test_rank_counts_directions_whatever_their_length():
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(500, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    assert 1.0 < spread(plane)["effective_rank"][0].item() <= 2.0001
    assert spread(torch.ones(1, 4)) == {}


def test_usage_is_the_share_of_codes_that_are_needed():
    assert usage(torch.tensor([0, 1, 2, 3]), 8)["code_usage"][0].item() == pytest.approx(0.5)
    assert usage(torch.zeros(6, dtype=torch.long), 8)["code_usage"][0].item() == pytest.approx(1 / 8)
    assert usage(torch.zeros(0, dtype=torch.long), 8) == {}


def test_gap_is_that_of_own_and_others_targets():
    targets = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    total, count = vector_gap(targets, targets)["energy_gap"]
    assert total.item() / count == pytest.approx(1.0)  # each other one is orthogonal
    same = torch.ones(4, 2)
    assert vector_gap(same, targets)["energy_gap"][0].item() == pytest.approx(0.0, abs=1e-6)
