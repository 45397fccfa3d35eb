"""A classifier of clips by any manifest column: the speaker, or language, emotion, keyword.

In order, each part optional: a learned weighting of the encoder's layers, a linear layer or x-vector's convolutions
over frames, pooling over time, LayerNorm, a linear layer to the embedding, and classes: a plain linear layer with
cross-entropy, or cosines with a margin. configs/task has the usual combinations by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.audio import VOICE_S
from speechssl.errors import UserError
from speechssl.heads.encoding import encode, is_frozen
from speechssl.heads.margin import LOSSES, MarginClassifier
from speechssl.heads.pooling import POOLINGS, TDNN, build_pooling
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.types import Batch, EncoderOutput, LossOutput, Term, Utterance, to_device

LAYERS = ("weighted", "last")


class ClassifyObjective(nn.Module):
    """One label a clip.

    Attributes:
        labels: what the outputs stand for.
        label_key: the manifest's column that holds them.
        embedding_size: of what `embed` gives.
    """

    whole_clips = False  # a part of a clip has the label of the whole
    needs_voice = True

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        labels: Sequence[str],
        label: str,
        dropout: float,
        freeze_feature_encoder: bool,
        freeze_encoder: float,
        layers: str = "weighted",
        projection_size: int | None = None,
        tdnn: Sequence[int] = (),
        pooling: str = "statistics",
        norm: bool = True,
        embedding_size: int | None = None,
        loss: str = "softmax",
        scale: float = 30.0,
        margin: float = 0.2,
        margin_warmup: float = 0.3,
        sub_centres: int = 1,
    ):
        """Args:
        labels: every class, in the order of the outputs.
        label: the manifest's column.
        dropout: before the classes.
        freeze_feature_encoder: keep the convolutions as they are.
        freeze_encoder: keep the whole encoder for this fraction of the run (above 1: so many steps).
        layers: "weighted" (a learned weighting of all hidden states) or "last".
        projection_size: channels of a linear layer over frames, before pooling; None is none.
        tdnn: channels of x-vector's layers over frames, at most five; empty is none.
        pooling: "mean", "statistics" or "attentive".
        norm: LayerNorm of what was pooled.
        embedding_size: channels of a linear layer after it, which then gives the embedding; None is none.
        loss: "softmax", "am_softmax" or "aam_softmax".
        scale, margin, sub_centres: of the losses with a margin; see heads.margin.
        margin_warmup: the margin rises from 0 over this fraction of the run (above 1: so many steps).
        """
        super().__init__()
        _check(layers=layers, pooling=pooling, loss=loss, tdnn=tdnn, sub_centres=sub_centres)
        _check_margin(scale=scale, margin=margin)
        self.labels, self.label_key = list(labels), label
        self.layer_weights = nn.Parameter(torch.zeros(encoder.num_layers + 1)) if layers == "weighted" else None
        size = encoder.hidden_size
        self.projection = nn.Linear(size, projection_size) if projection_size else None
        self.tdnn = TDNN(projection_size or size, list(tdnn)) if tdnn else None
        self.pooling = build_pooling(pooling, self.tdnn.size if self.tdnn else projection_size or size)
        self.norm = nn.LayerNorm(self.pooling.size) if norm else None
        self.segment = nn.Linear(self.pooling.size, embedding_size) if embedding_size else None
        self.embedding_size = embedding_size or self.pooling.size
        if loss == "softmax":
            self.linear: nn.Module = nn.Linear(self.embedding_size, len(self.labels))
        else:
            options = {"kind": loss, "scale": scale, "sub_centres": sub_centres}
            self.linear = MarginClassifier(self.embedding_size, len(self.labels), **options)
        self.dropout = dropout
        self.freeze_feature_encoder, self.freeze_encoder = freeze_feature_encoder, freeze_encoder
        self.encoder_frozen = False
        self.full_margin, self.margin_warmup, self.margin = margin, margin_warmup, margin

    @staticmethod
    def data_options(utterances: Sequence[Utterance], *, label: str, **_: object) -> dict[str, list[str]]:
        """What the training manifest decides: the labels."""
        found = {u.label(label) for u in utterances} - {None}
        if len(found) < 2:
            raise UserError(
                f"{getattr(utterances, 'path', 'the training manifest')} has {len(found)} different values of "
                f"{label!r}, a classifier needs two; check the column's name (label=) and the manifest"
            )
        heard = {u.label(label) for u in utterances if u.duration_s >= VOICE_S}
        if found - heard:
            raise UserError(
                f"the {label} {min(found - heard)!r} has no clip of {VOICE_S} s or more, which a voice takes: give "
                "longer ones, or take it out of the training manifest"
            )
        return {"labels": sorted(found)}

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [1]: the label of a clip."""
        return torch.tensor([self.labels.index(utterance.label(self.label_key))])

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None."""
        value = utterance.label(self.label_key)
        if value is None:
            return f"it has no {self.label_key!r}"
        if value not in self.labels:
            return f"its {self.label_key} {value!r} does not occur in the training manifest"
        return (
            None if utterance.duration_s >= VOICE_S else f"its {utterance.duration_s:.3f} s are too short for a voice"
        )

    def begin_step(self, step: int, max_steps: int) -> None:
        """Decide whether the encoder trains at this step, and how large the margin is."""
        self.encoder_frozen = is_frozen(step, max_steps, self.freeze_encoder)
        rise = self.margin_warmup if self.margin_warmup > 1 else self.margin_warmup * max_steps
        self.margin = self.full_margin * (min(1.0, step / rise) if rise else 1.0)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        return {"cross_entropy": len(frame_lengths)}

    def frames(self, output: EncoderOutput) -> Tensor:
        """Encoder output -> [P, C], the weighted layers, projected."""
        x = output.packed[-1]
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(0)
            x = sum(weight * state for weight, state in zip(weights, output.packed, strict=True))
        return x if self.projection is None else self.projection(x)

    def embed(self, output: EncoderOutput) -> Tensor:
        """Encoder output -> embeddings [B, E], of each clip's own frames."""
        x = self.frames(output)
        if self.tdnn is not None:
            x = self.tdnn(x, output.frame_lengths)
        with torch.autocast(x.device.type, enabled=False):
            pooled = self.pooling(x.to(self.linear.weight.dtype), output.frame_lengths)
            pooled = self.norm(pooled) if self.norm is not None else pooled
            return self.segment(pooled) if self.segment is not None else pooled

    def classify(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, E] -> logits [B, classes]."""
        return self.linear(embeddings)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Cross-entropy in nats, summed over clips.

        A frozen encoder is only asked (SUPERB, section 3): nothing is dropped in it, as nothing is at the test.
        """
        encoder.train(self.training and not self.encoder_frozen)
        output = encode(
            encoder,
            batch,
            generator,
            freeze_feature_encoder=self.freeze_feature_encoder,
            freeze_encoder=self.encoder_frozen,
        )
        return self.loss(output, batch.targets)

    def loss(self, output: EncoderOutput, targets: list[Tensor]) -> LossOutput:
        """Encoder output and int64 [1] of each clip -> cross-entropy in nats, and the accuracy (without a margin)."""
        embeddings = self.embed(output)
        target = to_device(torch.cat(targets), embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):  # cosines want more digits than bf16 has
            dropped = F.dropout(embeddings, self.dropout, self.training)
            logits = self.linear(dropped)
            correct = (logits.detach().argmax(-1) == target).sum()
            if self.training and isinstance(self.linear, MarginClassifier):
                logits = self.linear.with_margin(dropped, target, self.margin)
        loss = F.cross_entropy(logits, target, reduction="sum")
        return LossOutput({"cross_entropy": Term(loss, len(target))}, {"accuracy": (correct, len(target))})


def _check(*, layers: str, pooling: str, loss: str, tdnn: Sequence[int], sub_centres: int) -> None:
    """UserError for an option that does not exist."""
    for name, value, known in (("layers", layers, LAYERS), ("pooling", pooling, POOLINGS), ("loss", loss, LOSSES)):
        if value not in known:
            raise UserError(f"task.{name}={value} must be {', '.join(known[:-1])} or {known[-1]}")
    if len(tdnn) > 5 or any(size < 1 for size in tdnn):
        raise UserError(f"task.tdnn={list(tdnn)} must be at most five channel counts, each 1 or more")
    if sub_centres < 1:
        raise UserError(f"task.sub_centres={sub_centres} must be 1 or more")


def _check_margin(*, scale: float, margin: float) -> None:
    if scale <= 0:
        raise UserError(f"task.scale={scale:g} must be more than 0: the papers have 30 or 64")
    if not 0 <= margin <= 1:
        raise UserError(f"task.margin={margin:g} must be from 0 to 1: the papers have 0.2 to 0.5")
