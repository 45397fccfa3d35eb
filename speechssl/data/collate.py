"""Examples to a Batch."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

from speechssl.data.dataset import BrokenClip, Example
from speechssl.types import Batch


def collate(examples: list[Example | BrokenClip], *, min_samples: int) -> tuple[Batch | None, list[BrokenClip]]:
    """The batch of the clips that could be read, longest first, and the clips that could not.

    Clips that came out shorter than `min_samples` (the encoder's receptive field) count as broken.
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
        waveforms=pad_sequence([example.waveform for example in good], batch_first=True),
        lengths=torch.tensor([len(example.waveform) for example in good]),
        seeds=[example.seed for example in good],
        utterances=[example.utterance for example in good],
        targets=[example.target for example in good] if good[0].target is not None else None,
    )
    return batch, broken
