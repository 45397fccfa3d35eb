"""Recurrent layers over packed frames: a clip's neighbours change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.models.recurrence import recur


@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_clip_is_as_if_alone(bidirectional):
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=bidirectional)
    clips = [torch.randn(n, 3) for n in (5, 0, 9, 1)]
    found = recur(layer, torch.cat(clips), [5, 0, 9, 1])
    expected = torch.cat([layer(clip)[0] for clip in clips if len(clip)])
    assert torch.allclose(found, expected, atol=1e-6)


def test_no_frames_give_no_outputs():
    assert recur(nn.GRU(3, 4, bidirectional=True), torch.zeros(0, 3), [0, 0]).shape == (0, 8)
