"""Normalisation and the character vocabulary, against forms by hand and Python's own Unicode tables."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.text import BLANK, Vocabulary, normalize
from speechssl.errors import UserError


def test_whitespace_is_collapsed_and_stripped():
    assert normalize("\t one \n two\u00a0\u3000three ") == "one two three"


def test_composed_and_decomposed_accents_are_the_same():
    assert normalize("e\u0301te\u0301") == "\u00e9t\u00e9"


def test_an_accent_without_composed_form_is_kept():
    # Mboshi writes open vowels with a tone mark for which Unicode has no single code point.
    assert normalize("\u0254\u0301") == "\u0254\u0301"


def test_case_is_kept_unless_lowercase_is_asked():
    assert normalize("Ab É") == "Ab É"
    assert normalize("Ab É", lowercase=True) == "ab é"


@given(st.text(), st.booleans())
def test_normalize_is_idempotent_and_composed(text, lowercase):
    once = normalize(text, lowercase=lowercase)
    assert normalize(once, lowercase=lowercase) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once and once == once.strip()


@given(st.text())
def test_canonically_equal_texts_normalize_alike(text):
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(text)


def test_vocabulary_is_blank_then_sorted_characters():
    vocabulary = Vocabulary.from_texts(["ba ab", "c"])
    assert vocabulary.symbols == (BLANK, " ", "a", "b", "c")
    assert len(vocabulary) == 5
    assert vocabulary.encode("cab  a") == [4, 2, 3, 1, 2]
    assert vocabulary.decode([4, 0, 2, 3, 1, 2, 2]) == "cab aa"


def test_vocabulary_does_not_depend_on_the_order_of_texts():
    assert Vocabulary.from_texts(["zebra", "été"]) == Vocabulary.from_texts(["été", "zebra"])


def test_from_texts_can_lowercase():
    assert Vocabulary.from_texts(["AbB"], lowercase=True).symbols == (BLANK, "a", "b")


@given(st.lists(st.text(), min_size=1).filter(lambda texts: any(text.split() for text in texts)))
def test_decode_undoes_encode(texts):
    vocabulary = Vocabulary.from_texts(texts)
    for text in texts:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == normalize(text)
        assert len(ids) == len(normalize(text))
        assert 0 not in ids


def test_characters_outside_are_named_with_code_points_in_one_sentence():
    with pytest.raises(UserError) as error:
        Vocabulary.from_texts(["abc"]).encode("aéc\u0301!")
    message = str(error.value)
    assert "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)" in message
    assert "U+0021 EXCLAMATION MARK" in message
    assert "'a' (" not in message
    assert "\n" not in message and "fine-tune" in message


def test_a_decomposed_transcript_is_not_outside():
    assert Vocabulary.from_texts(["é"]).encode("e\u0301") == [1]


def test_outside_lists_each_character_once():
    assert Vocabulary.from_texts(["a"]).outside("b a c b") == [" ", "b", "c"]


@pytest.mark.parametrize("symbols", [(), ("a", "b"), (BLANK, "a", "a"), (BLANK, "")])
def test_a_broken_vocabulary_is_refused(symbols):
    with pytest.raises(UserError):
        Vocabulary(symbols)


def test_longer_symbols_are_decoded_and_never_encoded():
    vocabulary = Vocabulary((BLANK, "a", "<unk>", "aɪ"))
    assert vocabulary.decode([1, 2, 0, 3]) == "a<unk>aɪ"
    assert vocabulary.outside("aɪ<") == ["<", "ɪ"]


def test_no_vocabulary_from_empty_texts():
    with pytest.raises(UserError, match="empty"):
        Vocabulary.from_texts(["", "  "])


def test_vocabulary_travels_to_loader_workers():
    vocabulary = Vocabulary.from_texts(["ab"])
    assert pickle.loads(pickle.dumps(vocabulary)).encode("b") == vocabulary.encode("b")
