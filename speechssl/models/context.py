"""The context network: convolutional positions and a Transformer over packed frames (wav2vec 2.0, section 2).

data2vec's stack of positional convolutions, WavLM's gated relative positions and an hourglass, whose middle layers see
fewer frames (Nawrot et al. 2022, arXiv 2110.13711), are options of the same network.

Frames of all clips lie end to end, x [P, C]. Linear layers and norms do not care where a clip ends; convolution and
attention take each run of equally long clips as a batch, so there is no padding and no mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl.errors import UserError
from speechssl.models.dropout import attend, dropout
from speechssl.models.fourier import correlate
from speechssl.models.lengths import ROWS, missing, runs
from speechssl.models.packed import attend_packed, fits
from speechssl.types import to_device

# The positional convolution sees lengths that are multiples of this many frames.
GRAIN = 32
# On a CPU it goes by way of spectra where frames are at least so many times its taps: their transform pays then.
FOURIER = 3
# On a CPU, attention without dropout over clips of up to so many frames goes by way of `attend`, too. For longer ones
# torch's kernel is as fast, and keeps no weights.
ATTEND = 800


class PositionalConvolution(nn.Module):
    """Relative positions by one wide grouped convolution with weight norm over its taps, and GELU.

    Attributes:
        causal: see no later frame.
    """

    causal = False

    def __init__(self, hidden_size: int, kernel: int, groups: int):
        super().__init__()
        self.kernel, self.groups = kernel, groups
        weight = torch.empty(hidden_size, hidden_size // groups, kernel)
        nn.init.normal_(weight, std=(4.0 / (kernel * hidden_size)) ** 0.5)
        self.weight_v = nn.Parameter(weight)
        self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C] -> [P, C].

        Clips are lengthened with zeros, as the convolution pads anyway, to a multiple of GRAIN frames, so that
        few shapes occur.
        """
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        clips, outputs = x.split(frame_lengths), []
        # Not where it is causal: spectra let the last digits of later frames through.
        if x.device.type == "cpu" and not self.causal and len(x) >= FOURIER * self.kernel:
            return F.gelu((torch.cat(correlate(clips, weight, self.groups)) + self.bias).to(x.dtype))
        rounded = [length + missing(length, GRAIN) for length in frame_lengths]
        for first, count, length in runs(rounded):
            run = torch.stack([F.pad(clip, (0, 0, 0, length - len(clip))) for clip in clips[first : first + count]])
            padding = self.kernel - 1 if self.causal else self.kernel // 2
            y = F.conv1d(run.transpose(1, 2), weight, self.bias, padding=padding, groups=self.groups)
            y = y[..., :length].transpose(1, 2)
            outputs += [y[i, : frame_lengths[first + i]] for i in range(count)]
        return F.gelu(torch.cat(outputs))


class PositionalConvolutionStack(nn.Module):
    """Relative positions by several grouped convolutions, each normed over channels (data2vec, Baevski et al. 2022).

    A clip's end is silent before each convolution, so that what follows it in a batch changes nothing.
    """

    def __init__(self, hidden_size: int, kernel: int, groups: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(hidden_size, hidden_size, kernel, padding=kernel // 2, groups=groups) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C] -> [P, C]."""
        outputs, start = [], 0
        for _, count, length in runs(frame_lengths):
            y = x[start : start + count * length].view(count, length, -1)
            for layer in self.layers:
                y = layer(y.transpose(1, 2))[..., :length].transpose(1, 2)
                y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            outputs.append(y.flatten(0, 1))
            start += count * length
        return torch.cat(outputs)


class RelativePositions(nn.Module):
    """A learned attention bias for each bucket of distances, each head (WavLM, Chen et al. 2022, section 3.1)."""

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int):
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, length: int) -> Tensor:
        """Frames of a clip -> [heads, T, T]: the bias of each frame (rows) for each other (columns)."""
        places = torch.arange(length, device=self.embedding.weight.device)
        return self.embedding(self._bucket(places[None] - places[:, None])).permute(2, 0, 1)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Half of the buckets are for later frames; in each half, one a frame when near, then logarithmic."""
        half = self.num_buckets // 2
        near = half // 2
        far = torch.log(distance.abs().float() / near) / math.log(self.max_distance / near) * (half - near)
        far = (near + far.clamp_min(0)).long().clamp_max(half - 1)
        return (distance > 0) * half + torch.where(distance.abs() < near, distance.abs(), far)


class PositionGate(nn.Module):
    """How much each frame heeds relative positions, in each head (WavLM, section 3.1)."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size // num_heads, 8)
        self.scale = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Frames [n, T, C] of n clips, bias [heads, T, T] -> gated bias [n, heads, T, T]."""
        heads = x.unflatten(-1, (self.scale.shape[1], -1)).transpose(1, 2)
        update, reset = self.linear(heads).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, dim=-1)
        return (update * (reset * self.scale - 1.0) + 2.0) * bias


class SelfAttention(nn.Module):
    """Multi-head self-attention within each clip; query, key and value come from one projection.

    Attributes:
        causal: heed no later frame.
    """

    causal = False

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, *, gated: bool = False):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.qkv.bias.register_hook(_without_key)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.gate = PositionGate(hidden_size, num_heads) if gated else None

    def forward(self, x: Tensor, frame_lengths: list[int], biases: dict[int, Tensor] | None = None) -> Tensor:
        """[P, C] -> [P, C]. `biases` are relative positions [heads, T, T] by T."""
        qkv = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1)
        probability = self.dropout if self.training else 0.0
        if fits(qkv) and not self.gate:
            return self.out(attend_packed(qkv, frame_lengths, probability, causal=self.causal).flatten(1))
        plain = x.device.type == "cpu" and not self.gate and not self.causal
        outputs, start = [], 0
        for _, count, length in runs(frame_lengths):
            part = slice(start, start + count * length)
            heads = qkv[part].view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            if plain and (probability or length <= ATTEND):
                y = attend(heads, probability)
            else:
                bias = self.gate(x[part].view(count, length, -1), biases[length]) if self.gate else None
                y = F.scaled_dot_product_attention(*heads, attn_mask=bias, dropout_p=probability, is_causal=self.causal)
            outputs.append(y.transpose(1, 2).reshape(count * length, -1))
            start += count * length
        return self.out(torch.cat(outputs))


def _without_key(gradient: Tensor) -> Tensor:
    """A key's bias shifts all scores of a query alike, so its gradient [3 C] is zero; what comes is rounding."""
    query, key, value = gradient.chunk(3)
    return torch.cat((query, torch.zeros_like(key), value))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with its residual; LayerNorm after the sum (post-norm) or before (pre-norm).

    Attributes:
        recompute: keep only the input for the backward pass, which runs the layer again (activation checkpointing).
    """

    recompute = False

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        feed_forward_size: int,
        pre_norm: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        norm_eps: float,
        gated: bool,
    ):
        super().__init__()
        self.pre_norm, self.dropout, self.activation_dropout = pre_norm, dropout, activation_dropout
        self.attention = SelfAttention(hidden_size, num_heads, attention_dropout, gated=gated)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.feed_in = nn.Linear(hidden_size, feed_forward_size)
        self.feed_out = nn.Linear(feed_forward_size, hidden_size)
        self.feed_norm = nn.LayerNorm(hidden_size, eps=norm_eps)

    def _drop(self, x: Tensor, probability: float) -> Tensor:
        return dropout(x, probability, self.training) if probability else x

    def _feed(self, x: Tensor) -> Tensor:
        x = self._drop(F.gelu(self.feed_in(x)), self.activation_dropout)
        return self._drop(self.feed_out(x), self.dropout)

    def forward(self, x: Tensor, frame_lengths: list[int], biases: dict[int, Tensor] | None = None) -> Tensor:
        """[P, C] -> [P, C]. `biases` are relative positions [heads, T, T] by T."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, x, frame_lengths, biases, use_reentrant=False)
        return self._run(x, frame_lengths, biases)

    def _run(self, x: Tensor, frame_lengths: list[int], biases: dict[int, Tensor] | None) -> Tensor:
        attended = self.attention(self.attention_norm(x) if self.pre_norm else x, frame_lengths, biases)
        return self._row_by_row(x, attended)

    def _row_by_row(self, x: Tensor, attended: Tensor) -> Tensor:
        """What comes after attention, in which no row sees another."""
        x = x + self._drop(attended, self.dropout)
        if self.pre_norm:
            return x + self._feed(self.feed_norm(x))
        x = self.attention_norm(x)
        return self.feed_norm(x + self._feed(x))

    def compile_rows(self) -> None:
        """Have torch.compile fuse what comes after attention, for any number of rows."""
        self._row_by_row = torch.compile(self._row_by_row, dynamic=True)


class ContextNetwork(nn.Module):
    """Positions, then Transformer layers with LayerDrop (Fan et al. 2019) while training."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        position_kernel: int,
        position_groups: int,
        pre_norm: bool,
        dropout: float,
        layer_drop: float,
        norm_eps: float,
        num_heads: int,
        position_layers: int | None = None,
        relative_buckets: int | None = None,
        relative_distance: int = 800,
        causal: bool = False,
        hourglass: int = 1,
        **layer: float,
    ):
        super().__init__()
        self.pre_norm, self.dropout, self.layer_drop, self.hourglass = pre_norm, dropout, layer_drop, hourglass
        shape = hidden_size, position_kernel, position_groups
        self.positions = (
            PositionalConvolutionStack(*shape, position_layers) if position_layers else PositionalConvolution(*shape)
        )
        self.relative = RelativePositions(num_heads, relative_buckets, relative_distance) if relative_buckets else None
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        layer |= {"hidden_size": hidden_size, "num_heads": num_heads, "pre_norm": pre_norm, "dropout": dropout}
        self.layers = nn.ModuleList(
            TransformerLayer(norm_eps=norm_eps, gated=self.relative is not None, **layer) for _ in range(num_layers)
        )
        self.apply(_init_linear)
        if causal:
            self.positions.causal = True
            for transformer_layer in self.layers:
                transformer_layer.attention.causal = True

    def forward(
        self,
        x: Tensor,
        frame_lengths: list[int],
        *,
        generator: torch.Generator | None = None,
        visible: tuple[Tensor, list[int]] | None = None,
    ) -> list[Tensor]:
        """[P, C] -> layers + 1 tensors [P, C]: the first layer's input and each layer's output.

        With pre-norm the last is after the final LayerNorm. `generator` decides which layers are dropped this step.
        `visible`: rows [P'] that go on after the positions, and how many of each clip; the layers see no others.
        """
        x = x + self.positions(x, frame_lengths)
        if visible:
            rows, frame_lengths = visible
            x = x.index_select(0, rows)
        if not self.pre_norm:
            x = self.norm(x)
        if self.dropout:
            x = dropout(x, self.dropout, self.training)
        steps = list(zip(self.layers, self._draw_dropped(generator), strict=True))
        if self.hourglass == 1:
            states = [x, *self._run(steps, x, frame_lengths)]
        else:
            states = [x, *self._run(steps[:1], x, frame_lengths)]
            states += self._run_shortened(steps[1:-1], states[-1], frame_lengths)
            states += self._run(steps[-1:], states[-1], frame_lengths)
        if self.pre_norm:
            states[-1] = self.norm(states[-1])
        return states

    def _run(self, steps: list[tuple[TransformerLayer, bool]], x: Tensor, frame_lengths: list[int]) -> list[Tensor]:
        """[P, C] -> the state after each of some layers; those that are dropped change nothing."""
        biases = {length: self.relative(length) for length in set(frame_lengths)} if self.relative else None
        states = []
        for layer, drop in steps:
            x = x if drop else layer(x, frame_lengths, biases)
            states.append(x)
        return states

    def _run_shortened(
        self, steps: list[tuple[TransformerLayer, bool]], x: Tensor, frame_lengths: list[int]
    ) -> list[Tensor]:
        """The same with layers that see the mean of every `hourglass` frames of a clip, the last of them of what is
        left; what they change is given back to each of those frames."""
        lengths = [-(-length // self.hourglass) for length in frame_lengths]
        # As in Encoder.contextualize: rows of zeros, as a clip of their own, so that few shapes occur.
        filler = missing(sum(lengths), ROWS)
        lengths = [*lengths, filler] if filler else lengths
        groups = _groups(frame_lengths, self.hourglass)
        sizes = to_device(torch.bincount(groups, minlength=sum(lengths)).clamp_min(1), x.device).to(x.dtype)
        groups = to_device(groups, x.device)
        short = x.new_zeros(sum(lengths), x.shape[1]).index_add(0, groups, x) / sizes[:, None]
        states = self._run(steps, short, lengths)
        return [x + (state - short).index_select(0, groups) for state in states]

    def reset_last_layers(self, count: int) -> None:
        """Begin the last `count` layers and the last norm anew.

        What they learned belongs to the pretraining's task, and few labels are learned faster without it (Pasad et al.
        2021, arXiv 2107.04734; for BERT Zhang et al. 2021, arXiv 2006.05987).
        """
        if not count:
            return
        if count > len(self.layers):
            raise UserError(f"encoder.reset_layers is {count}, but the encoder has {len(self.layers)} layers")
        parts = [module for layer in self.layers[-count:] for module in layer.modules()]
        for module in [*parts, self.norm] if self.pre_norm else parts:
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            _init_linear(module)

    def _draw_dropped(self, generator: torch.Generator | None) -> list[bool]:
        if not (self.training and self.layer_drop):
            return [False] * len(self.layers)
        return (torch.rand(len(self.layers), generator=generator) < self.layer_drop).tolist()


def _groups(frame_lengths: list[int], size: int) -> Tensor:
    """int64 [P]: each frame's group: every `size` frames of a clip are one, and what is left at its end another."""
    frames = torch.tensor(frame_lengths)
    counts = (frames + size - 1) // size
    places = torch.arange(int(frames.sum())) - (frames.cumsum(0) - frames).repeat_interleave(frames)
    return (counts.cumsum(0) - counts).repeat_interleave(frames) + places // size


def _init_linear(module: nn.Module) -> None:
    """BERT's initialisation, as the reference has it."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
