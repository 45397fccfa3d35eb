"""Examples to a Batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.types import Batch, Utterance


@dataclass
class Example:
    """One clip: waveform float32 [N], its seed in this epoch, what it is, its labels int64 [L] if wanted, and at which
    second of the utterance it begins."""

    waveform: Tensor
    seed: int
    utterance: Utterance
    target: Tensor | None
    start_s: float = 0.0


@dataclass
class BrokenClip:
    """A clip that could not be read, and the sentence that says why."""

    utterance: Utterance
    reason: str


def collate(
    examples: list[Example | BrokenClip], *, min_samples: int, rows: Tensor | None = None
) -> tuple[Batch | None, list[BrokenClip]]:
    """The batch of the clips that could be read, longest first, and the clips that could not.

    Clips that came out shorter than `min_samples` (the encoder's receptive field) count as broken. `rows` float32
    [B, N] is memory for the batch, in which waveforms may lie already, one in each row.
    """
    broken = [x for x in examples if isinstance(x, BrokenClip)]
    good = []
    for example in examples:
        if isinstance(example, BrokenClip):
            continue
        if len(example.waveform) < min_samples:
            reason = (
                f"{example.utterance.audio_path} gives {len(example.waveform)} samples, fewer than the {min_samples} "
                "that the encoder needs; leave it out"
            )
            broken.append(BrokenClip(example.utterance, reason))
        else:
            good.append(example)
    if not good:
        return None, broken
    # Equally long clips become neighbours, which the encoder runs as one batch.
    good.sort(key=lambda example: -len(example.waveform))
    batch = Batch(
        waveforms=_padded([example.waveform for example in good], rows),
        lengths=torch.tensor([len(example.waveform) for example in good]),
        seeds=[example.seed for example in good],
        utterances=[example.utterance for example in good],
        targets=[example.target for example in good] if good[0].target is not None else None,
        starts_s=[example.start_s for example in good],
    )
    return batch, broken


def _padded(waveforms: list[Tensor], rows: Tensor | None) -> Tensor:
    """[B, N]: the waveforms, longest first, zero padded; in `rows` where they fit as they are."""
    if rows is None or len(rows) != len(waveforms) or rows.shape[1] != len(waveforms[0]):
        return pad_sequence(waveforms, batch_first=True)
    inside = [_row_of(waveform, rows) for waveform in waveforms]
    if any(row is not None and row != place for place, row in enumerate(inside)):
        return pad_sequence(waveforms, batch_first=True)  # one lies where another is to be
    for waveform, row, place in zip(waveforms, rows, inside, strict=True):
        if place is None:
            row[: len(waveform)] = waveform
        row[len(waveform) :] = 0.0
    return rows


def _row_of(waveform: Tensor, rows: Tensor) -> int | None:
    """Which row a waveform begins in the memory of; None if it lies elsewhere."""
    distance = waveform.data_ptr() - rows.data_ptr()
    row, rest = divmod(distance, rows.stride(0) * rows.element_size())
    return row if 0 <= row < len(rows) and rest == 0 else None
