"""CTC on the clips with a transcript, and something else to learn on those without, in one run.

Semi-supervised learning (S4L, Zhai et al. 2019; for speech, Talnikar et al. 2021): few transcripts train the head, the
unlabelled clips keep the encoder from forgetting what it knows, or teach it what another recogniser makes of them.
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


class PartlyLabelledObjective(CTCObjective):
    """CTC on the labelled clips of a batch; a subclass says what the others are for."""

    def unlabelled(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None) -> LossOutput:
        """The loss of clips without a transcript, in training."""
        raise NotImplementedError

    def unlabelled_counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term of `unlabelled`."""
        raise NotImplementedError

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [L]: the labels of a clip; none for one without a transcript."""
        return super().target(utterance) if utterance.text else torch.zeros(0, dtype=torch.int64)

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None; one without a transcript can."""
        return super().check(utterance, num_frames) if utterance.text else None

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        counts = {"ctc": sum(len(target) for target in batch.targets)}
        _, unlabelled = _sorts(batch)
        if unlabelled:
            counts |= self.unlabelled_counts(_select(batch, unlabelled), [frame_lengths[i] for i in unlabelled])
        return counts

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """CTC over the labelled clips, `unlabelled` over the others; validation is of CTC alone."""
        labelled, unlabelled = _sorts(batch)
        found = LossOutput(terms={})
        if labelled:
            part = super().forward(encoder, _select(batch, labelled), generator)
            found.terms |= part.terms
            found.metrics |= part.metrics
        if unlabelled and self.training:
            part = self.unlabelled(encoder, _select(batch, unlabelled), generator)
            found.terms |= part.terms
            found.metrics |= part.metrics
        return found


class SemiSupervisedObjective(PartlyLabelledObjective):
    """CTC and the self-supervised objective of the checkpoint that the run starts from.

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
                "an encoder that was pretrained by another, or give task=distil a teacher"
            )
        self.ssl_weight = ssl_weight

    def begin_step(self, step: int, max_steps: int) -> None:
        """Tell both what step it is."""
        super().begin_step(step, max_steps)
        self.ssl.begin_step(step, max_steps)

    def unlabelled_counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """As the self-supervised objective has them."""
        return self.ssl.counts(batch, frame_lengths)

    def unlabelled(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None) -> LossOutput:
        """The self-supervised loss."""
        part = self.ssl(encoder, batch, generator)
        terms = {name: replace(term, weight=term.weight * self.ssl_weight) for name, term in part.terms.items()}
        return LossOutput(terms, part.metrics)


def _sorts(batch: Batch) -> tuple[list[int], list[int]]:
    """The clips of a batch with a transcript, and those without."""
    labelled = [i for i, target in enumerate(batch.targets) if len(target)]
    return labelled, [i for i, target in enumerate(batch.targets) if not len(target)]


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
