"""Transcripts as phonemes of the International Phonetic Alphabet, by espeak-ng's rules and dictionaries."""

from __future__ import annotations

import ctypes
import re
from contextlib import ExitStack
from functools import lru_cache

from speechssl import espeak
from speechssl.errors import UserError

_CHARS_UTF8 = 1
_SEPARATOR = "_"
_IPA = 0x02 | ord(_SEPARATOR) << 8  # between the phonemes of a word
_STRESS = re.compile("[ˈˌ]")
_LANGUAGE_SWITCH = re.compile(r"\([a-z-]+\)")  # espeak-ng says so where it reads a foreign word
_process = ExitStack()  # the library stays loaded, with its folder, as long as the process lives


@lru_cache(maxsize=100_000)
def phonemize(text: str, language: str) -> tuple[str, ...]:
    """The phonemes of a text, without stress, a space between words.

    Args:
        text: one utterance.
        language: as espeak-ng names it: en-us, de, fr-fr, cmn.

    Raises:
        UserError: espeak-ng is not installed, or does not know the language.
    """
    library = _library(language)
    rest = ctypes.c_char_p(text.encode())
    clauses = []
    while rest.value:  # one clause at each call
        clauses.append(library.espeak_TextToPhonemes(ctypes.byref(rest), _CHARS_UTF8, _IPA).decode())
    words = _STRESS.sub("", _LANGUAGE_SWITCH.sub("", " ".join(clauses))).split()
    symbols: list[str] = []
    for word in words:
        symbols += [" ", *(phoneme for phoneme in word.split(_SEPARATOR) if phoneme)]
    return tuple(symbols[1:])


@lru_cache(maxsize=1)
def _library(language: str) -> ctypes.CDLL:
    library, _ = _process.enter_context(espeak.loaded("task.units=phonemes uses"))
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    if library.espeak_SetVoiceByName(language.encode()) != 0:
        raise UserError(f"espeak-ng knows no language {language!r}: give task.language as en-us, de, fr-fr or another")
    return library
