"""CTC on the clips with a transcript, and on those without what trained recognisers make of each frame.

Self-training without a decision: the student sees a clip with frames hidden and is to give each frame the probabilities
that its teachers give it, who see the whole clip. What they are unsure of stays so, where a transcript of theirs would
be wrong in more than half of its letters. Of text without speech an n-gram tells the teachers which symbols follow each
other: their probabilities are then those after forward-backward over it. (Distillation, Hinton et al. 2015; of frames
of CTC, Senior et al. 2015; a noised student, Xie et al. 2020; for few transcripts of speech, Park et al. 2020; text in
the probabilities of unlabelled speech, Manohar et al. 2018.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.decoding.common import token_names
from speechssl.decoding.posterior import Graph, posteriors, read_graph
from speechssl.errors import UserError
from speechssl.heads.semi import PartlyLabelledObjective
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.objectives.common import in_fp32
from speechssl.types import Batch, LossOutput, Term, at_least_fp32

if TYPE_CHECKING:
    from speechssl.inference import SpeechModel

RARE = 1e-8  # of a symbol's probabilities, so that their logarithms are finite


class DistilledObjective(PartlyLabelledObjective):
    """CTC, and the divergence of the student's frames from its teachers'.

    Args:
        encoder: the encoder's shape.
        teacher: CHECKPOINT of a recogniser, or several, whose probabilities are averaged; read when training begins.
        distil_weight: of the divergence, nats a frame, beside CTC's nats a label.
        lm: an ARPA file of the teachers' units, as `speechssl lm checkpoint=` writes it; read when training begins.
        lm_weight: power of the n-gram's probabilities.
        prior_weight: power of the symbols' shares of a batch that the teachers' probabilities are divided by where an
            n-gram comes in, since it brings its own.
        unit_bonus: nats for each unit, against the n-gram's liking for few.
        ctc: options of `CTCObjective`.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        teacher: str | Sequence[str] | None,
        distil_weight: float,
        lm: str | None = None,
        lm_weight: float = 1.0,
        prior_weight: float = 0.3,
        unit_bonus: float = 1.5,
        **ctc: Any,
    ):
        super().__init__(encoder, **ctc)
        self.frames = encoder.hop, encoder.receptive_field
        self.sources = [teacher] if isinstance(teacher, str) else list(teacher or [])
        self.distil_weight = distil_weight
        self.lm, self.lm_weight, self.prior_weight, self.unit_bonus = lm, lm_weight, prior_weight, unit_bonus
        self.teachers: list[SpeechModel] = []  # no part of the student's checkpoint
        self.graph: Graph | None = None

    def open_teachers(self, *, sample_rate: int, normalize: bool) -> None:
        """Load the n-gram, and the teachers for a model of so many samples a second, with clips normalised or not.

        Raises:
            UserError: there is no teacher, one has other frames, another rate or other symbols, or the n-gram cannot
                be read or is of other units.
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
        if self.lm is not None:
            units = token_names(self.vocabulary.symbols[1:])
            self.graph = read_graph(self.lm, units, weight=self.lm_weight, bonus=self.unit_bonus)

    def unlabelled_counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """Every frame counts."""
        return {"distil": sum(frame_lengths)}

    @torch.no_grad()
    def taught(self, batch: Batch) -> Tensor:
        """float32 [P, symbols]: the teachers' probabilities of clips as they are: their mean, with the n-gram."""
        device, found = batch.waveforms.device, []
        for model in self.teachers:
            frames = model.encoder.to(device)(batch.waveforms, batch.lengths)
            found.append(at_least_fp32(model.objective.to(device).logits(frames)).softmax(-1))
        mean = torch.stack(found).mean(0)
        if self.graph is None:
            return mean
        self.graph = self.graph.to(device)
        mean = mean.clamp(min=RARE)
        emissions = mean.log() - self.prior_weight * mean.mean(0).log()
        with in_fp32(mean):
            return torch.cat(posteriors(self.graph, emissions.split(frames.frame_lengths)))

    def unlabelled(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None) -> LossOutput:
        """Kullback-Leibler divergence from the teachers, nats, summed over frames; the student's frames are hidden and
        dropped as its CTC's are."""
        taught = self.taught(batch)
        found = at_least_fp32(self.logits(self.encode(encoder, batch, generator))).log_softmax(-1)
        divergence = F.kl_div(found, taught, reduction="sum")
        return LossOutput({"distil": Term(divergence, len(found), self.distil_weight)})
