"""The other side of a benchmark: the same model and clips through transformers, as its users run it.

Its fastest attention (SDPA), clips padded to the longest. Models with a group norm get no attention mask, as
transformers' documentation asks of them; the others do where clips are uneven. Masks and negatives are drawn by its own
functions within the step, as its pretraining script draws them for each batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    _compute_mask_indices,
    _sample_negative_indices,
)

from speechssl.benchmarks.meters import Parts
from speechssl.benchmarks.ours import DRAWS, REST, autocast, describe, optimizer, pieces
from speechssl.interop import huggingface_out
from speechssl.training.checkpoint import Checkpoint
from speechssl.types import Batch

IGNORED = -100  # what transformers pads labels with

transformers.logging.set_verbosity_error()


def build(settings: dict[str, Any]) -> nn.Module:
    """Wav2Vec2ForPreTraining or Wav2Vec2ForCTC of the shape that ours has, with random weights."""
    torch.manual_seed(settings["trainer"]["seed"])
    description = Checkpoint(Path("benchmark"), describe(settings), {})
    values = huggingface_out.folder_files(description)["config.json"] | {"ctc_loss_reduction": "sum"}
    kind = Wav2Vec2ForPreTraining if settings["what"] == "pretrain" else Wav2Vec2ForCTC
    return kind(Wav2Vec2Config(**values, attn_implementation="sdpa"))


class Peer:
    """The model and its step."""

    def __init__(self, settings: dict[str, Any], batch: Batch, parts: Parts, device: torch.device):
        np.random.seed(settings["trainer"]["seed"])
        self.settings, self.parts, self.device = settings, parts, device
        self.model = build(settings).to(device)
        self.config = self.model.config
        if settings["trainer"]["compile"]:
            for layer in self.model.wav2vec2.encoder.layers:
                layer.compile(dynamic=True)
        what = settings["what"]
        self.rest, self.step = REST[what], getattr(self, f"_{what}")
        self._watch()
        self._set_batch(batch)
        self.model.train(what != "inference")
        if what == "finetune":
            self.model.freeze_feature_encoder()
        self.optimizer = optimizer(settings, self.model)

    def _watch(self) -> None:
        inner = self.model.wav2vec2
        for module, part in (
            (inner.feature_extractor, "feature_encoder"),
            (inner.feature_projection.layer_norm, "feature_encoder"),
            (inner.feature_projection.projection, "transformer"),
            (inner.encoder.pos_conv_embed, "positions"),
            (inner.encoder, "transformer"),
        ):
            self.parts.watch(module, part)

    def _set_batch(self, batch: Batch) -> None:
        self.waveforms, self.lengths = batch.waveforms.to(self.device), batch.lengths
        self.attention_mask = self._attention_mask(batch.lengths)
        self.labels = pad_sequence(batch.targets, batch_first=True, padding_value=IGNORED).to(self.device)
        num_frames = int(self.model._get_feat_extract_output_lengths(self.waveforms.shape[1]))
        self.shape = len(self.waveforms), num_frames
        samples = torch.arange(self.waveforms.shape[1]) < batch.lengths[:, None]
        self.frame_mask = self.model._get_feature_vector_attention_mask(num_frames, samples.long())

    def _attention_mask(self, lengths: Tensor) -> Tensor | None:
        """int64 [B, N], where transformers' documentation asks for one and it says something."""
        if self.config.feat_extract_norm == "group" or bool((lengths == lengths.max()).all()):
            return None
        return (torch.arange(int(lengths.max())) < lengths[:, None]).long().to(self.device)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Masked frames [B, T] and the negatives of each [B, T, K], numbers of frames of the batch."""
        mask = _compute_mask_indices(
            self.shape,
            self.config.mask_time_prob,
            self.config.mask_time_length,
            attention_mask=self.frame_mask,
            min_masks=self.config.mask_time_min_masks,
        )
        negatives = _sample_negative_indices(self.shape, self.config.num_negatives, mask_time_indices=mask)
        return torch.from_numpy(mask).to(self.device), torch.from_numpy(negatives).to(self.device)

    def _pretrain(self, _number: int) -> None:
        with self.parts.part(DRAWS):
            mask, negatives = self.draw()
        with self.parts.part(self.rest), autocast(self.settings, self.device):
            output = self.model(
                self.waveforms,
                attention_mask=self.attention_mask,
                mask_time_indices=mask,
                sampled_negative_indices=negatives,
            )
            loss = output.loss / mask.sum()
        self._update(loss)

    def _finetune(self, _number: int) -> None:
        with self.parts.part(self.rest), autocast(self.settings, self.device):
            output = self.model(self.waveforms, attention_mask=self.attention_mask, labels=self.labels)
            loss = output.loss / (self.labels != IGNORED).sum()
        self._update(loss)

    def _update(self, loss: Tensor) -> None:
        self.parts.backward(loss, self.rest)
        with self.parts.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _inference(self, _number: int) -> None:
        is_even = bool((self.lengths == self.lengths.max()).all())
        with self.parts.part(self.rest), autocast(self.settings, self.device):
            for piece in pieces(self.settings, self.lengths.tolist(), all_at_once=is_even):
                lengths = self.lengths[piece]
                waveforms = self.waveforms[piece, : int(lengths.max())]
                self.model(waveforms, attention_mask=self._attention_mask(lengths))
