"""A classifier of clips by any manifest column: the speaker, or language, emotion, keyword.

A learned weighting of the encoder's layers, mean and standard deviation over time (x-vector's statistics pooling,
Snyder et al. 2018), a linear layer, cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.heads.encoding import encode, is_frozen
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.types import Batch, EncoderOutput, LossOutput, Term, Utterance


class ClassifyObjective(nn.Module):
    """One label a clip.

    Attributes:
        labels: what the outputs stand for.
        label_key: the manifest's column that holds them.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        labels: Sequence[str],
        label: str,
        dropout: float,
        freeze_feature_encoder: bool,
        freeze_encoder: float,
    ):
        """Args:
        labels: every class, in the order of the outputs.
        label: the manifest's column.
        dropout: before the linear layer.
        freeze_feature_encoder: keep the convolutions as they are.
        freeze_encoder: keep the whole encoder for this fraction of the run (above 1: so many steps).
        """
        super().__init__()
        self.labels, self.label_key = list(labels), label
        self.layer_weights = nn.Parameter(torch.zeros(encoder.num_layers + 1))
        self.norm = nn.LayerNorm(2 * encoder.hidden_size)
        self.linear = nn.Linear(2 * encoder.hidden_size, len(self.labels))
        self.dropout = dropout
        self.freeze_feature_encoder, self.freeze_encoder = freeze_feature_encoder, freeze_encoder
        self.encoder_frozen = False

    @staticmethod
    def data_options(utterances: Sequence[Utterance], *, label: str, **_: object) -> dict[str, list[str]]:
        """What the training manifest decides: the labels."""
        found = {str(u.fields[label]) for u in utterances if u.fields.get(label) is not None}
        if len(found) < 2:
            raise UserError(
                f"the training manifest has {len(found)} different values of {label!r}, a classifier needs two; "
                "check the column's name (label=) and the manifest"
            )
        return {"labels": sorted(found)}

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [1]: the label of a clip."""
        return torch.tensor([self.labels.index(str(utterance.fields[self.label_key]))])

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None."""
        value = utterance.fields.get(self.label_key)
        if value is None:
            return f"it has no {self.label_key!r}"
        if str(value) not in self.labels:
            return f"its {self.label_key} {str(value)!r} does not occur in the training manifest"
        return None

    def begin_step(self, step: int, max_steps: int) -> None:
        """Decide whether the encoder trains at this step."""
        self.encoder_frozen = is_frozen(step, max_steps, self.freeze_encoder)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        return {"cross_entropy": len(frame_lengths)}

    def embed(self, output: EncoderOutput) -> Tensor:
        """Encoder output -> embeddings [B, 2 C], normed statistics over each clip's own frames."""
        weights = self.layer_weights.softmax(0)
        mixed = sum(weight * x for weight, x in zip(weights, output.packed, strict=True)).float()
        pooled = [
            torch.cat([clip.mean(0), (clip.var(0, correction=0) + 1e-5).sqrt()])
            for clip in mixed.split(output.frame_lengths)
        ]
        return self.norm(torch.stack(pooled))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, 2 C] -> logits [B, classes]."""
        return self.linear(F.dropout(embeddings, self.dropout, self.training))

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Cross-entropy in nats, summed over clips."""
        output = encode(
            encoder,
            batch,
            generator,
            freeze_feature_encoder=self.freeze_feature_encoder,
            freeze_encoder=self.encoder_frozen,
        )
        logits = self.classify(self.embed(output))
        target = torch.cat(batch.targets).to(logits.device)
        loss = F.cross_entropy(logits, target, reduction="sum")
        correct = (logits.detach().argmax(-1) == target).sum()
        return LossOutput({"cross_entropy": Term(loss, len(target))}, {"accuracy": (correct, len(target))})
