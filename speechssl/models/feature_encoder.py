"""The convolutional feature encoder: raw samples to frames (wav2vec 2.0, section 2, appendix B).

Clips never share a tensor with padding: neighbours of equal length run as one batch, others alone, so the norm over
time of the group-norm variant sees a clip's own samples only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.lengths import num_frames, receptive_field, runs


class ConvLayer(nn.Module):
    """One convolution, its norm (`group`: each channel over time; `layer`: each frame over channels; none) and GELU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, *, norm: str | None, bias: bool):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm_kind = norm
        if norm == "group":
            self.norm = nn.GroupNorm(out_channels, out_channels)
        elif norm == "layer":
            self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, N] -> [B, C_out, T]; every clip of the batch is N long."""
        x = self.conv(x)
        if self.norm_kind == "group":
            x = self.norm(x)
        elif self.norm_kind == "layer":
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(x)


class FeatureEncoder(nn.Module):
    """Stack of convolutions. `norm="group"` norms the first layer only (BASE), `norm="layer"` each (LARGE)."""

    def __init__(
        self, *, channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int], norm: str, bias: bool
    ):
        super().__init__()
        self.kernels, self.strides = tuple(kernels), tuple(strides)
        inputs = [1, *channels[:-1]]
        self.layers = nn.ModuleList(
            ConvLayer(
                inputs[i],
                channels[i],
                kernels[i],
                strides[i],
                norm=norm if norm == "layer" or i == 0 else None,
                bias=bias,
            )
            for i in range(len(channels))
        )

    def num_frames(self, num_samples: int) -> int:
        """Frames for a clip of `num_samples` samples."""
        return num_frames(num_samples, self.kernels, self.strides)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """Waveforms [B, N] and their lengths [B] in samples -> frames [P, C], packed, and frames of each clip.

        A clip shorter than the receptive field is a UserError.
        """
        frame_lengths = [self.num_frames(n) for n in lengths.tolist()]
        if 0 in frame_lengths:
            raise UserError(
                f"clip {frame_lengths.index(0)} of the batch has {lengths[frame_lengths.index(0)]} samples, but the encoder "
                f"needs at least {receptive_field(self.kernels, self.strides)}; leave it out or lengthen it"
            )
        packed = []
        for first, count, length in runs(lengths.tolist()):
            x = waveforms[first : first + count, None, :length]
            for layer in self.layers:
                x = layer(x)
            packed.append(x.transpose(1, 2).flatten(0, 1))
        return torch.cat(packed), frame_lengths
