"""Kneser-Ney by hand, as a distribution, and as KenLM reads it."""

from __future__ import annotations

import itertools
import random

import pytest

from speechssl.decoding.ngram import arpa_words, estimate, read_arpa
from speechssl.errors import UserError


def tables(model):
    """{words: (log10 probability, log10 back-off)} of all orders."""
    found = {}
    for grams, probabilities, back_offs in model.orders:
        for gram, p, b in zip(grams, probabilities, back_offs, strict=True):
            found[tuple(model.vocabulary[i] for i in gram)] = (p, b)
    return found


def test_bigrams_by_hand():
    """Text "a b", "a c", "a b": too few for count statistics, so discounts are 0.5, 1 and 1.5."""
    table = tables(estimate([["a", "b"], ["a", "c"], ["a", "b"]], order=2))
    # Continuation counts: a 1 (after <s>), b 1, c 1, </s> 2 (after b and c); sum 5, kept 0.5 * 3 + 1 = 2.5.
    # The words that may come are a, b, c, </s> and <unk>.
    uniform = 2.5 / 5 / 5
    assert 10 ** table[("a",)][0] == pytest.approx(0.5 / 5 + uniform)
    assert 10 ** table[("</s>",)][0] == pytest.approx(1 / 5 + uniform)
    assert 10 ** table[("<unk>",)][0] == pytest.approx(uniform)
    # After a: b twice, c once. Kept: (1 + 0.5) / 3.
    assert 10 ** table[("a",)][1] == pytest.approx(0.5)
    assert 10 ** table[("a", "b")][0] == pytest.approx(1 / 3 + 0.5 * (0.5 / 5 + uniform))
    assert 10 ** table[("a", "c")][0] == pytest.approx(0.5 / 3 + 0.5 * (0.5 / 5 + uniform))
    # <s> is followed by a three times: 1.5 of 3 are kept.
    assert 10 ** table[("<s>", "a")][0] == pytest.approx(1.5 / 3 + 0.5 * (0.5 / 5 + uniform))


@pytest.fixture(scope="module")
def text():
    rng = random.Random(0)
    words = list("abcdefgh")
    return [[rng.choices(words, weights=range(1, 9))[0] for _ in range(rng.randrange(1, 9))] for _ in range(300)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_each_history_has_a_distribution(text, order, back_off):
    model = estimate(text, order=order)
    outcomes = [*"abcdefgh", "</s>", "<unk>"]
    histories = [(), ("a",), ("<s>",), ("a", "b"), ("<s>", "h"), ("h", "g", "f"), ("<s>", "a", "a"), ("c", "c", "c")]
    for history in histories:
        total = sum(10 ** back_off(model, history, word) for word in outcomes)
        assert total == pytest.approx(1.0, abs=1e-9), history


def test_counts_are_those_of_a_dictionary(text):
    model = estimate(text, order=3)
    expected = {gram for sentence in text for gram in itertools.pairwise(["<s>", *sentence, "</s>"])}
    assert {gram for gram in tables(model) if len(gram) == 2} == expected
    padded = [["<s>", *sentence, "</s>"] for sentence in text]
    expected = {tuple(s[i : i + 3]) for s in padded for i in range(len(s) - 2)}
    assert {gram for gram in tables(model) if len(gram) == 3} == expected


def test_kenlm_reads_what_is_written_and_scores_alike(text, tmp_path, back_off):
    decoder = pytest.importorskip("torchaudio.models.decoder._ctc_decoder", reason="flashlight-text is not installed")
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")
    model = estimate(text, order=3)
    model.write(tmp_path / "lm.arpa")
    words = decoder._create_word_dict({word: [[word]] for word in [*"abcdefgh", "<unk>"]})
    lm = kenlm.KenLM(str(tmp_path / "lm.arpa"), words)
    state, history = lm.start(False), ["<s>"]
    for word in [*"abhhca", "<unk>", "b"]:
        state, found = lm.score(state, words.get_index(word))
        assert found == pytest.approx(back_off(model, history, word), abs=1e-4)
        history.append(word)
    assert lm.finish(state)[1] == pytest.approx(back_off(model, history, "</s>"), abs=1e-4)
    assert sorted(arpa_words(tmp_path / "lm.arpa")) == list("abcdefgh")


def test_what_is_written_is_read(text, tmp_path):
    model = estimate(text, order=3)
    model.write(tmp_path / "lm.arpa")
    logs, back_offs = read_arpa(tmp_path / "lm.arpa")
    expected = tables(model)
    assert logs == pytest.approx({gram: p for gram, (p, _) in expected.items()}, abs=1e-6)
    assert back_offs == pytest.approx({gram: b for gram, (_, b) in expected.items() if len(gram) < 3}, abs=1e-6)


def test_longer_histories_explain_a_text_better(back_off):
    rng = random.Random(1)
    text = [(list("abcdef") * 2)[rng.randrange(6) :][:6] for _ in range(200)]
    losses = []
    for order in (1, 2):
        model = estimate(text, order=order)
        sentence = ["<s>", *"bcdefa", "</s>"]
        losses.append(-sum(back_off(model, sentence[:i], sentence[i]) for i in range(1, 8)))
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello world\n", "does not begin with"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"\\data\\\nngram 1=1\n\n\\1-grams:\nabc\n\\end\\\n", "a line of its 1-grams is 'abc'"),
        (b"\\data\\\nngram 1=1\n", "has no 1-grams"),
        (b"\\data\\\n\n\\some-grams:\n-1 a\n\\2-grams:\n-1 a b\n", "has no 1-grams"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_language_model_is_said(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "lm.arpa").write_bytes(content)
    for read in (arpa_words, read_arpa):
        with pytest.raises(UserError, match=reason):
            read(tmp_path / "lm.arpa")


def test_a_broken_line_of_longer_ngrams_is_said(tmp_path):
    estimate([["a", "b"]], order=2).write(tmp_path / "lm.arpa")
    content = (tmp_path / "lm.arpa").read_text()
    (tmp_path / "lm.arpa").write_text(content.replace("\ta b", "\ta"))
    assert sorted(arpa_words(tmp_path / "lm.arpa")) == ["a", "b"]
    with pytest.raises(UserError, match="a line of its 2-grams is"):
        read_arpa(tmp_path / "lm.arpa")


def test_texts_that_give_no_model():
    with pytest.raises(UserError, match="is empty"):
        estimate([[]], order=2)
    with pytest.raises(UserError, match="holds one of <s>"):
        estimate([["a", "<s>"]], order=2)
