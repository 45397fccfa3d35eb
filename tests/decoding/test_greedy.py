"""Greedy CTC against cases by hand and a collapse written with itertools."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.text import BLANK, Vocabulary
from speechssl.decoding.greedy import greedy

VOCABULARY = Vocabulary((BLANK, " ", "a", "b"))


def path_logits(path: list[int], probability: float = 0.7) -> torch.Tensor:
    """Log-probabilities [T, 4] whose best symbols are `path`, each with the given probability."""
    probabilities = torch.full((len(path), 4), (1 - probability) / 3)
    probabilities[range(len(path)), path] = probability
    return probabilities.log()


def test_repeats_collapse_and_a_blank_keeps_a_double_letter():
    assert greedy(path_logits([2, 2, 3, 3, 3]), VOCABULARY).text == "ab"
    assert greedy(path_logits([2, 0, 2, 3, 0, 3]), VOCABULARY).text == "aabb"


def test_frame_spans_and_confidence_by_hand():
    rows = [[0.9, 0.0, 0.1, 0.0], [0.2, 0.0, 0.8, 0.0], [0.1, 0.3, 0.6, 0.0], [0.0, 0.0, 0.499, 0.501]]
    probabilities = torch.tensor(rows)
    transcript = greedy(probabilities.log(), VOCABULARY)
    a, b = transcript.characters
    assert (a.symbol, a.start, a.end) == ("a", 1, 3)
    assert (b.symbol, b.start, b.end) == ("b", 3, 4)
    assert a.confidence == pytest.approx(0.7)
    assert b.confidence == pytest.approx(0.501)
    assert transcript.num_blank_frames == 1


def test_logits_and_log_probabilities_decode_alike():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
    from_logits, from_log_probs = (greedy(x, VOCABULARY) for x in (logits, logits.log_softmax(-1)))
    assert from_logits.text == from_log_probs.text
    for one, other in zip(from_logits.characters, from_log_probs.characters, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)


def test_words_have_seconds():
    #        0  1  2  3  4  5  6  7  8
    path = [1, 0, 2, 2, 0, 3, 1, 1, 2]
    transcript = greedy(path_logits(path), VOCABULARY)
    ab, a = transcript.words(frame_s=0.02)
    assert transcript.text == "ab a"
    assert (ab.text, a.text) == ("ab", "a")
    assert (ab.start_s, ab.end_s) == pytest.approx((0.04, 0.12))
    assert (a.start_s, a.end_s) == pytest.approx((0.16, 0.18))
    assert ab.confidence == pytest.approx(0.7)


def test_spaces_at_the_ends_and_doubled_are_not_in_the_text():
    transcript = greedy(path_logits([1, 2, 1, 0, 1, 3, 1]), VOCABULARY)
    assert transcript.text == "a b"
    assert [word.text for word in transcript.words(frame_s=1.0)] == ["a", "b"]


def test_nothing_heard():
    transcript = greedy(path_logits([0, 0, 0]), VOCABULARY)
    assert (transcript.text, transcript.characters, transcript.words(0.02)) == ("", (), [])
    assert transcript.num_blank_frames == 3


def test_no_frames():
    transcript = greedy(torch.zeros(0, 4), VOCABULARY)
    assert transcript.text == "" and transcript.num_frames == 0


@given(st.lists(st.text("ab", min_size=1), max_size=4), st.data())
def test_every_path_of_a_text_gives_the_text(words, data):
    """A path of a text: each symbol some frames long, blanks where one likes and between equal neighbours."""
    text = " ".join(words)
    path = data.draw(st.lists(st.just(0), max_size=2))
    for previous, symbol in zip(["", *text], text, strict=False):
        blanks = data.draw(st.integers(1 if symbol == previous else 0, 2))
        path += [0] * blanks + [VOCABULARY.symbols.index(symbol)] * data.draw(st.integers(1, 3))
    transcript = greedy(path_logits(path), VOCABULARY)
    assert transcript.text == text
    assert [word.text for word in transcript.words(frame_s=0.02)] == words
    assert transcript.num_blank_frames == path.count(0)


@pytest.mark.parametrize("seed", range(20))
def test_against_an_independent_collapse(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 4, generator=generator) + 2 * torch.randn(1, 4, generator=generator)
    path = logits.argmax(-1).tolist()
    runs = [(i, len(list(group))) for i, group in groupby(path)]
    transcript = greedy(logits, VOCABULARY)
    assert [c.symbol for c in transcript.characters] == [VOCABULARY.symbols[i] for i, _ in runs if i]
    assert [c.end - c.start for c in transcript.characters] == [length for i, length in runs if i]
    for c in transcript.characters:
        assert path[c.start] == path[c.end - 1] == VOCABULARY.symbols.index(c.symbol)
    assert transcript.num_blank_frames == path.count(0)
    probabilities = logits.softmax(-1)
    for c in transcript.characters:
        expected = probabilities[c.start : c.end, VOCABULARY.symbols.index(c.symbol)].mean().item()
        assert c.confidence == pytest.approx(expected, abs=1e-6)
    assert " ".join(word.text for word in transcript.words(0.02)) == transcript.text


def test_pieces_of_words_give_words():
    vocabulary = Vocabulary((BLANK, "▁", "a", "▁ab"), units="bpe")
    path = [3, 3, 0, 2, 1, 2, 3]
    transcript = greedy(torch.nn.functional.one_hot(torch.tensor(path), 4) * 20.0, vocabulary)
    assert transcript.text == "aba a ab"
    assert transcript.num_blank_frames == 1
    words = [(word.text, word.start_s, word.end_s) for word in transcript.words(1.0)]
    assert words == [("aba", 0.0, 4.0), ("a", 5.0, 6.0), ("ab", 6.0, 7.0)]
