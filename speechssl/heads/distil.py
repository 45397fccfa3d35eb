"""CTC on the clips with a transcript, and on those without what trained recognisers make of each frame.

Self-training without a decision: the student sees a clip with frames hidden and is to give each frame the probabilities
that its teachers give it, who see the whole clip. What they are unsure of stays so, where a transcript of theirs would
be wrong in more than half of its letters. (Distillation, Hinton et al. 2015; of frames of CTC, Senior et al. 2015; a
noised student, Xie et al. 2020; for few transcripts of speech, Park et al. 2020.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.errors import UserError
from speechssl.heads.semi import PartlyLabelledObjective
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.types import Batch, LossOutput, Term, at_least_fp32

if TYPE_CHECKING:
    from speechssl.inference import SpeechModel


class DistilledObjective(PartlyLabelledObjective):
    """CTC, and the divergence of the student's frames from its teachers'.

    Args:
        encoder: the encoder's shape.
        teacher: CHECKPOINT of a recogniser, or several, whose probabilities are averaged; read when training begins.
        distil_weight: of the divergence, nats a frame, beside CTC's nats a label.
        ctc: options of `CTCObjective`.
    """

    def __init__(
        self, encoder: EncoderConfig, *, teacher: str | Sequence[str] | None, distil_weight: float, **ctc: Any
    ):
        super().__init__(encoder, **ctc)
        self.frames = encoder.hop, encoder.receptive_field
        self.sources = [teacher] if isinstance(teacher, str) else list(teacher or [])
        self.distil_weight = distil_weight
        self.teachers: list[SpeechModel] = []  # no part of the student's checkpoint

    def open_teachers(self, *, sample_rate: int, normalize: bool) -> None:
        """Load the teachers, for a model of so many samples a second, whose clips are normalised or not.

        Raises:
            UserError: there is none, or one has other frames, another rate or other symbols.
        """
        from speechssl.inference import load_model  # it loads heads, of which this is one

        if not self.sources:
            raise UserError("task=distil learns from a recogniser: give task.teacher=CHECKPOINT, or several as a list")
        for source in self.sources:
            model = load_model(source, device="cpu")
            vocabulary = getattr(model.objective, "vocabulary", None)
            if vocabulary is None:
                raise UserError(f"task.teacher={source} writes no transcripts: give a run of task=ctc or the like")
            shape = model.encoder.config
            theirs = model.sample_rate, model.normalize, shape.hop, shape.receptive_field
            if theirs != (sample_rate, normalize, *self.frames):
                raise UserError(
                    f"task.teacher={source} has (rate, normalised clips, samples a frame, samples seen) {theirs}, the "
                    f"model to train {(sample_rate, normalize, *self.frames)}; choose a teacher with the same frames"
                )
            if vocabulary.symbols != self.vocabulary.symbols:
                raise UserError(
                    f"task.teacher={source} has other symbols than the transcripts of data.train: train it on the same "
                    "transcripts"
                )
            self.teachers.append(model)

    def unlabelled_counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """Every frame counts."""
        return {"distil": sum(frame_lengths)}

    @torch.no_grad()
    def taught(self, batch: Batch) -> Tensor:
        """float32 [P, symbols]: the mean of the teachers' probabilities, of clips as they are."""
        device, found = batch.waveforms.device, []
        for model in self.teachers:
            frames = model.encoder.to(device)(batch.waveforms, batch.lengths)
            found.append(at_least_fp32(model.objective.to(device).logits(frames)).softmax(-1))
        return torch.stack(found).mean(0)

    def unlabelled(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None) -> LossOutput:
        """Kullback-Leibler divergence from the teachers, nats, summed over frames; the student's frames are hidden and
        dropped as its CTC's are."""
        taught = self.taught(batch)
        found = at_least_fp32(self.logits(self.encode(encoder, batch, generator))).log_softmax(-1)
        divergence = F.kl_div(found, taught, reduction="sum")
        return LossOutput({"distil": Term(divergence, len(found), self.distil_weight)})
