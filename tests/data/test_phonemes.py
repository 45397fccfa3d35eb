"""Phonemes of espeak-ng, against what its own program prints for the same words."""

from __future__ import annotations

import pytest

from speechssl.data import phonemes
from speechssl.data.text import BLANK, Vocabulary
from speechssl.errors import UserError

pytest.importorskip("espeakng_loader", reason="the extra `synthetic` is not installed")


def test_phonemes_of_words():
    # espeak-ng -q --ipa --sep=_ -v en-us: h_ə_l_ˈoʊ w_ˈɜː_l_d
    assert phonemes.phonemize("hello world", "en-us") == ("h", "ə", "l", "oʊ", " ", "w", "ɜː", "l", "d")
    assert phonemes.phonemize("", "en-us") == ()


def test_clauses_and_languages():
    joined = "".join(phonemes.phonemize("cat. dog, cat", "en-us"))
    assert joined.split() == ["kæt", "dɑːɡ", "kæt"]
    assert "".join(phonemes.phonemize("ja", "de")) == "jɑː"
    with pytest.raises(UserError, match="no language 'nosuch'"):
        phonemes.phonemize("a", "nosuch")
    assert "".join(phonemes.phonemize("dog", "en-us")) == "dɑːɡ"


def test_a_vocabulary_of_phonemes():
    vocabulary = Vocabulary.from_texts(["cat", "hello world"], units="phonemes")
    assert vocabulary.symbols[0] == BLANK and {" ", "k", "æ", "t", "oʊ", "ɜː"} <= set(vocabulary.symbols)
    assert vocabulary.decode(vocabulary.encode("hello cat")) == "həloʊ kæt" == vocabulary.reference("hello cat")
    assert vocabulary.outside("dog") == ["ɑː", "ɡ"]
