"""DinoSR: online clustering of a slow teacher's layers, whose assignments a masked student predicts (Liu et al. 2023).

Each of the top layers of the teacher has a codebook; the nearest codeword of a frame is the label that the student's
head for that layer predicts (equation 5), and a codeword is the running mean of the frames that chose it (equation 4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.masking import pad_rows
from speechssl.models.spectrum import standardize
from speechssl.models.teacher import Teacher
from speechssl.objectives.common import (
    PretrainingObjective,
    draw_masks,
    encoder_features,
    in_fp32,
    spread,
    usage,
)
from speechssl.training.distributed import sum_over_ranks
from speechssl.types import Batch, LossOutput, Term, to_device


class DinoSRObjective(PretrainingObjective):
    """Cross-entropy with cluster assignments of the teacher's layers, at masked frames."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        top_layers: int,
        num_codewords: int,
        codebook_decay: float,
        teacher_memory: tuple[float, float],
        teacher_anneal: float,
        mask_start_probability: float,
        mask_span: int,
        mask_min_spans: int,
        feature_gradient_scale: float,
    ):
        """Args:
        top_layers: how many of the last layers are clustered; all where there are fewer.
        num_codewords: V of each layer's codebook.
        codebook_decay: of the running means, a step.
        teacher_memory, teacher_anneal: see `Teacher`.
        mask_start_probability, mask_span, mask_min_spans: see `span_mask`.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.num_layers, self.num_codewords = min(top_layers, encoder.num_layers), num_codewords
        self.codebook_decay, self.feature_gradient_scale = codebook_decay, feature_gradient_scale
        self.mask_options = {
            "start_probability": mask_start_probability,
            "span": mask_span,
            "min_spans": mask_min_spans,
        }
        self.teacher = Teacher(
            Encoder(encoder).context, memory=teacher_memory, anneal=teacher_anneal, copied=("positions.",)
        )
        size = encoder.hidden_size
        self.heads = nn.ModuleList(nn.Linear(size, num_codewords) for _ in range(self.num_layers))
        # Each codeword is sums / counts.
        self.register_buffer("sums", torch.randn(self.num_layers, num_codewords, size))
        self.register_buffer("members", torch.ones(self.num_layers, num_codewords))

    def begin_step(self, step: int, max_steps: int) -> None:
        """Set the teacher's momentum."""
        super().begin_step(step, max_steps)
        self.teacher.begin_step(step, max_steps)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return, from lengths and seeds alone."""
        return {"assignment": int(torch.cat(draw_masks(batch, frame_lengths, self.mask_options)).sum())}

    @torch.no_grad()
    def assign(self, frames: Tensor) -> Tensor:
        """Teacher's frames [L, M, C] -> int64 [L, M], the nearest codeword in each layer's codebook."""
        codebooks = self.sums / self.members[..., None]
        with in_fp32(frames):
            return torch.cdist(frames, codebooks).argmin(-1)

    @torch.no_grad()
    def learn(self, frames: Tensor, codes: Tensor) -> None:
        """Move each codeword that was chosen towards the mean of the frames [L, M, C] that chose it."""
        chosen = F.one_hot(codes, self.num_codewords).to(frames.dtype)  # [L, M, V]
        with in_fp32(frames):
            sums, members = sum_over_ranks(chosen.transpose(1, 2) @ frames), sum_over_ranks(chosen.sum(1))
        # A codeword that no frame chose stays as it is.
        decay = torch.where(members > 0, self.codebook_decay, 1.0)
        self.sums.mul_(decay[..., None]).add_((1 - decay)[..., None] * sums)
        self.members.mul_(decay).add_((1 - decay) * members)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Cross-entropy in nats, the mean over layers, summed over masked frames."""
        features, frame_lengths = encoder_features(encoder, batch, self.feature_gradient_scale)
        normed = encoder.feature_norm(features)
        if self.training:
            self.teacher.follow(encoder.context)
        mask = torch.cat(draw_masks(batch, frame_lengths, self.mask_options))
        rows = to_device(pad_rows(mask.nonzero().squeeze(1)), features.device)
        count = int(mask.sum())
        with torch.no_grad():
            layers = encoder.contextualize(normed.detach(), frame_lengths, context=self.teacher).packed
            # Normed over the clip's time, as data2vec's targets are.
            top = [standardize(x.float(), frame_lengths)[rows[:count]] for x in layers[-self.num_layers :]]
            frames = torch.stack(top)
            codes = self.assign(frames)
        output = encoder.contextualize(normed, frame_lengths, mask=mask, generator=generator).packed[-1]
        hidden = output.index_select(0, rows)
        loss, right, gap = (hidden.new_zeros((), dtype=torch.float32) for _ in range(3))
        for head, wanted in zip(self.heads, codes, strict=True):
            logits = head(hidden)[:count].float()
            loss = loss + F.cross_entropy(logits, wanted, reduction="sum") / self.num_layers
            with torch.no_grad():
                right += (logits.argmax(-1) == wanted).sum() / self.num_layers
                other = wanted.roll(len(wanted) // 2)
                gap += (logits.gather(1, wanted[:, None]) - logits.gather(1, other[:, None])).sum() / self.num_layers
        if self.training:
            self.learn(frames, codes)
        metrics = {"accuracy": (right, count)}
        if self.watching:
            metrics |= spread(output) | spread(frames[-1], "target_variance") | usage(codes[-1], self.num_codewords)
            metrics["energy_gap"] = (gap, count)
        return LossOutput({"assignment": Term(loss, count)}, metrics)
