"""Greedy CTC decoding: the best symbol of every frame, repeats collapsed, blanks dropped.

Graves et al. 2006, section 3.2 ("best path decoding"). Fast, needs nothing but the logits, and says where in
the audio each character was heard.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from speechssl.data.text import BLANK_INDEX, Vocabulary


@dataclass(frozen=True)
class Character:
    """One decoded character.

    Attributes:
        symbol: the character.
        start: first frame where it is the best symbol.
        end: the frame after its last.
        confidence: mean over these frames of the symbol's probability.
    """

    symbol: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class Word:
    """One decoded word.

    Attributes:
        text: its characters.
        start_s: where its first character begins, seconds from the start of the clip.
        end_s: where its last character ends, seconds. CTC marks a character where it is sure of it, often
            only for a frame or two, so a word tends to end a little early.
        confidence: mean of its characters' confidences.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What greedy decoding finds in one clip.

    Attributes:
        characters: in order, spaces included.
        num_frames: frames of the clip.
    """

    characters: tuple[Character, ...]
    num_frames: int

    @property
    def text(self) -> str:
        """The words with one space between them."""
        return " ".join("".join(c.symbol for c in self.characters).split())

    @property
    def num_blank_frames(self) -> int:
        """Frames whose best symbol is the blank."""
        return self.num_frames - sum(c.end - c.start for c in self.characters)

    def words(self, frame_s: float) -> list[Word]:
        """The words with times, given the seconds from one frame to the next."""
        groups = groupby(self.characters, key=lambda c: c.symbol.isspace())
        return [_word(list(group), frame_s) for is_space, group in groups if not is_space]


@dataclass(frozen=True)
class GreedyDecoder:
    """`greedy` over one vocabulary, as configs/decoder names it."""

    vocabulary: Vocabulary

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
    characters, start = [], 0
    for symbol, probability in zip(symbols.tolist(), probabilities, strict=True):
        end = start + len(probability)
        if symbol != BLANK_INDEX:
            characters.append(Character(vocabulary.symbols[symbol], start, end, probability.mean().item()))
        start = end
    return Transcript(characters=tuple(characters), num_frames=len(logits))


def _word(characters: list[Character], frame_s: float) -> Word:
    return Word(
        text="".join(c.symbol for c in characters),
        start_s=characters[0].start * frame_s,
        end_s=characters[-1].end * frame_s,
        confidence=sum(c.confidence for c in characters) / len(characters),
    )
