"""The light front end: log-mel spectrum and one or two small convolutions instead of convolutions over raw samples.

Most of a small encoder's work is done where frames are many; here that part is a Fourier transform (Fast-HuBERT, Yang
et al. 2023, does the same). The spectrum counts as the first layer: its kernel is the window of 25 ms, its stride the
shift, its channels the mel bands, so that lengths follow from kernels and strides as for any feature encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.feature_encoder import require_length
from speechssl.models.lengths import num_frames, receptive_field
from speechssl.models.spectrum import WINDOW_S, LogMel, standardize


class StackedFrames(nn.Module):
    """A convolution over time as one product: neighbours side by side, a linear layer, GELU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.linear = nn.Linear(kernel * in_channels, out_channels, bias=bias)
        nn.init.kaiming_normal_(self.linear.weight)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, frame_lengths: list[int]) -> tuple[Tensor, list[int]]:
        """[P, C_in] -> [P', C_out], frames a clip; no frame sees two clips."""
        clips = [clip.unfold(0, self.kernel, self.stride).flatten(1) for clip in x.split(frame_lengths)]
        return F.gelu(self.linear(torch.cat(clips))), [len(clip) for clip in clips]


class SideBySide(nn.Module):
    """Neighbouring frames as one, with nothing to learn (Sak et al. 2015, section 3)."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor, frame_lengths: list[int]) -> tuple[Tensor, list[int]]:
        """[P, C] -> [P', kernel × C], frames a clip; no frame sees two clips."""
        clips = [clip.unfold(0, self.kernel, self.stride).transpose(1, 2).flatten(1) for clip in x.split(frame_lengths)]
        return torch.cat(clips), [len(clip) for clip in clips]


class FbankEncoder(nn.Module):
    """Raw samples to frames by way of the log-mel spectrum.

    Args:
        channels, kernels, strides: of each layer, the spectrum first.
        norm: of the spectrum: "group", each band over a clip's time, or "layer", each frame over its bands.
        bias: whether the convolutions have one.
        stacked: frames side by side in place of the convolutions.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        norm: str,
        bias: bool,
        stacked: bool = False,
    ):
        super().__init__()
        self.kernels, self.strides, self.norm_kind = tuple(kernels), tuple(strides), norm
        self.mel = LogMel(
            hop=strides[0],
            field=kernels[0],
            sample_rate=round(kernels[0] / WINDOW_S),
            num_bins=channels[0],
            per_frame=1,
        )
        self.norm = nn.LayerNorm(channels[0]) if norm == "layer" else None
        self.layers = nn.ModuleList(
            SideBySide(kernels[i], strides[i])
            if stacked
            else StackedFrames(channels[i - 1], channels[i], kernels[i], strides[i], bias=bias)
            for i in range(1, len(channels))
        )

    def num_frames(self, num_samples: int) -> int:
        """Frames for a clip of `num_samples` samples."""
        return num_frames(num_samples, self.kernels, self.strides)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """Waveforms [B, N] and their lengths [B] in samples -> frames [P, C], packed, and frames of each clip.

        A clip shorter than the receptive field is a UserError.
        """
        require_length(lengths.tolist(), receptive_field(self.kernels, self.strides))
        frame_lengths = [num_frames(n, self.kernels[:1], self.strides[:1]) for n in lengths.tolist()]
        x = self.mel(waveforms, lengths, frame_lengths).squeeze(1)
        x = self.norm(x) if self.norm is not None else standardize(x, frame_lengths)
        for layer in self.layers:
            x, frame_lengths = layer(x, frame_lengths)
        return x, frame_lengths
