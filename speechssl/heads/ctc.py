"""CTC fine-tuning: a linear layer over the encoder (wav2vec 2.0, section 4.3; Graves et al. 2006).

Or two bidirectional recurrent layers before it, as SUPERB's ASR task has over a frozen encoder (Yang et al. 2021).
They learn what follows what, which a small encoder does not (`task=distil_few`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechssl.data.text import BLANK_INDEX, Vocabulary, check_units, normalize
from speechssl.errors import UserError
from speechssl.heads.adapters import Adapters
from speechssl.heads.encoding import encode, is_frozen
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.recurrence import recur
from speechssl.types import Batch, EncoderOutput, LossOutput, Term, Utterance, at_least_fp32, to_device


class CTCObjective(nn.Module):
    """Characters, pieces of words or phonemes from frames.

    Attributes:
        vocabulary: what the outputs stand for.
        adapters: what trains in the place of the encoder, or None.
    """

    whole_clips = True  # a transcript belongs to the whole clip

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
        channel_mask_start_probability: float = 0.0,
        channel_mask_span: int | None = None,
        layers: str = "last",
        recurrent_size: int = 0,
        lora_rank: int = 0,
        adapter_size: int = 0,
        units: str = "characters",
        bpe_size: int = 200,
        language: str = "en-us",
        clip_seconds: Sequence[float] | None = None,
    ):
        """Args:
        vocabulary: symbols, the blank first.
        lowercase: whether transcripts are lower-cased.
        dropout: before the linear layer.
        mask_start_probability, mask_span: spans hidden in training, as in pretraining; probability 0 hides none.
        freeze_feature_encoder: keep the convolutions as they are.
        freeze_encoder: keep the whole encoder for this fraction of the run (above 1: so many steps).
        channel_mask_start_probability, channel_mask_span: runs of channels hidden in training; a span of None is a
            twelfth of the channels, as the paper's 64 of BASE's 768.
        layers: "last" reads the last layer, "weighted" a learned weighting of all of them, each normed (SUPERB).
        recurrent_size: width each way of two bidirectional layers of gated recurrent units before the linear layer, 0
            for none. (SUPERB has LSTMs, which take twice the steps to leave the plateau of blanks.)
        lora_rank, adapter_size: see `Adapters`; with either the encoder itself does not train.
        units, bpe_size, language: see `Vocabulary`.
        clip_seconds: how long the training clips are, the 5th, 50th and 95th percentile: long recordings are cut alike.
        """
        super().__init__()
        if layers not in ("last", "weighted"):
            raise UserError(f"task.layers={layers} must be last or weighted")
        self.vocabulary, self.lowercase = Vocabulary(tuple(vocabulary), units, language), lowercase
        self.layer_weights = nn.Parameter(torch.zeros(encoder.num_layers + 1)) if layers == "weighted" else None
        has_adapters = lora_rank or adapter_size
        self.adapters = Adapters(encoder, lora_rank=lora_rank, adapter_size=adapter_size) if has_adapters else None
        self.recurrent = None
        if recurrent_size:
            options = {"num_layers": 2, "dropout": dropout, "bidirectional": True}
            self.recurrent = nn.GRU(encoder.hidden_size, recurrent_size, **options)
        self.linear = nn.Linear(2 * recurrent_size or encoder.hidden_size, len(self.vocabulary))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.dropout = dropout
        self.mask_start_probability, self.mask_span = mask_start_probability, mask_span
        self.channel_mask_start_probability = channel_mask_start_probability
        self.channel_mask_span = channel_mask_span or max(encoder.hidden_size // 12, 1)
        self.freeze_feature_encoder, self.freeze_encoder = freeze_feature_encoder, freeze_encoder
        self.encoder_frozen = False
        self.clip_seconds = clip_seconds

    @staticmethod
    def data_options(
        utterances: Sequence[Utterance],
        *,
        lowercase: bool,
        units: str = "characters",
        bpe_size: int = 200,
        language: str = "en-us",
        **_: object,
    ) -> dict[str, list]:
        """What the training manifest decides: the vocabulary, and how long clips are."""
        check_units(units)
        texts, durations_s = [], []
        for utterance in utterances:
            if utterance.text:
                texts.append(utterance.text)
                durations_s.append(utterance.duration_s)
        found = Vocabulary.from_texts(texts, lowercase=lowercase, units=units, bpe_size=bpe_size, language=language)
        seconds = [round(float(x), 2) for x in np.percentile(durations_s, [5, 50, 95])]
        return {"vocabulary": list(found.symbols), "clip_seconds": seconds}

    def attach(self, encoder: Encoder) -> None:
        """Take effect in the encoder that the head is for: its adapters, where it has some."""
        if self.adapters:
            self.adapters.attach(encoder)

    def target(self, utterance: Utterance) -> Tensor:
        """int64 [L]: the labels of a clip."""
        return torch.tensor(self.vocabulary.encode(normalize(utterance.text or "", lowercase=self.lowercase)))

    def check(self, utterance: Utterance, num_frames: int) -> str | None:
        """Why a clip cannot be trained on, or None."""
        if utterance.text is None:
            return "it has no `text`"
        outside = self.vocabulary.outside(normalize(utterance.text, lowercase=self.lowercase))
        if outside:
            return f"its transcript has {self.vocabulary.units} outside the vocabulary: {' '.join(outside)}"
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
        x = output.packed[-1]
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(0)
            # Normed, because the layers of a pre-norm network grow with depth.
            states = (F.layer_norm(state, state.shape[-1:]) for state in output.packed)
            x = sum(weight * state for weight, state in zip(weights, states, strict=True))
        if self.recurrent is not None:
            x = recur(self.recurrent, F.dropout(x, self.dropout, self.training), output.frame_lengths)
        return self.linear(F.dropout(x, self.dropout, self.training))

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """CTC loss in nats, summed over clips and counted in labels."""
        return self.loss(self.encode(encoder, batch, generator), batch)

    def encode(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None) -> EncoderOutput:
        """The encoder's output for a batch, hidden and frozen as the options say."""
        return encode(
            encoder,
            batch,
            generator,
            freeze_feature_encoder=self.freeze_feature_encoder,
            freeze_encoder=self.encoder_frozen,
            mask=self._mask_options(self.mask_start_probability, self.mask_span),
            channel_mask=self._mask_options(self.channel_mask_start_probability, self.channel_mask_span),
        )

    def loss(self, output: EncoderOutput, batch: Batch) -> LossOutput:
        """Encoder output and the batch's labels -> the loss and figures of `forward`."""
        logits = at_least_fp32(self.logits(output))
        loss = ctc_loss(logits, output.frame_lengths, batch.targets)
        best = logits.detach().argmax(-1)
        metrics = {"blank_share": ((best == BLANK_INDEX).sum(), len(best))}
        if not self.training:
            metrics |= self._error_rates(best, output.frame_lengths, batch.targets)
        return LossOutput({"ctc": Term(loss, self.counts(batch, output.frame_lengths)["ctc"])}, metrics)

    def _mask_options(self, start_probability: float, span: int) -> dict | None:
        """Options of `span_mask`, None where nothing is hidden."""
        if not (self.training and start_probability):
            return None
        return {"start_probability": start_probability, "span": span, "min_spans": 0}

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
    log_probs = pad_sequence(at_least_fp32(logits).log_softmax(-1).split(frame_lengths))
    if torch.are_deterministic_algorithms_enabled():
        log_probs = log_probs.cpu()  # on a GPU its gradient has no deterministic form
    loss = F.ctc_loss(
        log_probs,
        to_device(torch.cat(targets), log_probs.device),
        torch.tensor(frame_lengths),
        torch.tensor([len(target) for target in targets]),
        blank=BLANK_INDEX,
        reduction="sum",
        zero_infinity=True,
    )
    return loss.to(logits.device)
