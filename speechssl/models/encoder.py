"""The encoder: feature encoder, projection and context network, built from one plain config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.context import ContextNetwork
from speechssl.models.dropout import dropout
from speechssl.models.fbank import FbankEncoder
from speechssl.models.feature_encoder import FeatureEncoder
from speechssl.models.lengths import ROWS, hop, missing, num_frames, receptive_field
from speechssl.models.past import ConvolutionalContext, RecurrentContext
from speechssl.types import EncoderOutput, to_device

# No layer of an encoder is larger, and none has more layers.
MAX_SIZE, MAX_LAYERS = 2**20, 1000
# Fields that older checkpoints lack, and their values there.
LATER = {"context": "transformer", "causal": False, "hourglass": 1}
PAST_CONTEXTS = {"convolutions": ConvolutionalContext, "recurrent": RecurrentContext}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder; plain data, so that it lives in a checkpoint.

    Attributes:
        feature_encoder: "conv", convolutions over raw samples, "fbank", log-mel and light convolutions, or "stacked",
            spectra side by side: each layer has kernel times the channels below it.
        conv_channels, conv_kernels, conv_strides: the feature encoder, one number a layer (fbank: the spectrum first).
        conv_norm: "group" (first layer, BASE) or "layer" (each layer, LARGE).
        conv_bias: whether the convolutions have a bias.
        conv_init: how the convolutions begin: "kaiming" (the reference), "average" (local means, plus noise, after the
            first) or "gabor" (the same, and the first a filter bank).
        hidden_size, num_layers, num_heads, feed_forward_size: the Transformer.
        position_kernel, position_groups: the convolutional positional embedding.
        pre_norm: LayerNorm before attention and feed-forward (LARGE) instead of after the sum (BASE).
        dropout: after attention, after feed-forward and after the positions.
        attention_dropout, activation_dropout: within attention and within feed-forward.
        projection_dropout: after the projection of the features.
        layer_drop: probability of leaving out a layer in a training step.
        norm_eps: epsilon of every LayerNorm outside the convolutions.
        feature_norm: LayerNorm between the feature encoder and the projection.
        position_layers: how many positional convolutions data2vec's stack has; None is wav2vec 2.0's single one.
        relative_buckets, relative_distance: WavLM's gated relative positions, how many buckets of distances and from
            how many frames on all are one; None for relative_buckets is none of it.
        context: "transformer", or "convolutions" (wav2vec) or "recurrent" (CPC), which see the past alone.
        causal: the Transformer sees the past alone too (APC).
        hourglass: of so many neighbouring frames the layers between the first and the last see the mean; 1 is all of
            them.
    """

    conv_channels: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_norm: str
    conv_bias: bool
    hidden_size: int
    num_layers: int
    num_heads: int
    feed_forward_size: int
    position_kernel: int
    position_groups: int
    pre_norm: bool
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    projection_dropout: float = 0.0
    layer_drop: float = 0.0
    norm_eps: float = 1e-5
    conv_init: str = "kaiming"
    feature_norm: bool = True
    position_layers: int | None = None
    relative_buckets: int | None = None
    relative_distance: int = 800
    feature_encoder: str = "conv"
    context: str = "transformer"
    causal: bool = False
    hourglass: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_value(field.name, getattr(self, field.name), field.type)
        for name in ("conv_channels", "conv_kernels", "conv_strides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides):
            raise UserError("the encoder's conv_channels, conv_kernels and conv_strides must be equally long lists")
        if self.feature_encoder not in ("conv", "fbank", "stacked"):
            raise UserError(
                f"the encoder's feature_encoder is {self.feature_encoder!r}, but must be 'conv', 'fbank' or 'stacked'"
            )
        if self.feature_encoder == "stacked":
            wanted = [a * kernel for a, kernel in zip(self.conv_channels, self.conv_kernels[1:], strict=False)]
            if list(self.conv_channels[1:]) != wanted:
                raise UserError(
                    f"the encoder's conv_channels are {list(self.conv_channels)}, and frames side by side make "
                    f"{[self.conv_channels[0], *wanted]}"
                )
        if self.conv_norm not in ("group", "layer"):
            raise UserError(f"the encoder's conv_norm is {self.conv_norm!r}, but must be 'group' or 'layer'")
        if self.conv_init not in ("kaiming", "average", "gabor"):
            raise UserError(
                f"the encoder's conv_init is {self.conv_init!r}, but must be 'kaiming', 'average' or 'gabor'"
            )
        if self.context not in ("transformer", *PAST_CONTEXTS):
            kinds = ", ".join(repr(kind) for kind in PAST_CONTEXTS)
            raise UserError(f"the encoder's context is {self.context!r}, but must be 'transformer' or one of {kinds}")
        if self.causal and (self.position_layers or self.relative_buckets):
            raise UserError("a causal encoder has one positional convolution; unset position_layers, relative_buckets")
        if self.hourglass > 1 and (self.causal or self.context != "transformer" or self.num_layers < 3):
            raise UserError(
                f"the encoder's hourglass is {self.hourglass}, which is for Transformers of three layers or more that "
                "see the future; leave it at 1 here"
            )
        for name in ("num_heads", "position_groups"):
            divisor = getattr(self, name)
            if self.hidden_size % divisor:
                raise UserError(f"the encoder's hidden_size {self.hidden_size} is not a multiple of {name}, {divisor}")

    @classmethod
    def from_dict(cls, values: dict) -> EncoderConfig:
        """A config from plain data; unknown or missing keys are a UserError."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        missing = sorted(required - set(values))
        if unknown or missing:
            raise UserError(f"the encoder's config has unknown keys {unknown} and lacks {missing}")
        return cls(**values)

    def to_dict(self) -> dict:
        """Plain data that `from_dict` takes.

        What came later is left out where it changes nothing, so that runs begun before can go on.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {k: v for k, v in values.items() if k not in LATER or v != LATER[k]}

    @property
    def receptive_field(self) -> int:
        """Samples of the shortest clip that gives a frame."""
        return receptive_field(self.conv_kernels, self.conv_strides)

    def num_frames(self, num_samples: int) -> int:
        """Frames for a clip of `num_samples` samples."""
        return num_frames(num_samples, self.conv_kernels, self.conv_strides)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return hop(self.conv_strides)


def _check_value(name: str, value: object, kind: str) -> None:
    """UserError unless a value is of its kind and of a size that a network can have: configs come from outside."""

    def is_whole(number: object, limit: int = MAX_SIZE, least: int = 1) -> bool:
        return type(number) is int and least <= number <= limit

    sizes = isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_LAYERS and all(map(is_whole, value))
    allowed = {
        "int": is_whole(value, MAX_LAYERS, least=0) if "layers" in name else is_whole(value),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "float": type(value) in (int, float) and 0 <= value < 1,
        "tuple[int, ...]": sizes,
    }
    if not (allowed[kind.removesuffix(" | None")] or (value is None and kind.endswith(" | None"))):
        raise UserError(f"the encoder's {name} is {str(value)[:80]}, which no encoder has ({kind} is wanted)")


class Encoder(nn.Module):
    """Raw waveforms to contextual frames.

    An objective that masks or taps the features calls `features` and `contextualize` in turn; `forward` is both.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.feature_encoder = _feature_encoder(config)
        channels = config.conv_channels[-1]
        self.feature_norm = nn.LayerNorm(channels, eps=config.norm_eps) if config.feature_norm else nn.Identity()
        self.projection = nn.Linear(config.conv_channels[-1], config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.context = _context(config)

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """Waveforms [B, N] with lengths [B] in samples -> the feature encoder's frames [P, C_conv], frames a clip."""
        return self.feature_encoder(waveforms, lengths)

    def project(self, normed: Tensor, mask: Tensor | None = None, *, drop: bool = True) -> Tensor:
        """Features after `feature_norm` [P, C_conv] -> the context network's input [P, C], hidden where `mask` [P]."""
        x = self.projection(normed)
        if drop and self.config.projection_dropout:
            x = dropout(x, self.config.projection_dropout, self.training)
        return x if mask is None else torch.where(to_device(mask, x.device)[:, None], self.mask_vector.to(x.dtype), x)

    def contextualize(
        self,
        normed: Tensor,
        frame_lengths: list[int],
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        visible_only: bool = False,
        generator: torch.Generator | None = None,
        context: nn.Module | None = None,
    ) -> EncoderOutput:
        """Features after `feature_norm` [P, C_conv] -> EncoderOutput.

        Frames where `mask` [P] is true are hidden by the mask vector, values where `channel_mask` [P, C] is true by 0;
        both are best on the CPU, where shapes are decided. With `visible_only` the positions alone see hidden frames,
        and there is no output of them. `context` takes the place of the context network, as a teacher does, for which
        nothing is dropped.
        """
        rows = int((~mask).sum()) if visible_only else len(normed)
        # A clip of zeros at the end, dropped again, rounds the rows up; as any clip it does not touch the others.
        filler = missing(rows, ROWS)
        lengths = [*frame_lengths, filler] if filler else frame_lengths
        mask = None if mask is None else F.pad(mask, (0, filler))
        x = self.project(F.pad(normed, (0, 0, 0, filler)), mask, drop=context is None)
        if channel_mask is not None:
            x = x.masked_fill(to_device(F.pad(channel_mask, (0, 0, 0, filler)), x.device), 0.0)
        chosen = {}
        if visible_only:
            frame_lengths = [int((~part).sum()) for part in mask.split(lengths)]
            chosen = {"visible": (to_device((~mask).nonzero().squeeze(1), x.device), frame_lengths)}
            frame_lengths = frame_lengths[: len(lengths) - bool(filler)]
        states = (context or self.context)(x, lengths, generator=generator, **chosen)
        return EncoderOutput([state[:rows] for state in states], frame_lengths)

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> EncoderOutput:
        """Waveforms float32 [B, N] and lengths int64 [B] in samples -> EncoderOutput."""
        features, frame_lengths = self.features(waveforms, lengths)
        return self.contextualize(self.feature_norm(features), frame_lengths, mask=mask, generator=generator)


def _feature_encoder(config: EncoderConfig) -> FeatureEncoder | FbankEncoder:
    shape = {
        "channels": config.conv_channels,
        "kernels": config.conv_kernels,
        "strides": config.conv_strides,
        "norm": config.conv_norm,
        "bias": config.conv_bias,
    }
    if config.feature_encoder != "conv":
        return FbankEncoder(**shape, stacked=config.feature_encoder == "stacked")
    return FeatureEncoder(**shape, init=config.conv_init)


def _context(config: EncoderConfig) -> nn.Module:
    if config.context in PAST_CONTEXTS:
        kind = PAST_CONTEXTS[config.context]
        return kind(hidden_size=config.hidden_size, num_layers=config.num_layers, dropout=config.dropout)
    return ContextNetwork(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        feed_forward_size=config.feed_forward_size,
        position_kernel=config.position_kernel,
        position_groups=config.position_groups,
        pre_norm=config.pre_norm,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        layer_drop=config.layer_drop,
        norm_eps=config.norm_eps,
        position_layers=config.position_layers,
        relative_buckets=config.relative_buckets,
        relative_distance=config.relative_distance,
        causal=config.causal,
        hourglass=config.hourglass,
    )
