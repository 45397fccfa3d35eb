"""Both losses at once: CTC on the clips with a transcript, and what the encoder was pretrained by on those without.

Semi-supervised learning in one run (S4L, Zhai et al. 2019; for speech, Talnikar et al. 2021): few transcripts train the
head, the unlabelled clips keep the encoder from forgetting what it knows. The self-supervised objective and its weights
are those of the checkpoint that the run starts from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from speechssl.config import objective_class
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.types import Batch, LossOutput, Utterance


class SemiSupervisedObjective(CTCObjective):
    """CTC and a self-supervised objective.

    Args:
        encoder: the encoder's shape.
        ssl: the self-supervised objective's name and options.
        ssl_weight: factor on its loss.
        ctc: options of `CTCObjective`.
    """

    def __init__(self, encoder: EncoderConfig, *, ssl: dict[str, Any], ssl_weight: float, **ctc: Any):
        super().__init__(encoder, **ctc)
        options = {key: value for key, value in ssl.items() if key != "name"}
        self.ssl = objective_class(ssl["name"])(encoder, **options)
        # A head's labels are of its transcripts, HuBERT's of the clusters of its own run.
        if hasattr(self.ssl, "target") or self.ssl.has_frame_labels:
            raise UserError(
                f"task=semi needs a self-supervised objective without labels, and {ssl['name']} has some: start from "
                "an encoder that was pretrained by another"
            )
        self.ssl_weight = ssl_weight

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [L]: the labels of a clip; none for one without a transcript."""
        return super().target(utterance) if utterance.text else torch.zeros(0, dtype=torch.int64)

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None; one without a transcript can."""
        return super().check(utterance, num_frames) if utterance.text else None

    def begin_step(self, step: int, max_steps: int) -> None:
        """Tell both what step it is."""
        super().begin_step(step, max_steps)
        self.ssl.begin_step(step, max_steps)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        counts = {"ctc": sum(len(target) for target in batch.targets)}
        unlabelled = [i for i, target in enumerate(batch.targets) if not len(target)]
        if unlabelled:
            counts |= self.ssl.counts(_select(batch, unlabelled), [frame_lengths[i] for i in unlabelled])
        return counts

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """CTC over the labelled clips, the self-supervised loss over the others; validation is of CTC alone."""
        labelled = [i for i, target in enumerate(batch.targets) if len(target)]
        unlabelled = [i for i, target in enumerate(batch.targets) if not len(target)]
        found = LossOutput(terms={})
        if labelled:
            part = super().forward(encoder, _select(batch, labelled), generator)
            found.terms |= part.terms
            found.metrics |= part.metrics
        if unlabelled and self.training:
            part = self.ssl(encoder, _select(batch, unlabelled), generator)
            found.terms |= {
                name: replace(term, weight=term.weight * self.ssl_weight) for name, term in part.terms.items()
            }
            found.metrics |= part.metrics
        return found


def _select(batch: Batch, clips: list[int]) -> Batch:
    """Some of the clips of a batch."""
    lengths = batch.lengths[clips]
    return Batch(
        waveforms=batch.waveforms[clips][:, : int(lengths.max())],
        lengths=lengths,
        seeds=[batch.seeds[i] for i in clips],
        utterances=[batch.utterances[i] for i in clips],
        targets=[batch.targets[i] for i in clips],
    )
