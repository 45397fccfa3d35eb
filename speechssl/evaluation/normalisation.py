"""How references and hypotheses are made alike before they are compared; what was done is said in words."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from speechssl.data.text import normalize
from speechssl.errors import UserError

CHOICES = ("keep", "remove")


@dataclass(frozen=True)
class Normalisation:
    """Unicode NFC and single spaces always; the rest is chosen.

    Attributes:
        lowercase: lower-case letters.
        punctuation: "keep", or "remove": Unicode's categories P and S go, but an apostrophe within a word stays.
        accents: "keep", or "remove": combining marks go, which in a tone language changes words.

    Raises:
        UserError: another value.
    """

    lowercase: bool = False
    punctuation: str = "keep"
    accents: str = "keep"

    def __post_init__(self) -> None:
        for name in ("punctuation", "accents"):
            if getattr(self, name) not in CHOICES:
                raise UserError(f"normalisation.{name}={getattr(self, name)} must be {' or '.join(CHOICES)}")

    def __call__(self, text: str) -> str:
        """A text as it is compared."""
        text = normalize(text, lowercase=self.lowercase)
        if self.accents == "remove":
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self.punctuation == "remove":
            text = "".join(c if _stays(text, i) else " " for i, c in enumerate(text))
        return normalize(text)

    def __str__(self) -> str:
        parts = [
            "Unicode NFC",
            "whitespace collapsed",
            "lower-cased" if self.lowercase else "case kept",
            "punctuation kept" if self.punctuation == "keep" else "punctuation removed",
            *([] if self.accents == "keep" else ["accents removed"]),
        ]
        return ", ".join(parts)


def _stays(text: str, i: int) -> bool:
    """Whether a character is no punctuation, or an apostrophe between letters, the first with or without marks."""
    if unicodedata.category(text[i])[0] not in "PS":
        return True
    if text[i] not in "'’" or not 0 < i < len(text) - 1:
        return False
    return unicodedata.category(text[i - 1])[0] in "LM" and text[i + 1].isalpha()
