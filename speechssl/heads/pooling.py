"""Frames to one vector a clip: each clip's own frames only, so that neither padding nor the batch changes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = ("mean", "statistics", "attentive")

# Added to a variance before its root, whose gradient is infinite at 0 (a clip of one frame).
_EPS = 1e-5

# Kernel and dilation of x-vector's layers over frames (Snyder et al. 2018, table 1).
_TDNN = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))


class MeanPooling(nn.Module):
    """The mean over frames, as in SUPERB (Yang et al. 2021)."""

    def __init__(self, channels: int):
        super().__init__()
        self.size = channels

    def forward(self, x: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C] -> [B, C]."""
        return torch.stack([clip.mean(0) for clip in x.split(frame_lengths)])


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over frames (x-vector, Snyder et al. 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        self.size = 2 * channels

    def forward(self, x: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C] -> [B, 2 C]."""
        return torch.stack(
            [torch.cat([clip.mean(0), (clip.var(0, correction=0) + _EPS).sqrt()]) for clip in x.split(frame_lengths)]
        )


class AttentivePooling(nn.Module):
    """Mean and deviation where each channel weighs the frames by itself (ECAPA-TDNN, Desplanques et al. 2020, 2.1).

    The weights see the frame, and the clip's plain mean and deviation: what the paper calls context.
    """

    def __init__(self, channels: int, bottleneck: int = 128):
        super().__init__()
        self.size = 2 * channels
        self.statistics = StatisticsPooling(channels)
        self.hidden = nn.Linear(3 * channels, bottleneck)
        self.scores = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C] -> [B, 2 C]."""
        counts = torch.tensor(frame_lengths, device=x.device)
        context = self.statistics(x, frame_lengths).repeat_interleave(counts, 0)
        scores = self.scores(torch.tanh(self.hidden(torch.cat([x, context], 1))))
        pooled = []
        for clip, score in zip(x.split(frame_lengths), scores.split(frame_lengths), strict=True):
            weight = score.softmax(0)
            mean = (weight * clip).sum(0)
            variance = (weight * (clip - mean).square()).sum(0)
            pooled.append(torch.cat([mean, (variance + _EPS).sqrt()]))
        return torch.stack(pooled)


class TDNN(nn.Module):
    """x-vector's layers over frames: dilated convolutions, ReLU, LayerNorm in the place of batch norm.

    Beyond a clip's ends there is silence (zeros), so a clip of any length keeps its frames.
    """

    def __init__(self, channels: int, sizes: list[int]):
        super().__init__()
        assert 0 < len(sizes) <= len(_TDNN), sizes
        self.size = sizes[-1]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel, dilation=dilation, padding=dilation * (kernel // 2))
            for before, after, (kernel, dilation) in zip([channels, *sizes], sizes, _TDNN, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes)

    def forward(self, x: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C] -> [P, size]."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            clips = [layer(clip.T[None])[0].T for clip in x.split(frame_lengths)]
            x = norm(F.relu(torch.cat(clips)))
        return x


def build_pooling(name: str, channels: int) -> nn.Module:
    """The pooling of POOLINGS by its name; its `size` is that of the vector it gives."""
    return {"mean": MeanPooling, "statistics": StatisticsPooling, "attentive": AttentivePooling}[name](channels)
