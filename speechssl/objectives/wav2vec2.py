"""wav2vec 2.0: tell the true quantized target of a masked frame from distractors (Baevski et al. 2020, section 3).

Everything that is not needed at unmasked frames is computed at masked frames only, and the similarities of a clip are
one matrix product: of its M masked frames to the M targets of the same clip. How often each was drawn as a distractor
enters as log(count), so K distractors never exist as a tensor of K x M vectors; the loss is the same sum.

With `num_masks` above 1 the features and targets of a clip serve several masks, and with `decoder_layers` above 0 the
layers encode visible frames only (both as in data2vec 2.0, arXiv 2212.07525).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.lengths import missing
from speechssl.models.masking import sample_distractors
from speechssl.models.quantizer import GumbelQuantizer, Quantized, gumbel_noise, perplexity
from speechssl.objectives.common import (
    PretrainingObjective,
    draw_masks,
    encoder_features,
    hidden_frames,
    in_fp32,
    join_masks,
    light_decoder,
    pad_rows,
    spread,
)
from speechssl.rng import generator as make_generator
from speechssl.training.distributed import mean_over_ranks
from speechssl.types import Batch, LossOutput, Term, at_least_fp32, to_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Rows of a clip's similarities are rounded up to a multiple of this.
GRAIN = 16


@dataclass
class Draw:
    """The random choices for a batch, so that they can be given and tested.

    Attributes:
        masks: bool [num_masks, P] on the CPU, the hidden frames of all clips, packed, of each mask.
        num_masked: hidden frames of each clip that takes part in the loss, in the order of the clips, mask by mask.
        distractors: int64 [M, K] for each of those clips, numbers of masked frames within the clip.
        noise: Gumbel noise [U, G, V] for the frames that are hidden in any mask, or None to take the likeliest
            codeword.
    """

    masks: Tensor
    num_masked: list[int]
    distractors: list[Tensor]
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
        num_masked, distractors, noise = [], [], []
        for number, mask in enumerate(masks):
            for part, seed in zip(mask.split(frame_lengths), batch.seeds, strict=True):
                masked = int(part.sum())
                if masked:
                    random = make_generator(seed, "distractors", *_of_mask(number), device=device)
                    num_masked.append(masked)
                    distractors.append(sample_distractors(masked, self.num_distractors, generator=random))
        if self.training:
            shape = self.quantizer.num_groups, self.quantizer.num_codewords
            for part, seed in zip(masks.any(0).split(frame_lengths), batch.seeds, strict=True):
                random = make_generator(seed, "gumbel", device=device)
                noise.append(gumbel_noise(int(part.sum()), *shape, generator=random))
        return Draw(masks, num_masked, distractors, torch.cat(noise) if noise else None)

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
        start = 0
        for masked, distractors in zip(draw.num_masked, draw.distractors, strict=True):
            part = slice(start, start + masked)
            similarity = _products(contexts[part], targets[part]) / self.temperature
            same = (codes[part, None] == codes[None, part]).all(-1)
            log_counts = _log_counts(distractors, same)
            total.add(similarity, log_counts, same)
            if self.watching:
                total.watch(similarity.detach() * self.temperature, log_counts)
            start += masked
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
        """Add a clip's energy gap: cosines [M, M]. A frame without a distractor, all codes being alike, has none."""
        drawn = log_counts.exp().fill_diagonal_(0.0)
        others = drawn.sum(1)
        mean = (cosines * drawn).sum(1) / others.clamp_min(1.0)
        self.gap = self.gap + ((cosines.diagonal() - mean) * (others > 0)).sum()

    def add(self, similarity: Tensor, log_counts: Tensor, same: Tensor) -> None:
        """Add a clip: similarities [M, M] of its contexts to its targets, the true one on the diagonal.

        log_counts: how often each was drawn, see `_log_counts`. same: which frames have the same codes; to a guess they
        are one candidate.
        """
        logits = similarity + log_counts
        true = torch.arange(len(logits), device=logits.device)
        self.loss = self.loss + F.cross_entropy(logits, true, reduction="sum")
        with torch.no_grad():
            candidate = log_counts.isfinite()
            best = similarity.masked_fill(~candidate, -torch.inf).amax(1)
            self.correct = self.correct + (similarity.diagonal() >= best).sum()
            repeats = candidate.float() @ same.float().triu(1)
            distinct = (candidate & (repeats == 0)).sum(1)
            self.chance = self.chance + (1 / distinct).sum()


def _of_mask(number: int) -> tuple[int, ...]:
    """What tells the choices of a clip's further masks from those of its first."""
    return (number,) if number else ()


def _products(contexts: Tensor, targets: Tensor) -> Tensor:
    """[M, D], [M, D] -> [M, M], computed with a number of rows that occurs again."""
    masked, filler = len(contexts), (0, 0, 0, missing(len(contexts), GRAIN))
    with in_fp32(contexts):
        return (F.pad(contexts, filler) @ F.pad(targets, filler).T)[:masked, :masked]


def _log_counts(distractors: Tensor, same: Tensor) -> Tensor:
    """[M, M]: log of how often frame j distracts from frame i; 0 on the diagonal, -inf where never.

    A distractor with the same codes as the true target is no distractor (as in fairseq and transformers): -inf too.
    """
    num_masked = len(distractors)
    counts = torch.zeros(num_masked, num_masked, device=distractors.device)
    counts.scatter_add_(1, distractors, torch.ones_like(distractors, dtype=counts.dtype))
    return counts.masked_fill_(same, 0.0).fill_diagonal_(1.0).log_()


def _code_perplexity(quantized: Quantized) -> Tensor:
    """Perplexity of the hard choices within the batch of all ranks, summed over groups."""
    with torch.no_grad():
        used = torch.zeros_like(quantized.probabilities[:1].sum(0))
        used.scatter_add_(1, quantized.codes.T, torch.ones_like(quantized.codes.T, dtype=used.dtype))
        return perplexity(mean_over_ranks(used, len(quantized.codes)))
