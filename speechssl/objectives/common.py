"""What the objectives share: when health is measured, masks, the masked encoder, and figures that show a collapse.

The figures have one name in every objective, so that runs can be compared and watched alike:

- `output_variance`: how far the last hidden states differ from frame to frame; 1 where they point everywhere, 0 where
  all point one way.
- `effective_rank`: how many directions they use.
- `code_usage`: share of the codes, clusters or labels that the batch would need if each were as likely.
- `energy_gap`: by how much pairs that belong together score better than pairs that do not; 0 after a collapse.
- `target_variance`: as `output_variance`, of targets that are vectors and could collapse too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.decoder import GROUPS, Decoder
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.masking import pad_rows, span_mask
from speechssl.rng import generator as make_generator
from speechssl.training.distributed import ranks, sum_over_ranks
from speechssl.types import Batch, EncoderOutput, to_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from speechssl.manifest import Manifest

# Health is measured at the first step and at every so many, and in validation.
WATCH_EVERY = 10
# Frames that the covariance of a batch is taken from, at most.
SAMPLE = 1024

Metrics = dict[str, tuple[float | Tensor, float]]


class PretrainingObjective(nn.Module):
    """A self-supervised objective: what the commands and the trainer ask of it besides `counts` and `forward`."""

    watching = True
    # Whether stored labels of frames have to fit the clips as they are.
    has_frame_labels = False
    # What the encoder has to be for this objective, whatever the model's yaml says: keys of EncoderConfig.
    encoder_needs: ClassVar[dict[str, Any]] = {}

    @classmethod
    def complete(cls, values: dict[str, Any], config: DictConfig) -> dict[str, Any]:
        """The constructor's keyword arguments, where they follow from more than the objective's own yaml."""
        return values

    def prepare(self, config: DictConfig, manifests: Sequence[Manifest | None]) -> None:
        """Whatever has to be made from the data before training; `config` is that of `pretrain`."""

    def begin_step(self, step: int, max_steps: int) -> None:
        """Called before each training step (from 1) and before a validation."""
        self.watching = not self.training or step == 1 or step % WATCH_EVERY == 0


def draw_masks(batch: Batch, frame_lengths: list[int], options: dict, *number: int) -> list[Tensor]:
    """bool [T] of each clip: which frames are hidden, from the clip's seed; `options` are those of `span_mask`.

    Where a clip has several masks, `number` says which.
    """
    return [
        span_mask(frames, generator=make_generator(seed, "mask", *number), **options)
        for frames, seed in zip(frame_lengths, batch.seeds, strict=True)
    ]


def join_masks(drawn: list[list[Tensor]], *, keep_one: bool) -> Tensor:
    """bool [number of masks, P] from each mask's clips; with `keep_one` no clip is hidden whole."""
    for mask in (mask for masks in drawn for mask in masks if keep_one):
        mask[0] &= not mask.all()
    return torch.stack([torch.cat(masks) for masks in drawn])


def encoder_features(encoder: Encoder, batch: Batch, gradient_scale: float) -> tuple[Tensor, list[int]]:
    """The feature encoder's frames [P, C_conv] and frames a clip; its gradient is scaled, or never computed at 0."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient_scale != 0.0):
        features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    if gradient_scale != 1.0 and features.requires_grad:
        features = _ScaleGradient.apply(features, gradient_scale)
    return features, frame_lengths


def encode_masked(
    encoder: Encoder,
    batch: Batch,
    options: dict,
    *,
    gradient_scale: float,
    generator: torch.Generator | None,
) -> tuple[EncoderOutput, Tensor]:
    """The encoder's output with frames hidden, and which were: bool [P], on the CPU, which shapes depend on."""
    features, frame_lengths = encoder_features(encoder, batch, gradient_scale)
    mask = torch.cat(draw_masks(batch, frame_lengths, options))
    normed = encoder.feature_norm(features)
    return encoder.contextualize(normed, frame_lengths, mask=mask, generator=generator), mask


def light_decoder(encoder: EncoderConfig, num_layers: int, size: int) -> Decoder | None:
    """The decoder that objective.decoder_layers and objective.decoder_size ask for; None for 0 layers.

    Raises:
        UserError: it has no such size, or the context network needs hidden frames too.
    """
    if not num_layers:
        return None
    if size < GROUPS or size % GROUPS:
        raise UserError(f"objective.decoder_size is {size}, but must be a multiple of {GROUPS}")
    if encoder.context != "transformer":
        raise UserError(
            f"objective.decoder_layers is {num_layers}, but a {encoder.context} context network needs every frame; "
            "leave it at 0"
        )
    return Decoder(encoder.hidden_size, size, num_layers)


def hidden_frames(
    encoder: Encoder,
    normed: Tensor,
    frame_lengths: list[int],
    masks: Tensor,
    *,
    seeds: list[int],
    decoder: Decoder | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """What the context network says of hidden frames, for several masks of a batch at once.

    With a decoder the layers see visible frames only, and the decoder fills in the others (data2vec 2.0); its noise
    comes from the clips' seeds.

    Args:
        normed: features after `feature_norm` [P, C_conv].
        masks: bool [K, P] on the CPU; with a decoder a frame of each clip at least is visible in each.

    Returns: the last layer's frames, and those of the M hidden ones, mask by mask: [M', C], where rows after the M-th
    are there so that shapes recur.
    """
    hidden, lengths = masks.flatten(), frame_lengths * len(masks)
    normed = normed.repeat(len(masks), 1) if len(masks) > 1 else normed
    if decoder is None:
        output = encoder.contextualize(normed, lengths, mask=hidden, generator=generator)
        rows = to_device(pad_rows(hidden.nonzero().squeeze(1)), normed.device)
        return output.packed[-1], output.packed[-1].index_select(0, rows)
    frames = encoder.contextualize(normed, lengths, mask=hidden, visible_only=True, generator=generator).packed[-1]
    counts = [[int(part.sum()) for part in mask.split(frame_lengths)] for mask in masks]
    noise = []
    for number, of_mask in enumerate(counts):
        for count, seed in zip(of_mask, seeds, strict=True):
            random = make_generator(seed, "decoder", number, device=frames.device)
            noise.append(torch.randn(count, decoder.size, generator=random, device=random.device))
    return frames, decoder(frames, hidden, 0.01 * torch.cat(noise), lengths)


def encode_views(
    encoder: Encoder, views: Batch, *, gradient_scale: float, generator: torch.Generator | None
) -> EncoderOutput:
    """The encoder's output for crops of clips, none of them masked."""
    features, frame_lengths = encoder_features(encoder, views, gradient_scale)
    return encoder.contextualize(encoder.feature_norm(features), frame_lengths, generator=generator)


def in_fp32(x: Tensor) -> torch.autocast:
    """A context in which products stay as they are given, whatever the run's precision: losses, and what is counted."""
    return torch.autocast(x.device.type, enabled=False)


def mlp(input_size: int, size: int, output_size: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: a projector of pooled frames, which otherwise soon collapses at a high rate.

    The norm has the batch's own statistics always, teacher and validation too.
    """
    return nn.Sequential(
        nn.Linear(input_size, size),
        nn.BatchNorm1d(size, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(size, output_size),
    )


def pool(output: EncoderOutput) -> Tensor:
    """[B, C]: the mean of each clip's last frames."""
    return torch.stack([clip.mean(0) for clip in output.packed[-1].split(output.frame_lengths)])


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """[M, D] of each rank -> all ranks' rows with gradient, and where this rank's begin."""
    world = ranks()
    if world is None:
        return x, 0
    rank, size = world
    sizes = sum_over_ranks(F.one_hot(torch.tensor(rank, device=x.device), size) * len(x)).tolist()
    start = sum(sizes[:rank])
    # Each rank's rows among zeros: their sum is all rows, and its gradient reaches them.
    return sum_over_ranks(F.pad(x, (0, 0, start, sum(sizes) - start - len(x)))), start


@torch.no_grad()
def view_gap(first: Tensor, second: Tensor) -> Metrics:
    """Two views of B clips [B, D] -> mean cosine of the views of one clip less that of views of two clips."""
    if len(first) < 2:
        return {"energy_gap": (0.0, len(first))}
    own = F.cosine_similarity(first.float(), second.float(), dim=-1)
    other = F.cosine_similarity(first.float(), second.float().roll(1, 0), dim=-1)
    return {"energy_gap": ((own - other).sum(), len(own))}


@torch.no_grad()
def spread(frames: Tensor, name: str = "output_variance") -> Metrics:
    """Frames [P, C] of a batch -> variance and, for outputs, effective rank.

    The variance is that of the directions, summed over channels, as a share of what it can be: 1 - |mean direction|^2.
    The rank is exp(entropy) of the covariance's eigenvalues (Roy and Vetterli 2007).
    """
    if len(frames) < 2:
        return {}
    frames = frames[:: max(len(frames) // SAMPLE, 1)].float().nan_to_num()  # a step that is skipped ends nothing
    directions = F.normalize(frames, dim=-1)
    metrics = {name: (1 - directions.mean(0).square().sum(), 1)}
    if name == "output_variance":
        centred = frames - frames.mean(0)
        with in_fp32(frames):
            covariance = centred.T @ centred / len(frames)
        values = torch.linalg.eigvalsh(covariance).clamp_min(0)
        share = values / values.sum().clamp_min(torch.finfo(torch.float32).tiny)
        metrics["effective_rank"] = (torch.special.entr(share).sum().exp(), 1)
    return metrics


@torch.no_grad()
def usage(codes: Tensor, num_codes: int) -> Metrics:
    """int64 [M] -> perplexity of the codes of a batch as a share of how many there are."""
    if not len(codes):
        return {}
    share = torch.bincount(codes, minlength=num_codes).float() / len(codes)
    return {"code_usage": (torch.special.entr(share).sum().exp() / num_codes, 1)}


@torch.no_grad()
def vector_gap(predictions: Tensor, targets: Tensor) -> Metrics:
    """Two [M, D] -> mean cosine of a prediction with its own target less that with another's, half a batch away."""
    if len(predictions) < 2:
        return {}
    # Centred: a part that all targets share tells nothing apart.
    predictions, targets = (x.float() - x.float().mean(0) for x in (predictions, targets))
    own = F.cosine_similarity(predictions, targets, dim=-1)
    other = F.cosine_similarity(predictions, targets.roll(len(targets) // 2, 0), dim=-1)
    return {"energy_gap": ((own - other).sum(), len(own))}


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is scaled."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None
