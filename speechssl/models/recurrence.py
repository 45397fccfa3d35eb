"""Recurrent layers over packed frames: each clip as if alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence


def recur(layer: nn.GRU | nn.LSTM, x: Tensor, frame_lengths: list[int]) -> Tensor:
    """[P, C] -> [P, D]: a recurrent layer's outputs, of each clip in both directions where it has both."""
    clips = [clip for clip in x.split(frame_lengths) if len(clip)]  # one without frames cannot be packed
    if not clips:
        return x.new_zeros(0, layer.hidden_size * (2 if layer.bidirectional else 1))
    return torch.cat(unpack_sequence(layer(pack_sequence(clips, enforce_sorted=False))[0]))
