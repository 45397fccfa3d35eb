"""wav2vec and CPC: from the past, tell the frames that will come from others of the clip.

wav2vec (Schneider et al. 2019): "two deep convolutional networks that build on each other", and a binary cross-entropy
of each true future frame against false ones (equation 2). CPC (van den Oord et al. 2018): a recurrent context, and the
cross-entropy of the true one among all (equation 4). False frames are drawn from the same clip, as for wav2vec 2.0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.masking import sample_distractors
from speechssl.objectives.common import PretrainingObjective, encoder_features, in_fp32, spread
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, LossOutput, Term, to_device


class Wav2VecObjective(PretrainingObjective):
    """Binary cross-entropy of the true frame against K false ones, `num_steps` steps ahead."""

    encoder_needs = {"context": "convolutions"}  # noqa: RUF012

    def __init__(self, encoder: EncoderConfig, *, num_steps: int, num_distractors: int, feature_gradient_scale: float):
        """Args:
        num_steps: how many steps ahead, at most; each has its own projection of the context.
        num_distractors: K, false frames for each true one.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.num_distractors, self.feature_gradient_scale = num_distractors, feature_gradient_scale
        size = encoder.conv_channels[-1]
        self.projections = nn.ModuleList(nn.Linear(encoder.hidden_size, size) for _ in range(num_steps))

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return: pairs of a frame and a step."""
        steps = range(1, len(self.projections) + 1)
        return {"future": sum(max(frames - step, 0) for frames in frame_lengths for step in steps if frames > 1)}

    def draw(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """int64 [P, K]: for each frame, false ones of its clip, as places among all frames; itself in a clip of one."""
        drawn, start = [], 0
        for frames, seed in zip(frame_lengths, batch.seeds, strict=True):
            places = torch.zeros(frames, self.num_distractors, dtype=torch.long)
            if frames > 1:
                places = sample_distractors(
                    [frames], self.num_distractors, generators=[make_generator(seed, "distractors")]
                )
            drawn.append(places + start)
            start += frames
        return torch.cat(drawn)

    def loss(self, scores: Tensor) -> Tensor:
        """[M, 1 + K], the true one first -> the sum of -log sigma(true) - sum over K of log sigma(-false), nats.

        The paper's weight of the false ones is K, times their mean: their sum.
        """
        return -(F.logsigmoid(scores[:, 0]).sum() + F.logsigmoid(-scores[:, 1:]).sum())

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Loss of a batch, summed over frames and steps."""
        features, frame_lengths = encoder_features(encoder, batch, self.feature_gradient_scale)
        normed = encoder.feature_norm(features)
        frames = encoder.contextualize(normed, frame_lengths, generator=generator).packed[-1]
        false = to_device(self.draw(batch, frame_lengths), frames.device)
        left = torch.cat([torch.arange(n, 0, -1) for n in frame_lengths])  # frames to the clip's end, itself included
        total, right, gap = (frames.new_zeros((), dtype=torch.float32) for _ in range(3))
        for step, projection in enumerate(self.projections, 1):
            here = to_device((left > step).nonzero().squeeze(1), frames.device)
            if not len(here):
                continue
            predicted = projection(frames.index_select(0, here)).float()
            candidates = torch.cat([(here + step)[:, None], false[here + step]], dim=1)
            targets = normed.float()[candidates]  # [M, 1 + K, D]
            with in_fp32(predicted):
                scores = torch.einsum("md,mkd->mk", predicted, targets) / targets.shape[-1] ** 0.5
            total = total + self.loss(scores)
            with torch.no_grad():
                right += (scores[:, :1] > scores[:, 1:]).all(1).sum()
                gap += (scores[:, 0] - scores[:, 1:].mean(1)).sum()
        count = self.counts(batch, frame_lengths)["future"]
        metrics = {"accuracy": (right, count), "chance": (count / (1 + self.num_distractors), count)}
        if self.watching:
            metrics |= spread(frames) | spread(features, "target_variance") | {"energy_gap": (gap, count)}
        return LossOutput({"future": Term(total, count)}, metrics)


class CPCObjective(Wav2VecObjective):
    """InfoNCE: the cross-entropy of the true frame among it and the false ones."""

    encoder_needs = {"context": "recurrent"}  # noqa: RUF012

    def loss(self, scores: Tensor) -> Tensor:
        """[M, 1 + K], the true one first -> sum of nats."""
        return F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long), reduction="sum")
