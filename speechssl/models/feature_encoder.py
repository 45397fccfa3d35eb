"""The convolutional feature encoder: raw samples to frames (wav2vec 2.0, section 2, appendix B).

No clip sees another or padding. Clips are cut into windows that each give WINDOW frames of one clip, and a short rest
into windows of END frames, so that clips of any length go through the convolutions in tensors of few shapes (a new
shape costs a new kernel on a CPU and a recompile on a GPU) and with little waste. Layout is channels last: [windows,
positions, channels].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechssl.errors import UserError
from speechssl.models.convolution import convolve_gelu
from speechssl.models.lengths import END, WINDOW, hop, num_frames, receptive_field, rest
from speechssl.types import to_device

# Windows that go through the convolutions together: on a CPU as many as stay in its cache, on a GPU as many as keep it
# busy for longer than it takes to start a kernel.
TILE, GPU_TILE = 16, 512


class ConvLayer(nn.Module):
    """GELU of the layer before, a convolution and its norm (`group`: each channel over a clip's time; `layer`: each
    frame; None)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        *,
        norm: str | None,
        bias: bool,
        init: str,
    ):
        super().__init__()
        self.kernel, self.stride, self.norm_kind = kernel, stride, norm
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel))
        nn.init.kaiming_normal_(self.weight)
        if init != "kaiming" and in_channels > 1:
            _average(self.weight)
        elif init == "gabor":
            _gabor(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        if norm == "group":
            self.norm = nn.GroupNorm(out_channels, out_channels)
        elif norm == "layer":
            self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[windows, positions, C_in] -> [windows, positions / stride, C_out], both before GELU."""
        return self.normed(convolve_gelu(x, self.weight, self.bias, self.stride))

    def normed(self, y: Tensor) -> Tensor:
        """Norm over channels, if this layer has one."""
        return self.norm(y) if self.norm_kind == "layer" else y


@torch.no_grad()
def _average(weight: Tensor) -> None:
    """Begin as the mean of one input channel over the kernel, plus a little noise; weight [C_out, C_in, kernel].

    With it an untrained stack gives the smoothed, rectified output of the first layer's filters: energies in bands,
    which context predicts and codes tell apart. The contrastive loss then leaves chance within tens of steps.
    """
    outputs = torch.arange(len(weight))
    weight.mul_(0.2)
    weight[outputs, outputs % weight.shape[1]] += 1 / weight.shape[2]


@torch.no_grad()
def _gabor(weight: Tensor) -> None:
    """Begin as Gabor filters, evenly spaced in mel, each band in two phases; weight [C_out, 1, kernel] at 16 kHz.

    With the group norm, GELU and means that follow, an untrained stack is a rectified filter bank whose bands are
    normed over the clip (LEAF begins its filters so: Zeghidour et al. 2021, section 3.1).
    """
    kernel, bands = weight.shape[-1], -(-len(weight) // 2)
    # The device is said, since transformers 5 leaves behind a linspace that torch.device("meta") does not see.
    mels = torch.linspace(_mel(60.0), _mel(7600.0), bands + 2, device=weight.device)
    edges = 700 * torch.expm1(mels / 1127) / 16000  # cycles a sample
    bandwidth = (edges[2:] - edges[:-2]) / 2
    deviation = (0.4 / bandwidth).clamp(max=kernel / 5)[:, None]  # of the envelope in samples; it fits into the kernel
    time = torch.arange(kernel) - (kernel - 1) / 2
    envelope = torch.exp(-0.5 * (time / deviation) ** 2) / deviation
    angle = 2 * math.pi * edges[1:-1, None] * time
    phases = torch.stack((envelope * angle.cos(), envelope * angle.sin()), 1)
    weight.copy_(phases.flatten(0, 1)[: len(weight), None])


def _mel(hertz: float) -> float:
    return 1127 * math.log1p(hertz / 700)


class FeatureEncoder(nn.Module):
    """Stack of convolutions. `norm="group"` norms the first layer only (BASE), `norm="layer"` each (LARGE)."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        norm: str,
        bias: bool,
        init: str,
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
                init=init,
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
        num_samples = lengths.tolist()
        field = receptive_field(self.kernels, self.strides)
        require_length(num_samples, field)
        frame_lengths = [self.num_frames(n) for n in num_samples]
        clips = [waveform[:n] for waveform, n in zip(waveforms, num_samples, strict=True)]
        first = self._first_weights(clips)
        rests = [rest(n) for n in frame_lengths]
        mains = [n - left for n, left in zip(frame_lengths, rests, strict=True)]
        ends = [clip[n * hop(self.strides) :] for clip, n in zip(clips, mains, strict=True)]
        cuts = (clips, mains, WINDOW), (ends, rests, END)
        parts = [self._run(*cut, first) for cut in cuts if any(cut[1])]
        return torch.cat([part for clip in zip(*parts, strict=True) for part in clip]), frame_lengths

    def _run(self, clips: list[Tensor], counts: list[int], width: int, first: tuple[Tensor, Tensor]) -> list[Tensor]:
        """The first `counts` frames of each clip [N_i], in windows of `width` frames -> [counts_i, C] each."""
        windows, owners = _cut(
            clips, counts, width, field=receptive_field(self.kernels, self.strides), hop=hop(self.strides)
        )
        weight, bias = first
        per_clip = weight.shape[0] > 1
        outputs, size = [], TILE if windows.device.type == "cpu" else GPU_TILE
        for tile, owner in zip(windows.split(size), owners.split(size), strict=True):
            index = owner if per_clip else torch.zeros_like(owner)
            x = self._first_layer(tile, weight[index], bias[index])
            for layer in self.layers[1:]:
                x = layer(x)
            outputs.append(F.gelu(x))
        frames = torch.cat(outputs).flatten(0, 1)
        return list(frames.split([size for n in counts for size in (n, -n % width)])[::2])

    def _first_layer(self, windows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer on raw samples, before GELU: windows [n, S] with weights [n, kernel, C] and biases [n, 1, C]."""
        first = self.layers[0]
        patches = windows.unfold(1, first.kernel, first.stride)
        return first.normed(torch.baddbmm(bias, patches, weight))

    def _first_weights(self, clips: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Weights [B or 1, kernel, C] and biases [B or 1, 1, C] of the first layer.

        Its group norm is folded into them, for each clip. The mean and the variance of a channel over a clip follow
        from the mean and the covariance of the clip's patches of samples, since the convolution is linear: so the
        largest activation of the network is neither normed nor stored twice.
        """
        first = self.layers[0]
        weight = first.weight.squeeze(1)  # [C, kernel]
        if first.norm_kind != "group":
            bias = torch.zeros_like(weight[:, 0]) if first.bias is None else first.bias
            return weight.T[None], bias[None, None]
        mean, covariance = _patch_statistics(clips, first.kernel, first.stride)
        # In bf16, and where a filter passes little of a clip in fp32 too, the sum would be lost in its large terms.
        with torch.autocast(weight.device.type, enabled=False):
            weight = weight.double()
            mean = mean @ weight.T  # [B, C]
            variance = ((covariance @ weight.T) * weight.T).sum(1)  # [B, C]
            scale = first.norm.weight * (variance.clamp_min(0.0) + first.norm.eps).rsqrt()
            folded = weight.T * scale[:, None], (first.norm.bias - mean * scale)[:, None]
        return folded[0].to(first.weight), folded[1].to(first.weight)


def require_length(num_samples: list[int], field: int) -> None:
    """A clip shorter than the receptive field is a UserError that names it."""
    for clip, length in enumerate(num_samples):
        if length < field:
            raise UserError(
                f"clip {clip} of the batch has {length} samples, but the encoder needs at least {field}; "
                "leave it out or lengthen it"
            )


def _patch_statistics(clips: list[Tensor], kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Mean [B, kernel] and covariance [B, kernel, kernel] of each clip's patches, in double precision."""
    counts = torch.tensor([(len(clip) - kernel) // stride + 1 for clip in clips])
    longest = int(counts.max())
    samples = pad_sequence(clips, batch_first=True)[:, : (longest - 1) * stride + kernel]
    inside = torch.arange(longest) < counts[:, None]
    inside, counts = to_device(inside[..., None], samples.device), to_device(counts[:, None], samples.device)
    patches = samples.double().unfold(1, kernel, stride) * inside
    mean = patches.sum(1) / counts
    # In double precision nothing is lost by taking the mean off afterwards.
    return mean, patches.mT @ patches / counts[..., None] - mean[:, :, None] * mean[:, None]


def _cut(clips: list[Tensor], num_frames: list[int], width: int, *, field: int, hop: int) -> tuple[Tensor, Tensor]:
    """Clips [N_i] -> windows [n, samples] of `width` frames for the first frames of each, zero behind its end, and the
    clip of each window, int64 [n]."""
    size, step = field + (width - 1) * hop, width * hop
    counts = [-(-frames // width) for frames in num_frames]
    needed = [size + (count - 1) * step if count else 0 for count in counts]
    zeros = clips[0].new_zeros(max(needed))
    pieces = [(clip[:n], zeros[: max(n - len(clip), 0)]) for clip, n in zip(clips, needed, strict=True)]
    whole = torch.cat([piece for pair in pieces for piece in pair]).split(needed)
    windows = torch.cat([clip.unfold(0, size, step) for clip in whole if len(clip)])
    owners = torch.repeat_interleave(torch.arange(len(clips)), torch.tensor(counts))
    return windows, to_device(owners, windows.device)
