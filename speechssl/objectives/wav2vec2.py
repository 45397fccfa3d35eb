"""wav2vec 2.0: tell the true quantized target of a masked frame from distractors (Baevski et al. 2020, section 3).

Everything that is not needed at unmasked frames is computed at masked frames only, and the similarities of a clip are
one matrix product: of its M masked frames to the M targets of the same clip. How often each was drawn as a distractor
enters as log(count), so K distractors never exist as a tensor of K x M vectors; the loss is the same sum.

With `num_masks` above 1 the features and targets of a clip serve several masks, and with `decoder_layers` above 0 the
layers encode visible frames only (both as in data2vec 2.0, arXiv 2212.07525).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.lengths import missing
from speechssl.models.masking import pad_rows, sample_distractors
from speechssl.models.quantizer import GumbelQuantizer, Quantized, gumbel_noise, perplexity
from speechssl.objectives.common import (
    PretrainingObjective,
    draw_masks,
    encoder_features,
    hidden_frames,
    in_fp32,
    join_masks,
    light_decoder,
    spread,
)
from speechssl.rng import generator as make_generator
from speechssl.training.distributed import mean_over_ranks
from speechssl.types import Batch, LossOutput, Term, at_least_fp32, to_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Rows of a clip's similarities are rounded up to a multiple of this.
GRAIN = 16
# Similarities that are computed at once: on a CPU as many as stay in its cache, on a GPU as many as keep it busy.
TOGETHER, GPU_TOGETHER = 2**18, 2**25


@dataclass
class Draw:
    """The random choices for a batch, so that they can be given and tested.

    Attributes:
        masks: bool [num_masks, P] on the CPU, the hidden frames of all clips, packed, of each mask.
        num_masked: hidden frames of each clip that takes part in the loss, in the order of the clips, mask by mask.
        distractors: int64 [sum of M, K], of those clips one after the other: numbers of masked frames within the clip.
        noise: Gumbel noise [U, G, V] for the frames that are hidden in any mask, or None to take the likeliest
            codeword.
    """

    masks: Tensor
    num_masked: list[int]
    distractors: Tensor
    noise: Tensor | None


class Wav2Vec2Objective(PretrainingObjective):
    """Contrastive loss with the diversity loss and the feature penalty."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        num_groups: int,
        num_codewords: int,
        code_size: int,
        final_size: int,
        num_distractors: int,
        temperature: float,
        diversity_weight: float,
        feature_penalty: float,
        feature_gradient_scale: float,
        feature_dropout: float,
        mask_start_probability: float,
        mask_span: int,
        mask_min_spans: int,
        gumbel_start: float,
        gumbel_end: float,
        gumbel_decay: float | None,
        num_masks: int = 1,
        decoder_layers: int = 0,
        decoder_size: int = 0,
    ):
        """Args:
        num_groups, num_codewords, code_size: the quantizer's G, V and the size of its concatenated codewords.
        final_size: where contexts and targets are compared.
        num_distractors: K.
        temperature: kappa of equation 3.
        diversity_weight: alpha of equation 2.
        feature_penalty: weight of the mean square of the feature encoder's output.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        feature_dropout: on the features that the quantizer sees.
        mask_start_probability, mask_span, mask_min_spans: see `span_mask`.
        gumbel_start, gumbel_end: the quantizer's temperature at the first step and its floor.
        gumbel_decay: factor a step; None reaches gumbel_end at 70 % of the run, as the paper's run did.
        num_masks, decoder_layers, decoder_size: masks that share a clip's features and targets, and the convolutions
            that fill in hidden frames; see `hidden_frames`. 0 layers: the layers see mask vectors.
        """
        super().__init__()
        least = 3 if decoder_layers else 2  # a decoder needs a visible frame
        if mask_span < least:
            raise UserError(
                f"objective.mask_span is {mask_span}, but distractors need spans of at least {least} frames"
                + (" beside a decoder" if decoder_layers else "")
            )
        self.quantizer = GumbelQuantizer(
            encoder.conv_channels[-1], num_groups=num_groups, num_codewords=num_codewords, code_size=code_size
        )
        self.project_context = nn.Linear(encoder.hidden_size, final_size)
        self.project_target = nn.Linear(code_size, final_size)
        self.decoder = light_decoder(encoder, decoder_layers, decoder_size)
        self.num_masks, self.num_distractors, self.temperature = num_masks, num_distractors, temperature
        self.diversity_weight, self.feature_penalty = diversity_weight, feature_penalty
        self.feature_gradient_scale, self.feature_dropout = feature_gradient_scale, feature_dropout
        self.mask_options = {
            "start_probability": mask_start_probability,
            "span": mask_span,
            "min_spans": mask_min_spans,
        }
        self.gumbel_start, self.gumbel_end, self.gumbel_decay = gumbel_start, gumbel_end, gumbel_decay
        self.gumbel_temperature = gumbel_start

    @classmethod
    def complete(cls, values: dict[str, Any], config: DictConfig) -> dict[str, Any]:
        """Without what came later where it changes nothing, so that runs begun before can go on."""
        needless = {"num_masks": 1, "decoder_layers": 0}
        if not values.get("decoder_layers"):
            needless["decoder_size"] = values.get("decoder_size")
        return {key: value for key, value in values.items() if key not in needless or value != needless[key]}

    def begin_step(self, step: int, max_steps: int) -> None:
        """Anneal the quantizer's temperature; a function of the step alone, so that a resumed run continues."""
        super().begin_step(step, max_steps)
        decay = self.gumbel_decay
        if decay is None:
            decay = (self.gumbel_end / self.gumbel_start) ** (1 / max(0.7 * max_steps, 1))
        self.gumbel_temperature = max(self.gumbel_start * decay**step, self.gumbel_end)

    def _masks(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """bool [num_masks, P]."""
        drawn = [
            draw_masks(batch, frame_lengths, self.mask_options, *_of_mask(number)) for number in range(self.num_masks)
        ]
        return join_masks(drawn, keep_one=self.decoder is not None)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return, from lengths and seeds alone."""
        return self._counts(self._masks(batch, frame_lengths))

    def _counts(self, masks: Tensor) -> dict[str, int]:
        asked = int(masks.any(0).sum())
        return {"contrastive": int(masks.sum()), "diversity": asked, "feature_penalty": masks.shape[1]}

    def draw(self, batch: Batch, frame_lengths: list[int]) -> Draw:
        """Masks, distractors and (in training) Gumbel noise of each clip, from its seed.

        Masks are on the CPU, since shapes depend on them, all else is drawn where the waveforms are.
        """
        device = batch.waveforms.device
        masks = self._masks(batch, frame_lengths)
        num_masked, random = [], []
        for number, mask in enumerate(masks):
            for part, seed in zip(mask.split(frame_lengths), batch.seeds, strict=True):
                if part.any():
                    num_masked.append(int(part.sum()))
                    random.append(make_generator(seed, "distractors", *_of_mask(number), device=device))
        distractors = torch.zeros(0, self.num_distractors, dtype=torch.long, device=device)
        if num_masked:
            distractors = sample_distractors(num_masked, self.num_distractors, generators=random)
        noise = None
        if self.training:
            shape = self.quantizer.num_groups, self.quantizer.num_codewords
            counts = [int(part.sum()) for part in masks.any(0).split(frame_lengths)]
            random = [make_generator(seed, "gumbel", device=device) for seed in batch.seeds]
            noise = gumbel_noise(counts, *shape, generators=random)
        return Draw(masks, num_masked, distractors, noise)

    def forward(
        self,
        encoder: Encoder,
        batch: Batch,
        generator: torch.Generator | None = None,
        draw: Draw | None = None,
    ) -> LossOutput:
        """Loss of a batch; `draw` replaces the random choices that the clips' seeds would give."""
        features, frame_lengths = encoder_features(encoder, batch, self.feature_gradient_scale)
        penalty = at_least_fp32(features).pow(2).mean(-1).sum()
        normed = encoder.feature_norm(features)

        draw = draw or self.draw(batch, frame_lengths)
        count = self._counts(draw.masks)
        last, hidden = hidden_frames(
            encoder, normed, frame_lengths, draw.masks, seeds=batch.seeds, decoder=self.decoder, generator=generator
        )
        contexts = self.project_context(hidden)[: count["contrastive"]]
        quantized, rows = self._quantize(normed, draw)
        targets = self.project_target(quantized.vectors.to(contexts.dtype))
        asked = count["diversity"]
        quantized, targets = quantized.first(asked), targets[:asked]

        contrastive = self._contrastive(contexts, targets[rows], quantized.codes[rows], draw)
        size = self.quantizer.num_groups * self.quantizer.num_codewords
        # Over the clips of all ranks, as of one large batch.
        mean_probabilities = mean_over_ranks(quantized.probabilities.sum(0), asked)
        diversity = (size - perplexity(mean_probabilities)) / size
        code_perplexity = _code_perplexity(quantized)
        metrics = {}
        if self.watching and asked:
            metrics = spread(last) | spread(targets, "target_variance")
            metrics |= {
                "code_usage": (code_perplexity / size, 1),
                "energy_gap": (contrastive.gap, count["contrastive"]),
            }
        return LossOutput(
            terms={
                "contrastive": Term(contrastive.loss, count["contrastive"]),
                "diversity": Term(diversity * asked, asked, self.diversity_weight),
                "feature_penalty": Term(penalty, count["feature_penalty"], self.feature_penalty),
            },
            metrics={
                "accuracy": (contrastive.correct, count["contrastive"]),
                "chance": (contrastive.chance, count["contrastive"]),
                "code_perplexity": (code_perplexity, min(asked, 1)),
                "gumbel_temperature": (self.gumbel_temperature, 1),
                **metrics,
            },
        )

    def _quantize(self, normed: Tensor, draw: Draw) -> tuple[Quantized, Tensor]:
        """Codewords of the frames that any mask hides, with rows after them so that shapes recur; and which of them
        each hidden frame has, mask by mask: int64 [sum of M]."""
        hidden = draw.masks.any(0)
        places = to_device(pad_rows(hidden.nonzero().squeeze(1)), normed.device)
        x = F.dropout(normed.index_select(0, places), self.feature_dropout, self.training)
        noise = draw.noise
        if noise is not None:
            noise = F.pad(noise, (0, 0, 0, 0, 0, len(places) - len(noise)))
        rows = to_device((hidden.cumsum(0) - 1)[draw.masks.nonzero()[:, 1]], normed.device)
        return self.quantizer(x, temperature=self.gumbel_temperature, noise=noise), rows

    def _contrastive(self, contexts: Tensor, targets: Tensor, codes: Tensor, draw: Draw) -> _Contrastive:
        """Equation 3, summed over the masked frames [sum of M, D] of all clips, in fp32."""
        contexts = F.normalize(at_least_fp32(contexts), dim=-1, eps=1e-8)
        targets = F.normalize(at_least_fp32(targets), dim=-1, eps=1e-8)
        total = _Contrastive(*(contexts.new_zeros(()) for _ in range(4)))
        # Of no frames at all still a function of the weights: FSDP2 waits for every rank to go back through a layer.
        total.loss = contexts[:0].sum() + targets[:0].sum()
        nobody = len(contexts)  # a row of zeros behind the last
        contexts, targets, distractors = (F.pad(x, (0, 0, 0, 1)) for x in (contexts, targets, draw.distractors))
        codes = F.pad(codes, (0, 0, 0, 1), value=-1)
        for rows in _alike(draw.num_masked, TOGETHER if contexts.device.type == "cpu" else GPU_TOGETHER):
            places = to_device(rows, contexts.device)

            def of(x: Tensor, places: Tensor = places) -> Tensor:
                return x.index_select(0, places.flatten()).unflatten(0, places.shape)

            with in_fp32(contexts):
                similarity = of(contexts) @ of(targets).mT / self.temperature
            same, there = (of(codes)[:, :, None] == of(codes)[:, None]).all(-1), places != nobody
            log_counts = _log_counts(of(distractors), same, there)
            total.add(similarity, log_counts, same, there)
            if self.watching:
                total.watch(similarity.detach() * self.temperature, log_counts)
        return total


@dataclass
class _Contrastive:
    """Sums over masked frames: loss (nats), right answers, the share of right ones that guessing would give, and how
    much larger the cosine with the true target is than the mean one with the distractors."""

    loss: Tensor
    correct: Tensor
    chance: Tensor
    gap: Tensor

    def watch(self, cosines: Tensor, log_counts: Tensor) -> None:
        """Add the energy gaps of clips: cosines [B, M, M]. A frame without a distractor has none (all codes alike)."""
        drawn = log_counts.exp()
        drawn.diagonal(dim1=1, dim2=2).zero_()
        others = drawn.sum(2)
        mean = (cosines * drawn).sum(2) / others.clamp_min(1.0)
        self.gap = self.gap + ((cosines.diagonal(dim1=1, dim2=2) - mean) * (others > 0)).sum()

    def add(self, similarity: Tensor, log_counts: Tensor, same: Tensor, there: Tensor) -> None:
        """Add clips: similarities [B, M, M] of their contexts to their targets, the true one on the diagonal.

        log_counts: how often each was drawn, see `_log_counts`. same: which frames have the same codes; to a guess they
        are one candidate. there: bool [B, M], which rows are frames; the others' loss is 0.
        """
        logits = similarity + log_counts
        true = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))
        self.loss = self.loss + F.cross_entropy(logits.flatten(0, 1), true, reduction="sum")
        with torch.no_grad():
            candidate = log_counts.isfinite()
            best = similarity.masked_fill(~candidate, -torch.inf).amax(2)
            self.correct = self.correct + ((similarity.diagonal(dim1=1, dim2=2) >= best) & there).sum()
            repeats = candidate.float() @ same.float().triu(1)
            distinct = (candidate & (repeats == 0)).sum(2)
            self.chance = self.chance + (there / distinct).sum()


def _of_mask(number: int) -> tuple[int, ...]:
    """What tells the choices of a clip's further masks from those of its first."""
    return (number,) if number else ()


def _alike(num_masked: list[int], together: int) -> Iterator[Tensor]:
    """Clips of similar numbers of masked frames, for products of them at once: int64 [B, M], the row of each frame
    among those of all clips, and the row behind the last where a clip has fewer.

    M is a number that occurs again. There are at most `together` similarities, B * M * M, unless one clip has more, and
    at most half as many again as the clips have one by one.
    """
    starts, rounded = list(accumulate(num_masked, initial=0)), [n + missing(n, GRAIN) for n in num_masked]
    order = sorted(range(len(num_masked)), key=num_masked.__getitem__, reverse=True)
    while order:
        longest, count, wanted = rounded[order[0]], 0, 0
        for number in order:
            wanted += rounded[number] ** 2
            area = (count + 1) * longest**2
            if count and (area > together or area > 1.5 * wanted):
                break
            count += 1
        chosen, order = sorted(order[:count]), order[count:]
        rows = torch.full((count, longest), starts[-1])
        for row, number in zip(rows, chosen, strict=True):
            row[: num_masked[number]] = torch.arange(starts[number], starts[number + 1])
        yield rows


def _log_counts(distractors: Tensor, same: Tensor, there: Tensor) -> Tensor:
    """[B, M, M]: log of how often frame j distracts from frame i; 0 on the diagonal, -inf where never.

    A distractor with the same codes as the true target is no distractor (as in fairseq and transformers): -inf too.
    """
    counts = torch.zeros(same.shape, device=same.device)
    counts.scatter_add_(2, distractors, there[:, :, None].to(counts.dtype).expand(distractors.shape))
    counts.masked_fill_(same, 0.0).diagonal(dim1=1, dim2=2).fill_(1.0)
    return counts.log_()


def _code_perplexity(quantized: Quantized) -> Tensor:
    """Perplexity of the hard choices within the batch of all ranks, summed over groups."""
    with torch.no_grad():
        used = torch.zeros_like(quantized.probabilities[:1].sum(0))
        used.scatter_add_(1, quantized.codes.T, torch.ones_like(quantized.codes.T, dtype=used.dtype))
        return perplexity(mean_over_ranks(used, len(quantized.codes)))
