"""What a decoder finds in a clip: symbols, words and texts with their places in time."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

from speechssl.data.bpe import SPACE
from speechssl.data.text import Vocabulary

log = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Character:
    """One decoded symbol.

    Attributes:
        symbol: the character, or another unit: a phoneme, a piece of a word without its space.
        start: its first frame.
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
class Alternative:
    """Another reading of a clip: its text, and its score in nats (the decoder's, comparable within the clip)."""

    text: str
    score: float


@dataclass(frozen=True)
class Transcript:
    """What decoding finds in one clip.

    Attributes:
        characters: in order, spaces included.
        num_frames: frames of the clip.
        num_blank_frames: frames whose best symbol is the blank.
        written: the words as a lexicon writes them, where that is not how they are spelled.
        alternatives: the n best readings, this one first, where the decoder gives them.
    """

    characters: tuple[Character, ...]
    num_frames: int
    num_blank_frames: int
    written: tuple[str, ...] | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def text(self) -> str:
        """The words with one space between them."""
        if self.written is not None:
            return " ".join(self.written)
        return " ".join("".join(c.symbol for c in self.characters).split())

    def words(self, frame_s: float) -> list[Word]:
        """The words with times, given the seconds from one frame to the next."""
        groups = groupby(self.characters, key=lambda c: c.symbol.isspace())
        words = [_word(list(group), frame_s) for is_space, group in groups if not is_space]
        if self.written is None or len(words) != len(self.written):
            return words
        return [replace(word, text=text) for word, text in zip(words, self.written, strict=True)]

    def symbols(self) -> list[str]:
        """The units, spaces left out: what a phoneme error rate counts."""
        return [c.symbol for c in self.characters if not c.symbol.isspace()]


def spelled(vocabulary: Vocabulary, symbol: int, start: int, end: int, confidence: float) -> list[Character]:
    """A decoded symbol as a Character; a piece that begins a word (BPE) as a space of no frames and the rest."""
    text = vocabulary.symbols[symbol]
    if vocabulary.units != "bpe" or not text.startswith(SPACE):
        return [Character(text, start, end, confidence)]
    if text == SPACE:
        return [Character(" ", start, end, confidence)]
    return [Character(" ", start, start, confidence), Character(text.removeprefix(SPACE), start, end, confidence)]


def join(parts: Iterable[tuple[int, Transcript]], *, num_frames: int) -> Transcript:
    """One Transcript of a recording from those of its parts, each with its first frame; a space stands between them.

    The n best readings of the parts do not make those of the whole: it has none.
    """
    characters: list[Character] = []
    written: list[str] = []
    num_blank_frames, num_decoded = 0, 0
    has_written = False
    for first, part in parts:
        if len(part.alternatives) > 1:
            _say_there_are_no_alternatives()
        if characters and part.characters:
            end = characters[-1].end
            characters.append(Character(" ", end, end, 1.0))
        characters += [replace(c, start=c.start + first, end=c.end + first) for c in part.characters]
        has_written |= part.written is not None
        written += part.written if part.written is not None else part.text.split()
        num_blank_frames += part.num_blank_frames
        num_decoded += part.num_frames
    silent = num_frames - num_decoded
    return Transcript(
        tuple(characters), num_frames, num_blank_frames + silent, written=tuple(written) if has_written else None
    )


@lru_cache(maxsize=1)  # once
def _say_there_are_no_alternatives() -> None:
    log.warning("a recording that is cut into stretches gets no n best readings; window_s=null takes it at once")


def _word(characters: list[Character], frame_s: float) -> Word:
    return Word(
        text="".join(c.symbol for c in characters),
        start_s=characters[0].start * frame_s,
        end_s=characters[-1].end * frame_s,
        confidence=sum(c.confidence for c in characters) / len(characters),
    )
