"""data2vec: a masked student predicts what a slow teacher makes of the whole clip (Baevski et al. 2022).

The target of a frame is the mean of the top layers' feed-forward outputs, each normed over the clip's time (section
3.3). With `num_masks` above 1 each teacher pass serves several masks, and with `decoder_layers` above 0 the student
encodes visible frames only and a light convolutional decoder fills in the hidden ones (data2vec 2.0, arXiv 2212.07525).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.context import ContextNetwork
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.lengths import ROWS, missing
from speechssl.models.masking import span_mask
from speechssl.models.spectrum import standardize
from speechssl.models.teacher import Teacher
from speechssl.objectives.common import PretrainingObjective, encoder_features, pad_rows, spread, vector_gap
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, LossOutput, Term

KERNEL, GROUPS = 7, 16  # of the decoder's convolutions (data2vec 2.0, table 11)


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
        self.decoder = None
        if decoder_layers:
            self.decoder = Decoder(encoder.hidden_size, decoder_size, decoder_layers)
        else:
            self.regression = nn.Linear(encoder.hidden_size, encoder.hidden_size)

    def begin_step(self, step: int, max_steps: int) -> None:
        """Set the teacher's momentum."""
        super().begin_step(step, max_steps)
        self.teacher.begin_step(step, max_steps)

    def _masks(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """bool [num_masks, P]. For a decoder each clip keeps a visible frame at least."""
        masks = []
        for number in range(self.num_masks):
            for frames, seed in zip(frame_lengths, batch.seeds, strict=True):
                mask = span_mask(frames, generator=make_generator(seed, "mask", number), **self.mask_options)
                if self.decoder is not None and mask.all():
                    mask[0] = False
                masks.append(mask)
        return torch.cat(masks).view(self.num_masks, -1)

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
        masks = self._masks(batch, frame_lengths).to(features.device)
        if self.decoder is None:
            frames, predictions = self._predict(encoder, normed, frame_lengths, masks, generator)
        else:
            frames, predictions = self._fill_in(encoder, normed, frame_lengths, masks, batch.seeds, generator)
        places = masks.flatten().nonzero().squeeze(1)
        wanted = targets[places % masks.shape[1]]
        loss = (predictions.float() - wanted).square().sum() / targets.shape[1] ** 0.5
        metrics = {}
        if self.watching:
            metrics = spread(frames) | spread(targets, "target_variance") | vector_gap(predictions, wanted)
        return LossOutput({"regression": Term(loss, len(places))}, metrics)

    def _predict(
        self,
        encoder: Encoder,
        normed: Tensor,
        frame_lengths: list[int],
        masks: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """The student's last frames, and its predictions at masked frames of each mask in turn [M, C]."""
        copies, lengths = normed.repeat(len(masks), 1), frame_lengths * len(masks)
        output = encoder.contextualize(copies, lengths, mask=masks.flatten(), generator=generator)
        frames = output.packed[-1]
        places = masks.flatten().nonzero().squeeze(1)
        return frames, self.regression(frames.index_select(0, pad_rows(places)))[: len(places)]

    def _fill_in(
        self,
        encoder: Encoder,
        normed: Tensor,
        frame_lengths: list[int],
        masks: Tensor,
        seeds: list[int],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """The same, where layers see the visible frames only and the decoder fills in the others."""
        hidden = masks.flatten()
        lengths = frame_lengths * len(masks)
        x = encoder.project(normed).repeat(len(masks), 1)
        x = torch.where(hidden[:, None], encoder.mask_vector.to(x.dtype), x)
        rows = (~hidden).nonzero().squeeze(1)
        counts = [int(part.sum()) for part in (~hidden).cpu().split(lengths)]
        # A clip of zeros at the end rounds the rows up, as in `Encoder.contextualize`.
        filler = missing(len(rows), ROWS)
        visible = rows, counts
        if filler:
            x = F.pad(x, (0, 0, 0, filler))
            lengths_in = [*lengths, filler]
            extra = torch.arange(len(hidden), len(hidden) + filler, device=rows.device)
            visible = torch.cat([rows, extra]), [*counts, filler]
        else:
            lengths_in = lengths
        frames = encoder.context(x, lengths_in, generator=generator, visible=visible)[-1][: len(rows)]
        noise = torch.cat(
            [
                torch.randn(int(part.sum()), self.decoder.size, generator=make_generator(seed, "decoder", number))
                for number, mask in enumerate(masks.cpu())
                for part, seed in zip(mask.split(frame_lengths), seeds, strict=True)
            ]
        )
        filled = self.decoder(frames, hidden, 0.01 * noise.to(frames.device, frames.dtype), lengths)
        return frames, filled[hidden]


class Decoder(nn.Module):
    """Convolutions over time that see visible frames and noise in place of hidden ones (data2vec 2.0, section 3.3)."""

    def __init__(self, input_size: int, size: int, num_layers: int):
        super().__init__()
        self.size = size
        self.enter = nn.Linear(input_size, size) if input_size != size else nn.Identity()
        self.layers = nn.ModuleList(
            nn.Conv1d(size, size, KERNEL, padding=KERNEL // 2, groups=GROUPS) for _ in range(num_layers)
        )
        self.leave = nn.Linear(size, input_size)

    def forward(self, frames: Tensor, hidden: Tensor, noise: Tensor, frame_lengths: list[int]) -> Tensor:
        """Visible frames [P', C], where frames are hidden bool [P], and noise for those -> [P, C]."""
        x = frames.new_zeros(len(hidden), self.size)
        x[~hidden] = self.enter(frames).to(x.dtype)
        x[hidden] = noise
        outputs = []
        for clip in x.split(frame_lengths):
            y = clip.T[None]
            for layer in self.layers:
                z = layer(y).transpose(1, 2)
                y = y + F.gelu(F.layer_norm(z, z.shape[-1:])).transpose(1, 2)
            outputs.append(y[0].T)
        return self.leave(torch.cat(outputs))
