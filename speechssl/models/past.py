"""Context networks that see the past alone: convolutions (wav2vec, Schneider et al. 2019) and recurrence (CPC).

As `ContextNetwork` they take packed frames and give layers + 1 states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.recurrence import recur

KERNEL = 3


class ConvolutionalContext(nn.Module):
    """Causal convolutions of kernel 3, each with norm, ReLU and a residual (wav2vec, sections 3.1 and 4.3).

    The norm is over a frame's channels, where the paper's is over the clip's time too, so that the future stays unseen.
    """

    def __init__(self, *, hidden_size: int, num_layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(KERNEL * hidden_size, hidden_size) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))
        self.dropout = dropout

    def forward(self, x: Tensor, frame_lengths: list[int], *, generator: torch.Generator | None = None) -> list[Tensor]:
        """[P, C] -> layers + 1 tensors [P, C]: the input, and the output of each layer."""
        states = [x]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            clips = [F.pad(clip, (0, 0, KERNEL - 1, 0)) for clip in x.split(frame_lengths)]
            stacked = torch.cat([clip.unfold(0, KERNEL, 1).flatten(1) for clip in clips])
            x = x + F.dropout(F.relu(norm(layer(stacked))), self.dropout, self.training)
            states.append(x)
        return states


class RecurrentContext(nn.Module):
    """Gated recurrent units (CPC, van den Oord et al. 2018, section 3.1)."""

    def __init__(self, *, hidden_size: int, num_layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(nn.GRU(hidden_size, hidden_size) for _ in range(num_layers))
        self.dropout = dropout

    def forward(self, x: Tensor, frame_lengths: list[int], *, generator: torch.Generator | None = None) -> list[Tensor]:
        """[P, C] -> layers + 1 tensors [P, C]: the input, and the output of each layer."""
        states = [x]
        for layer in self.layers:
            x = F.dropout(recur(layer, x, frame_lengths), self.dropout, self.training)
            states.append(x)
        return states
