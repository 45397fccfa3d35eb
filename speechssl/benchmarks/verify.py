"""That both sides of a benchmark compute the same: nothing was left out for speed.

Same weights, masks and distractors, no dropout, and the likeliest codes instead of drawn ones, in fp32. transformers
takes clips of equal length together and others one by one, since its group norm sees padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.benchmarks import ours, peer
from speechssl.benchmarks.worker import batch_of
from speechssl.interop import huggingface_out
from speechssl.models.lengths import runs
from speechssl.objectives.wav2vec2 import Draw
from speechssl.training.checkpoint import Checkpoint
from speechssl.types import Batch

TOLERANCE = 1e-4


@torch.no_grad()
def compare(settings: dict[str, Any]) -> dict[str, Any]:
    """The largest relative difference of a loss (of logits, where what=inference) between the sides.

    Raises:
        RuntimeError: it is above TOLERANCE.
    """
    our_model = ours.build(settings).eval()
    tensors = huggingface_out.tensors(Checkpoint(Path("benchmark"), ours.describe(settings), our_model.state_dict()))
    their_model = peer.build(settings).eval()
    their_model.load_state_dict(tensors)
    differences = COMPARISONS[settings["what"]](our_model, their_model, batch_of(settings))
    largest = max(differences.values())
    if not largest <= TOLERANCE:
        raise RuntimeError(f"the sides compute different things: relative differences {differences}")
    return {"relative_difference": largest, "tolerance": TOLERANCE, "differences": differences}


def _pretrain(our_model: nn.ModuleDict, their_model: nn.Module, batch: Batch) -> dict[str, float]:
    """Total loss of each run of equally long clips, and the contrastive loss of the whole batch."""
    encoder, objective = our_model["encoder"], our_model["objective"]
    differences, contrastive = {}, 0.0
    for name, part in _runs(batch):
        frame_lengths = [encoder.feature_encoder.num_frames(n) for n in part.lengths.tolist()]
        draw = objective.draw(part, frame_lengths)
        output = objective(encoder, part, draw=draw)
        loss = sum(term.weight * term.sum for term in output.terms.values())
        their_loss, their_contrastive = _their_pretraining(their_model, part, draw)
        differences[f"loss of {name}"] = _relative(loss, their_loss)
        contrastive = contrastive + their_contrastive
    whole = objective(encoder, batch).terms["contrastive"].sum
    return differences | {"contrastive loss of all": _relative(whole, contrastive)}


def _their_pretraining(model: nn.Module, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
    """Total and contrastive loss of equally long clips."""
    mask = draw.masks.view(len(batch.seeds), -1)
    num_frames = mask.shape[1]
    negatives = torch.zeros(*mask.shape, draw.distractors.shape[1], dtype=torch.long)
    for clip, distractors in enumerate(draw.distractors.split(draw.num_masked)):
        masked = mask[clip].nonzero().squeeze(1)
        negatives[clip, masked] = clip * num_frames + masked[distractors]
    # Only in training does it take the diversity loss from probabilities, as the paper does.
    model.quantizer.train()
    with mock.patch.object(F, "gumbel_softmax", _likeliest):
        output = model(batch.waveforms, mask_time_indices=mask, sampled_negative_indices=negatives)
    return output.loss, output.contrastive_loss


def _likeliest(logits: Tensor, **_: object) -> Tensor:
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


def _finetune(our_model: nn.ModuleDict, their_model: nn.Module, batch: Batch) -> dict[str, float]:
    """CTC loss of the whole batch, of which transformers' is the sum over runs."""
    loss = our_model["objective"](our_model["encoder"], batch).terms["ctc"].sum
    theirs = 0.0
    for _, part in _runs(batch):
        theirs = theirs + their_model(part.waveforms, labels=torch.stack(part.targets)).loss
    return {"CTC loss of all": _relative(loss, theirs)}


def _inference(our_model: nn.ModuleDict, their_model: nn.Module, batch: Batch) -> dict[str, float]:
    """Logits of the whole batch: root of the mean square of the difference, over that of the logits."""
    logits = our_model["objective"].logits(our_model["encoder"](batch.waveforms, batch.lengths))
    theirs = torch.cat([their_model(part.waveforms).logits.flatten(0, 1) for _, part in _runs(batch)])
    return {"logits of all": ((logits - theirs).norm() / theirs.norm()).item()}


COMPARISONS = {"pretrain": _pretrain, "finetune": _finetune, "inference": _inference}


def _runs(batch: Batch) -> Iterator[tuple[str, Batch]]:
    """The batch in runs of equally long clips, each with a name."""
    for first, count, length in runs(batch.lengths.tolist()):
        part = slice(first, first + count)
        yield (
            f"clips {first} to {first + count - 1}",
            dataclasses.replace(
                batch,
                waveforms=batch.waveforms[part, :length],
                lengths=batch.lengths[part],
                seeds=batch.seeds[part],
                utterances=batch.utterances[part],
                targets=batch.targets[part],
            ),
        )


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs() / theirs.abs()).item()
