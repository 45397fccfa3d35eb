"""The encoder: feature encoder, projection and context network, built from one plain config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.context import ContextNetwork
from speechssl.models.feature_encoder import FeatureEncoder
from speechssl.models.lengths import hop, missing, receptive_field
from speechssl.types import EncoderOutput

# The context network sees a number of frames that is a multiple of this.
ROWS = 64


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder; plain data, so that it lives in a checkpoint.

    Attributes:
        conv_channels, conv_kernels, conv_strides: the feature encoder, one number a layer.
        conv_norm: "group" (first layer, BASE) or "layer" (each layer, LARGE).
        conv_bias: whether the convolutions have a bias.
        conv_init: how the convolutions begin: "kaiming" (the reference) or "average" (each a local mean, plus noise).
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

    def __post_init__(self) -> None:
        for name in ("conv_channels", "conv_kernels", "conv_strides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides):
            raise UserError("the encoder's conv_channels, conv_kernels and conv_strides must be equally long lists")
        if self.conv_norm not in ("group", "layer"):
            raise UserError(f"the encoder's conv_norm is {self.conv_norm!r}, but must be 'group' or 'layer'")
        if self.conv_init not in ("kaiming", "average"):
            raise UserError(f"the encoder's conv_init is {self.conv_init!r}, but must be 'kaiming' or 'average'")
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
        """Plain data that `from_dict` takes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @property
    def receptive_field(self) -> int:
        """Samples of the shortest clip that gives a frame."""
        return receptive_field(self.conv_kernels, self.conv_strides)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return hop(self.conv_strides)


class Encoder(nn.Module):
    """Raw waveforms to contextual frames.

    An objective that masks or taps the features calls `features` and `contextualize` in turn; `forward` is both.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.feature_encoder = FeatureEncoder(
            channels=config.conv_channels,
            kernels=config.conv_kernels,
            strides=config.conv_strides,
            norm=config.conv_norm,
            bias=config.conv_bias,
            averaging=config.conv_init == "average",
        )
        channels = config.conv_channels[-1]
        self.feature_norm = nn.LayerNorm(channels, eps=config.norm_eps) if config.feature_norm else nn.Identity()
        self.projection = nn.Linear(config.conv_channels[-1], config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.context = ContextNetwork(
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
        )

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """Waveforms [B, N] with lengths [B] in samples -> the feature encoder's frames [P, C_conv], frames a clip."""
        return self.feature_encoder(waveforms, lengths)

    def contextualize(
        self,
        normed: Tensor,
        frame_lengths: list[int],
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> EncoderOutput:
        """Features after `feature_norm` [P, C_conv] -> EncoderOutput; frames where `mask` [P] is true are hidden."""
        # A clip of zeros at the end, dropped again, rounds the rows up; as any clip it does not touch the others.
        rows, filler = len(normed), missing(len(normed), ROWS)
        lengths = [*frame_lengths, filler] if filler else frame_lengths
        x = self.projection(F.pad(normed, (0, 0, 0, filler)))
        if self.config.projection_dropout:
            x = F.dropout(x, self.config.projection_dropout, self.training)
        if mask is not None:
            x = torch.where(F.pad(mask, (0, filler))[:, None], self.mask_vector.to(x.dtype), x)
        states = self.context(x, lengths, generator=generator)
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
