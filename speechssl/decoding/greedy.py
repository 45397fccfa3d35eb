"""Greedy CTC decoding: the best symbol of every frame, repeats collapsed, blanks dropped.

Graves et al. 2006, section 3.2 ("best path decoding"). Fast, needs nothing but the logits, and says where in
the audio each character was heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from speechssl.data.text import BLANK_INDEX, Vocabulary
from speechssl.decoding.transcript import Transcript, spelled


@dataclass(frozen=True)
class GreedyDecoder:
    """`greedy` over one vocabulary, as configs/decoder names it."""

    has_lexicon: ClassVar[bool] = False  # as BeamDecoder's
    vocabulary: Vocabulary

    def ranges(self) -> dict[str, tuple[Sequence[float], float]]:
        """There is nothing for `speechssl tune` to try."""
        return {}

    def __call__(self, logits: Tensor) -> Transcript:
        """Decode one clip: logits [T, V]."""
        return greedy(logits, self.vocabulary)


def greedy(logits: Tensor, vocabulary: Vocabulary) -> Transcript:
    """Decode one clip.

    Args:
        logits: float [T, V], log-probabilities or anything that a softmax over V turns into them; T may be 0.
        vocabulary: the V symbols.
    """
    assert logits.ndim == 2 and logits.shape[1] == len(vocabulary), (logits.shape, len(vocabulary))
    best_probability, best = logits.detach().float().softmax(-1).max(-1)
    symbols, run_lengths = torch.unique_consecutive(best, return_counts=True)
    probabilities = best_probability.cpu().split(run_lengths.tolist())
    characters, start, num_blank_frames = [], 0, 0
    for symbol, probability in zip(symbols.tolist(), probabilities, strict=True):
        end = start + len(probability)
        if symbol == BLANK_INDEX:
            num_blank_frames += end - start
        else:
            characters += spelled(vocabulary, symbol, start, end, probability.mean().item())
        start = end
    return Transcript(characters=tuple(characters), num_frames=len(logits), num_blank_frames=num_blank_frames)
