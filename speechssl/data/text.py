"""Transcripts to CTC labels and back.

A symbol is one Unicode code point of the normalised transcript, whatever the script: where Unicode has no
composed form, a combining accent stays a symbol of its own, so no accent is ever lost. The space between
words is a symbol like any other. Index 0 is the blank of CTC (Graves et al. 2006, section 3.1), which no
transcript holds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from speechssl.errors import UserError

BLANK = "<blank>"
BLANK_INDEX = 0


def normalize(text: str, *, lowercase: bool = False) -> str:
    """`text` in Unicode's composed form (NFC), runs of whitespace as one space, none at the ends.

    With `lowercase` also lower-cased; punctuation and accents are always kept.
    """
    text = unicodedata.normalize("NFC", text)
    if lowercase:
        # Lower-casing can decompose a letter, so the form is composed again.
        text = unicodedata.normalize("NFC", text.lower())
    return " ".join(text.split())


@dataclass(frozen=True)
class Vocabulary:
    """The symbols a CTC head tells apart.

    Attributes:
        symbols: "<blank>" first, then single characters, each once; a symbol's place is its label. Vocabularies from
            other toolkits also hold longer symbols, such as "<unk>" or a phoneme: they are decoded, never encoded.

    Raises:
        UserError: the first symbol is not the blank, or another is empty or stands there twice.
    """

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.symbols or self.symbols[BLANK_INDEX] != BLANK:
            raise UserError(f"a vocabulary must begin with {BLANK!r}, not as {_shorten(self.symbols)}")
        if "" in self.symbols:
            raise UserError(f"the vocabulary holds an empty symbol: {_shorten(self.symbols)}")
        if len(self._index) != len(self.symbols):
            raise UserError(f"the vocabulary holds a symbol twice: {_shorten(self.symbols)}")

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, lowercase: bool = False) -> Vocabulary:
        """The characters that occur in `texts` once normalised, in code point order.

        Raises:
            UserError: there is no character in them.
        """
        characters = sorted({c for text in texts for c in normalize(text, lowercase=lowercase)})
        if not characters:
            raise UserError("all transcripts are empty, so they give no vocabulary: add clips with a text")
        return cls((BLANK, *characters))

    def encode(self, text: str) -> list[int]:
        """The labels of `text`, normalised (letter case as it is).

        Raises:
            UserError: it has characters outside the vocabulary.
        """
        text = normalize(text)
        outside = self.outside(text)
        if outside:
            raise UserError(
                f"the transcript {text!r} has characters outside the vocabulary, {describe(outside)}: "
                "correct the transcript, leave the clip out, or fine-tune on transcripts that hold them"
            )
        return [self._index[character] for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of labels; blanks are left out, repeats kept (collapsing them is the decoder's work)."""
        return "".join(self.symbols[i] for i in ids if i != BLANK_INDEX)

    def outside(self, text: str) -> list[str]:
        """The characters of `text`, normalised, that the vocabulary lacks, each once, in code point order."""
        return sorted(set(normalize(text)) - self._index.keys())

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}


def describe(characters: Iterable[str]) -> str:
    """Characters with code points and names, for a message: 'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)."""
    return ", ".join(f"{c!r} (U+{ord(c):04X} {unicodedata.name(c, 'unnamed')})" for c in characters)


def _shorten(symbols: tuple[str, ...]) -> str:
    shown = [*symbols[:8], "..."] if len(symbols) > 8 else list(symbols)
    return repr(shown)
