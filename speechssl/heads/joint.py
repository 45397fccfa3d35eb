"""What is said and by whom, from one pass of one encoder: a CTC head and a classifier of clips, trained together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.heads.ctc import CTCObjective
from speechssl.heads.speaker import ClassifyObjective
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.types import Batch, LossOutput, Utterance


class JointObjective(nn.Module):
    """The sum of both heads' losses.

    Attributes:
        ctc, speaker: the heads, each as if alone, so that every command finds the one that it needs.
    """

    whole_clips = True  # a transcript belongs to the whole clip
    needs_voice = True

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        vocabulary: Sequence[str],
        labels: Sequence[str],
        label: str,
        speaker_weight: float,
        freeze_feature_encoder: bool,
        freeze_encoder: float,
        ctc: Mapping[str, Any],
        speaker: Mapping[str, Any],
        clip_seconds: Sequence[float] | None = None,
    ):
        """Args:
        vocabulary: symbols, the blank first.
        labels: every speaker, in the order of the outputs.
        label: the manifest's column that names them.
        speaker_weight: of the speaker's loss (nats a clip) beside that of CTC (nats a label).
        freeze_feature_encoder, freeze_encoder: as for either head.
        ctc, speaker: the other options of `CTCObjective` and `ClassifyObjective`.
        clip_seconds: see `CTCObjective`.
        """
        super().__init__()
        shared = {"freeze_feature_encoder": freeze_feature_encoder, "freeze_encoder": freeze_encoder}
        self.ctc = CTCObjective(encoder, vocabulary=vocabulary, clip_seconds=clip_seconds, **shared, **ctc)
        self.speaker = ClassifyObjective(encoder, labels=labels, label=label, **shared, **speaker)
        self.speaker_weight = speaker_weight

    @staticmethod
    def data_options(
        utterances: Sequence[Utterance], *, label: str, ctc: Mapping[str, Any], **_: object
    ) -> dict[str, list[str]]:
        """What the training manifest decides: the vocabulary and the speakers."""
        return CTCObjective.data_options(utterances, **ctc) | ClassifyObjective.data_options(utterances, label=label)

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [1 + L]: who speaks, then the labels of what is said."""
        return torch.cat([self.speaker.target(utterance), self.ctc.target(utterance)])

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None."""
        return self.speaker.check(utterance, num_frames) or self.ctc.check(utterance, num_frames)

    def begin_step(self, step: int, max_steps: int) -> None:
        """Let both heads know."""
        self.ctc.begin_step(step, max_steps)
        self.speaker.begin_step(step, max_steps)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        said, _ = _split(batch)
        return self.ctc.counts(said, frame_lengths) | self.speaker.counts(batch, frame_lengths)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Both losses in nats, that of CTC counted in labels, the speaker's in clips."""
        said, who = _split(batch)
        output = self.ctc.encode(encoder, said, generator)
        of_ctc, of_speaker = self.ctc.loss(output, said), self.speaker.loss(output, who.targets)
        weighted = {name: replace(term, weight=self.speaker_weight) for name, term in of_speaker.terms.items()}
        return LossOutput(of_ctc.terms | weighted, of_ctc.metrics | of_speaker.metrics)


def _split(batch: Batch) -> tuple[Batch, Batch]:
    """The batch with the labels of what is said, and with those of who speaks."""
    said, who = [target[1:] for target in batch.targets], [target[:1] for target in batch.targets]
    return replace(batch, targets=said), replace(batch, targets=who)
