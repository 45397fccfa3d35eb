"""data2vec: a masked student predicts what a slow teacher makes of the whole clip (Baevski et al. 2022).

The target of a frame is the mean of the top layers' feed-forward outputs, each normed over the clip's time (section
3.3). With `num_masks` above 1 each teacher pass serves several masks, and with `decoder_layers` above 0 the student
encodes visible frames only and a light convolutional decoder fills in the hidden ones (data2vec 2.0, arXiv 2212.07525).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.models.context import ContextNetwork
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.spectrum import standardize
from speechssl.models.teacher import Teacher
from speechssl.objectives.common import (
    PretrainingObjective,
    draw_masks,
    encoder_features,
    hidden_frames,
    join_masks,
    light_decoder,
    spread,
    vector_gap,
)
from speechssl.types import Batch, LossOutput, Term, to_device


class Data2VecObjective(PretrainingObjective):
    """Squared error of the student's prediction of the teacher's frames, at masked frames."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        top_layers: int,
        num_masks: int,
        decoder_layers: int,
        decoder_size: int,
        teacher_memory: tuple[float, float],
        teacher_anneal: float,
        mask_start_probability: float,
        mask_span: int,
        mask_min_spans: int,
        feature_gradient_scale: float,
    ):
        """Args:
        top_layers: K, how many of the last layers make the target; all where there are fewer.
        num_masks: masks for each teacher pass.
        decoder_layers, decoder_size: convolutions that fill in hidden frames; 0 layers: the student sees mask vectors.
        teacher_memory, teacher_anneal: see `Teacher`.
        mask_start_probability, mask_span, mask_min_spans: see `span_mask`.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.top_layers, self.num_masks = min(top_layers, encoder.num_layers), num_masks
        self.feature_gradient_scale = feature_gradient_scale
        self.mask_options = {
            "start_probability": mask_start_probability,
            "span": mask_span,
            "min_spans": mask_min_spans,
        }
        # The student's features and positions serve both (section 3.2).
        self.teacher = Teacher(
            Encoder(encoder).context, memory=teacher_memory, anneal=teacher_anneal, copied=("positions.",)
        )
        self.decoder = light_decoder(encoder, decoder_layers, decoder_size)
        if self.decoder is None:
            self.regression = nn.Linear(encoder.hidden_size, encoder.hidden_size)

    def begin_step(self, step: int, max_steps: int) -> None:
        """Set the teacher's momentum."""
        super().begin_step(step, max_steps)
        self.teacher.begin_step(step, max_steps)

    def _masks(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """bool [num_masks, P]. For a decoder each clip keeps a visible frame at least."""
        drawn = [draw_masks(batch, frame_lengths, self.mask_options, number) for number in range(self.num_masks)]
        return join_masks(drawn, keep_one=self.decoder is not None)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return, from lengths and seeds alone."""
        return {"regression": int(self._masks(batch, frame_lengths).sum())}

    def targets(self, encoder: Encoder, normed: Tensor, frame_lengths: list[int]) -> Tensor:
        """[P, C]: the mean of the teacher's top feed-forward outputs before the residual, each normed over time."""
        outputs: list[Tensor] = []
        network: ContextNetwork = self.teacher.network
        hooks = [
            layer.feed_out.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
            for layer in network.layers[-self.top_layers :]
        ]
        with torch.no_grad():
            encoder.contextualize(normed.detach(), frame_lengths, context=self.teacher)
        for hook in hooks:
            hook.remove()
        rows = len(normed)
        return sum(standardize(x[:rows].float(), frame_lengths) for x in outputs) / len(outputs)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Squared error over the square root of C, summed over masked frames of all masks."""
        features, frame_lengths = encoder_features(encoder, batch, self.feature_gradient_scale)
        normed = encoder.feature_norm(features)
        if self.training:
            self.teacher.follow(encoder.context)
        targets = self.targets(encoder, normed, frame_lengths)
        masks = self._masks(batch, frame_lengths)
        frames, hidden = hidden_frames(
            encoder, normed, frame_lengths, masks, seeds=batch.seeds, decoder=self.decoder, generator=generator
        )
        places = to_device(masks.nonzero()[:, 1], features.device)
        predictions = (hidden if self.decoder else self.regression(hidden))[: len(places)]
        wanted = targets[places]
        loss = (predictions.float() - wanted).square().sum() / targets.shape[1] ** 0.5
        metrics = {}
        if self.watching:
            metrics = spread(frames) | spread(targets, "target_variance") | vector_gap(predictions, wanted)
        return LossOutput({"regression": Term(loss, len(places))}, metrics)
