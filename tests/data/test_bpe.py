"""Pieces of words: ours against sentencepiece's own encoding."""

from __future__ import annotations

import io
import random
import sys

import pytest

from speechssl.data import bpe
from speechssl.data.text import BLANK, Vocabulary
from speechssl.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece", reason="the extra `bpe` is not installed")


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    stems = ["walk", "talk", "jump", "sing", "été", "ngɔ́"]
    ends = ["", "s", "ed", "ing", "er", "ers"]
    return [" ".join(rng.choice(stems) + rng.choice(ends) for _ in range(8)) for _ in range(200)]


def test_encoding_is_sentencepieces(texts):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=60, character_coverage=1.0,
        normalization_rule_name="identity", bos_id=-1, eos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = Vocabulary.from_texts(texts, units="bpe", bpe_size=59)
    assert set(vocabulary.symbols[1:]) == {theirs.id_to_piece(i) for i in range(1, 60)}
    for text in [*texts, "singwalkers s étésing", "w", "ers ers"]:
        ours = vocabulary.split(text)
        assert ours == theirs.encode(text, out_type=str)
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_pieces_are_words_again():
    vocabulary = Vocabulary((BLANK, "▁", "a", "b", "▁a", "▁ab"), units="bpe")
    assert vocabulary.split("ab ba a") == ["▁ab", "▁", "b", "a", "▁a"]
    assert vocabulary.decode([5, 0, 1, 3, 2, 4]) == "ab ba a"
    assert vocabulary.outside("cab") == ["c"]
    assert vocabulary.split("") == []


def test_too_few_pieces_are_one_sentence(texts):
    with pytest.raises(UserError, match=r"bpe_size=5 is less than the \d+ characters"):
        bpe.train(texts, size=5)


def test_without_sentencepiece_the_mend_is_said(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        bpe.train(texts, size=50)
