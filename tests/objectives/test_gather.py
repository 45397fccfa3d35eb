"""Rows of all ranks, as one rank sees them."""

from __future__ import annotations

import torch

from speechssl.objectives import common


def test_alone_all_rows_are_ones_own():
    x = torch.randn(3, 2)
    rows, start = common.gather_rows(x)
    assert rows is x and start == 0


def test_rows_of_all_ranks_come_in_order_and_with_gradient(monkeypatch):
    """Rank 1 of 2 with 3 rows, where rank 0 has 2 rows of ones; the sum over ranks adds what rank 0 would give."""

    def add_the_other(x):
        if x.ndim == 1:
            return x + torch.tensor([2, 0])
        other = torch.zeros_like(x)
        other[:2] = 1.0
        return x + other

    monkeypatch.setattr(common, "ranks", lambda: (1, 2))
    monkeypatch.setattr(common, "sum_over_ranks", add_the_other)
    x = torch.full((3, 2), 5.0, requires_grad=True)
    rows, start = common.gather_rows(x)
    assert start == 2
    assert rows.tolist() == [[1.0, 1.0]] * 2 + [[5.0, 5.0]] * 3
    (rows * torch.arange(5.0)[:, None]).sum().backward()
    assert x.grad[:, 0].tolist() == [2.0, 3.0, 4.0]
