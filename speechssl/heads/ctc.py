"""CTC fine-tuning: a linear layer over the encoder (wav2vec 2.0, section 3.2; Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechssl.data.text import BLANK_INDEX, Vocabulary, normalize
from speechssl.heads.encoding import encode, is_frozen
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.types import Batch, EncoderOutput, LossOutput, Term, Utterance


class CTCObjective(nn.Module):
    """Characters from frames.

    Attributes:
        vocabulary: what the outputs stand for.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        vocabulary: Sequence[str],
        lowercase: bool,
        dropout: float,
        mask_start_probability: float,
        mask_span: int,
        freeze_feature_encoder: bool,
        freeze_encoder: float,
    ):
        """Args:
        vocabulary: symbols, the blank first.
        lowercase: whether transcripts are lower-cased.
        dropout: before the linear layer.
        mask_start_probability, mask_span: spans hidden in training, as in pretraining; probability 0 hides none.
        freeze_feature_encoder: keep the convolutions as they are.
        freeze_encoder: keep the whole encoder for this fraction of the run (above 1: so many steps).
        """
        super().__init__()
        self.vocabulary, self.lowercase = Vocabulary(tuple(vocabulary)), lowercase
        self.linear = nn.Linear(encoder.hidden_size, len(self.vocabulary))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.dropout = dropout
        self.mask_start_probability, self.mask_span = mask_start_probability, mask_span
        self.freeze_feature_encoder, self.freeze_encoder = freeze_feature_encoder, freeze_encoder
        self.encoder_frozen = False

    @staticmethod
    def data_options(utterances: Sequence[Utterance], *, lowercase: bool, **_: object) -> dict[str, list[str]]:
        """What the training manifest decides: the vocabulary."""
        texts = (utterance.text or "" for utterance in utterances)
        return {"vocabulary": list(Vocabulary.from_texts(texts, lowercase=lowercase).symbols)}

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [L]: the labels of a clip."""
        return torch.tensor(self.vocabulary.encode(normalize(utterance.text or "", lowercase=self.lowercase)))

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None."""
        if utterance.text is None:
            return "it has no `text`"
        outside = self.vocabulary.outside(normalize(utterance.text, lowercase=self.lowercase))
        if outside:
            return f"its transcript has characters outside the vocabulary: {' '.join(outside)}"
        labels = self.target(utterance)
        if not len(labels):
            return "its transcript is empty"
        # CTC needs a blank between equal neighbours.
        needed = len(labels) + int((labels[1:] == labels[:-1]).sum())
        if needed > num_frames:
            return f"its transcript needs {needed} frames, the audio gives {num_frames} (labels longer than frames)"
        return None

    def begin_step(self, step: int, max_steps: int) -> None:
        """Decide whether the encoder trains at this step."""
        self.encoder_frozen = is_frozen(step, max_steps, self.freeze_encoder)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        return {"ctc": sum(len(target) for target in batch.targets)}

    def logits(self, output: EncoderOutput) -> Tensor:
        """Encoder output -> logits [P, symbols]."""
        return self.linear(F.dropout(output.packed[-1], self.dropout, self.training))

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """CTC loss in nats, summed over clips and counted in labels."""
        output = encode(
            encoder,
            batch,
            generator,
            freeze_feature_encoder=self.freeze_feature_encoder,
            freeze_encoder=self.encoder_frozen,
            mask={"start_probability": self.mask_start_probability, "span": self.mask_span, "min_spans": 0}
            if self.training and self.mask_start_probability
            else None,
        )
        logits = self.logits(output).float()
        loss = ctc_loss(logits, output.frame_lengths, batch.targets)
        best = logits.detach().argmax(-1)
        metrics = {"blank_share": ((best == BLANK_INDEX).sum(), len(best))}
        if not self.training:
            metrics |= self._error_rates(best, output.frame_lengths, batch.targets)
        return LossOutput({"ctc": Term(loss, self.counts(batch, output.frame_lengths)["ctc"])}, metrics)

    def _error_rates(self, best: Tensor, frame_lengths: list[int], targets: list[Tensor]) -> dict:
        """Character and word errors of the greedy path, as (edits, reference length)."""
        edits = {"cer": [0, 0], "wer": [0, 0]}
        for path, target in zip(best.cpu().split(frame_lengths), targets, strict=True):
            hypothesis = self.vocabulary.decode(torch.unique_consecutive(path).tolist())
            reference = self.vocabulary.decode(target.tolist())
            for name, a, b in (
                ("cer", reference, hypothesis),
                ("wer", reference.split(), hypothesis.split()),
            ):
                edits[name][0] += Levenshtein.distance(a, b)
                edits[name][1] += len(a)
        return {name: tuple(pair) for name, pair in edits.items()}


def ctc_loss(logits: Tensor, frame_lengths: list[int], targets: list[Tensor]) -> Tensor:
    """Negative log likelihood in nats, summed over clips, in fp32; logits [P, symbols], packed."""
    log_probs = pad_sequence(logits.float().log_softmax(-1).split(frame_lengths))
    return F.ctc_loss(
        log_probs,
        torch.cat(targets).to(logits.device),
        torch.tensor(frame_lengths),
        torch.tensor([len(target) for target in targets]),
        blank=BLANK_INDEX,
        reduction="sum",
        zero_infinity=True,
    )
