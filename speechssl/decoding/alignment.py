"""Where in a clip the symbols of a known text are, by CTC's forced alignment (torchaudio's `forced_align`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechssl.data.text import BLANK_INDEX, Vocabulary
from speechssl.decoding.transcript import Character, spelled

# Alignment takes memory for frames times labels: a clip longer than this is cut before a word.
MAX_FRAMES = 2000


def align(log_probs: Tensor, labels: Sequence[int], starts: Sequence[int], vocabulary: Vocabulary) -> list[Character]:
    """The labels with their frames and probabilities.

    Args:
        log_probs: float [T, V] log-probabilities.
        labels: what was said, blanks left out.
        starts: a frame of each label on some path through the clip, to cut long clips by.
        vocabulary: the V symbols.
    """
    found: list[Character] = []
    first_frame = first_label = 0
    for i in [*range(1, len(labels)), len(labels)]:
        is_end = i == len(labels)
        if not is_end and not (starts[i] - first_frame > MAX_FRAMES and _begins_word(vocabulary, labels[i])):
            continue
        frame = len(log_probs) if is_end else starts[i]
        part = _align(log_probs[first_frame:frame], labels[first_label:i])
        for label, start, end, confidence in part:
            found += spelled(vocabulary, label, first_frame + start, first_frame + end, confidence)
        first_frame, first_label = frame, i
    return found


def _begins_word(vocabulary: Vocabulary, label: int) -> bool:
    return vocabulary.symbols[label][0] in (" ", "▁")


def _align(log_probs: Tensor, labels: Sequence[int]) -> list[tuple[int, int, int, float]]:
    """(label, first frame, frame after the last, mean probability) of each label."""
    from torchaudio.functional import forced_align  # not needed for greedy decoding

    path, scores = forced_align(log_probs[None].contiguous(), torch.tensor([labels]), blank=BLANK_INDEX)
    symbols, counts = torch.unique_consecutive(path[0], return_counts=True)
    found, start = [], 0
    for symbol, probabilities in zip(symbols.tolist(), scores[0].exp().split(counts.tolist()), strict=True):
        end = start + len(probabilities)
        if symbol != BLANK_INDEX:
            found.append((symbol, start, end, probabilities.mean().item()))
        start = end
    return found
