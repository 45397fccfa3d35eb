"""Transcripts to CTC labels and back.

The units are a choice: characters (one Unicode code point of the normalised transcript, whatever the script: where
Unicode has no composed form, a combining accent stays a symbol of its own, so no accent is ever lost), BPE pieces
(see speechssl/data/bpe.py) or phonemes (see speechssl/data/phonemes.py). The space between words is a symbol like any
other; BPE writes it at the beginning of a word's first piece. Index 0 is the blank of CTC (Graves et al. 2006,
section 3.1), which no transcript holds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from speechssl.data import bpe, phonemes
from speechssl.errors import UserError

BLANK = "<blank>"
BLANK_INDEX = 0
UNITS = ("characters", "bpe", "phonemes")


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
        symbols: "<blank>" first, then the units, each once; a symbol's place is its label. Vocabularies from other
            toolkits also hold longer symbols, such as "<unk>": they are decoded, never encoded.
        units: "characters", "bpe" or "phonemes".
        language: of the phonemes, as espeak-ng names it.

    Raises:
        UserError: the first symbol is not the blank, or another is empty or stands there twice, or no such units.
    """

    symbols: tuple[str, ...]
    units: str = "characters"
    language: str = "en-us"

    def __post_init__(self) -> None:
        check_units(self.units)
        if not self.symbols or self.symbols[BLANK_INDEX] != BLANK:
            raise UserError(f"a vocabulary must begin with {BLANK!r}, not as {_shorten(self.symbols)}")
        if "" in self.symbols:
            raise UserError(f"the vocabulary holds an empty symbol: {_shorten(self.symbols)}")
        if len(self._index) != len(self.symbols):
            raise UserError(f"the vocabulary holds a symbol twice: {_shorten(self.symbols)}")

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        lowercase: bool = False,
        units: str = "characters",
        bpe_size: int = 200,
        language: str = "en-us",
    ) -> Vocabulary:
        """The units that `texts` hold once normalised: characters and phonemes in code point order.

        Args:
            texts: transcripts.
            lowercase: whether they are lower-cased first.
            units: "characters", "bpe" or "phonemes".
            bpe_size: pieces of BPE, the characters among them.
            language: of the phonemes.

        Raises:
            UserError: there is no character in the texts, or what the units need is not installed.
        """
        check_units(units)
        texts = [normalize(text, lowercase=lowercase) for text in texts]
        if not any(texts):
            raise UserError("all transcripts are empty, so they give no vocabulary: add clips with a text")
        if units == "bpe":
            symbols = bpe.train(texts, size=bpe_size)
        elif units == "phonemes":
            symbols = sorted({symbol for text in texts for symbol in phonemes.phonemize(text, language)})
        else:
            symbols = sorted({character for text in texts for character in text})
        return cls((BLANK, *symbols), units, language)

    def split(self, text: str) -> list[str]:
        """`text`, normalised, in units; what the vocabulary lacks is among them."""
        text = normalize(text)
        if self.units == "bpe":
            return bpe.split(text, self._index)
        if self.units == "phonemes":
            return list(phonemes.phonemize(text, self.language))
        return list(text)

    def encode(self, text: str) -> list[int]:
        """The labels of `text`, normalised (letter case as it is).

        Raises:
            UserError: it has units outside the vocabulary.
        """
        outside = self.outside(text)
        if outside:
            raise UserError(
                f"the transcript {normalize(text)!r} has {self.units} outside the vocabulary, {describe(outside)}: "
                "correct the transcript, leave the clip out, or fine-tune on transcripts that hold them"
            )
        return [self._index[symbol] for symbol in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of labels; blanks are left out, repeats kept (collapsing them is the decoder's work)."""
        return self.join(self.symbols[i] for i in ids if i != BLANK_INDEX)

    def join(self, symbols: Iterable[str]) -> str:
        """The text of symbols."""
        text = "".join(symbols)
        return text.replace(bpe.SPACE, " ").strip() if self.units == "bpe" else text

    def reference(self, text: str) -> str:
        """A transcript as the model would write it: normalised, in phonemes where these are the units."""
        return self.join(self.split(text))

    def outside(self, text: str) -> list[str]:
        """The units of `text`, normalised, that the vocabulary lacks, each once, in code point order."""
        return sorted(set(self.split(text)) - self._index.keys())

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}


def check_units(units: str) -> None:
    """UserError unless `units` is one of UNITS."""
    if units not in UNITS:
        raise UserError(f"task.units={units} must be {', '.join(UNITS[:-1])} or {UNITS[-1]}")


def describe(symbols: Iterable[str]) -> str:
    """Symbols with code points and names, for a message: 'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)."""
    return ", ".join(
        f"{s!r} (U+{ord(s):04X} {unicodedata.name(s, 'unnamed')})" if len(s) == 1 else repr(s) for s in symbols
    )


def _shorten(symbols: tuple[str, ...]) -> str:
    shown = [*symbols[:8], "..."] if len(symbols) > 8 else list(symbols)
    return repr(shown)
