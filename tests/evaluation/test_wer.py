"""Error rates against edits counted by hand and a textbook edit distance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.errors import UserError
from speechssl.evaluation.normalisation import Normalisation
from speechssl.evaluation.wer import by_group, count_edits, error_rates, sequence_rate, speaker_attributed


def edit_distance(a, b) -> int:
    """Levenshtein's recurrence, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def test_edits_by_hand():
    rates = error_rates(["the cat sat down", "yes"], ["the bat sat", "oh yes"])
    # cat/bat substituted, "down" deleted, "oh" inserted; 5 reference words.
    assert (rates["substitutions"], rates["deletions"], rates["insertions"]) == (1, 1, 1)
    assert rates["wer"] == pytest.approx(3 / 5)
    # c/b, the five characters " down", the three characters "oh "; 16 + 3 reference characters.
    assert rates["cer"] == pytest.approx((1 + 5 + 3) / 19)
    assert (rates["num_utterances"], rates["num_words"]) == (2, 5)


def test_the_rate_is_of_the_set_not_the_mean_of_clips():
    # One word wrong of ten, and one of one: 2/11, where the mean of the rates would be 0.55.
    rates = error_rates([" ".join("abcdefghij"), "k"], [" ".join("abcdefghiX"), "X"])
    assert rates["wer"] == pytest.approx(2 / 11)


def test_all_blank_is_an_error_rate_of_one():
    rates = error_rates(["one two", "three"], ["", ""])
    assert rates["wer"] == rates["cer"] == 1.0
    assert rates["deletions"] == 3


def test_insertions_can_push_the_rate_above_one():
    assert error_rates(["a"], ["b c d"])["wer"] == 3.0


def test_words_in_an_empty_reference_are_insertions():
    rates = error_rates(["", "one two"], ["uh", "one two"])
    assert rates["insertions"] == 1
    assert rates["wer"] == pytest.approx(1 / 2)
    # "uh" against the seven characters of "one two".
    assert rates["cer"] == pytest.approx(2 / 7)


def test_without_any_reference_word_the_rate_is_undefined():
    assert error_rates(["", " "], ["uh", ""])["wer"] is None
    assert error_rates([], [])["cer"] is None


def test_normalisation_is_applied_to_both_and_stated():
    rates = error_rates(["e\u0301te\u0301  ici"], ["\u00e9t\u00e9\tici "])
    assert rates["wer"] == 0.0
    assert "NFC" in rates["normalisation"] and "case kept" in rates["normalisation"]


def test_case_counts_unless_lowercase():
    assert error_rates(["Yes"], ["yes"])["wer"] == 1.0
    rates = error_rates(["Yes"], ["yes"], normalisation=Normalisation(lowercase=True))
    assert rates["wer"] == 0.0 and "lower-cased" in rates["normalisation"]


def test_by_group():
    rates = by_group(["zoe", "ann", "zoe"], ["a b", "a", "c d"], ["a b", "x", "c x"])
    assert rates == {"ann": 1.0, "zoe": 0.25}
    assert list(rates) == ["ann", "zoe"]


def test_by_group_honours_lowercase():
    assert by_group(["ann"], ["A"], ["a"], normalisation=Normalisation(lowercase=True)) == {"ann": 0.0}


SENTENCES = st.lists(st.sampled_from(["a", "ab", "b"]), max_size=6)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), max_size=5))
def test_against_a_textbook_edit_distance(pairs):
    rates = error_rates([" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    edits = sum(edit_distance(r, h) for r, h in pairs)
    num_words = sum(len(r) for r, _ in pairs)
    assert rates["substitutions"] + rates["deletions"] + rates["insertions"] == edits
    assert rates["num_words"] == num_words
    assert rates["wer"] == (pytest.approx(edits / num_words) if num_words else None)
    character_edits = sum(edit_distance(" ".join(r), " ".join(h)) for r, h in pairs)
    num_characters = sum(len(" ".join(r)) for r, _ in pairs)
    assert rates["cer"] == (pytest.approx(character_edits / num_characters) if num_characters else None)


def test_confusions_are_counted_by_hand():
    rates = error_rates(["a b c", "a b", "d"], ["x b", "x b e", "d"])
    assert rates["confusions"] == [["a", "x", 2], ["", "e", 1], ["c", "", 1]]
    assert rates["character_confusions"][0] == ["a", "x", 2]
    edits = count_edits(["a b c", "a b", "d"], ["x b", "x b e", "d"])
    assert edits.substitutions.tolist() == [1, 1, 0]
    assert (edits.deletions.tolist(), edits.insertions.tolist()) == ([1, 0, 0], [0, 1, 0])
    assert (edits.lengths.tolist(), edits.of([1, 2])) == ([3, 2, 1], pytest.approx(2 / 3))


def test_what_is_normalised_is_a_choice_and_said():
    same = Normalisation(lowercase=True, punctuation="remove", accents="remove")
    assert same("  L’Été, c'est-à-dire: «ngɔ́» 'quoted' ") == "l’ete c'est a dire ngɔ quoted"
    # No letter is composed of ɔ and its tone: the mark stands before the apostrophe.
    assert Normalisation(punctuation="remove")("kɔ\u0300'a, e") == "kɔ\u0300'a e"
    assert str(same) == "Unicode NFC, whitespace collapsed, lower-cased, punctuation removed, accents removed"
    assert Normalisation()("A, b") == "A, b"
    with pytest.raises(UserError, match=r"normalisation\.punctuation=strip must be keep or remove"):
        Normalisation(punctuation="strip")
    assert error_rates(["a, b"], ["a b"], normalisation=Normalisation(punctuation="remove"))["wer"] == 0.0


def test_sequences_of_symbols():
    assert sequence_rate([["oʊ", "k"], ["a"]], [["oʊ", "t"], []]) == pytest.approx(2 / 3)
    assert sequence_rate([[]], [["a"]]) is None


def test_a_word_of_a_wrong_speaker_is_wrong():
    texts = (("1", "a b c", "a b c"), ("2", "a b", "a x"), ("3", "c", "c"), ("4", "d", "d"))
    said = [dict(zip(("id", "reference", "hypothesis"), row, strict=True)) for row in texts]
    who = [{"id": i, "label": "ann", "prediction": p} for i, p in (("1", "ann"), ("2", "bob"), ("3", "bob"))]
    # 1 is right; of 2 and 3 (bob's, they say) all three words count; 4 has no speaker and is left out.
    assert speaker_attributed(said, who) == 3 / 6
    assert speaker_attributed(said, [{**row, "prediction": "ann"} for row in who]) == 1 / 6
    assert speaker_attributed(said, []) is None
