"""Beam search against every path there is, with and without lexicon, language model and hotwords."""

from __future__ import annotations

import builtins
import math
from itertools import groupby, product

import pytest
import torch

from speechssl.data.text import BLANK, Vocabulary
from speechssl.decoding.alignment import MAX_FRAMES
from speechssl.decoding.beam import BeamDecoder, build_decoder
from speechssl.decoding.greedy import GreedyDecoder, greedy
from speechssl.decoding.ngram import estimate
from speechssl.errors import UserError

pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")

VOCABULARY = Vocabulary((BLANK, " ", "a", "b"))
TEXT = ["ab a", "ab ab a", "b ab", "a a b", "ab b"]
WIDE = {"beam_size": 2000, "beam_threshold": 1e4}


def logits(seed, frames=6, symbols=4):
    return 2.0 * torch.randn(frames, symbols, generator=torch.Generator().manual_seed(seed))


def every_text(scores, *, vocabulary=VOCABULARY, trim=True):
    """{text: summed probability} of all paths. Untrimmed, a clip begins as if a space had come before."""
    probabilities, found = scores.softmax(-1).tolist(), {}
    for path in product(range(scores.shape[1]), repeat=len(scores)):
        before = (vocabulary.symbols.index(" "),) if " " in vocabulary.symbols else ()
        text = "".join(vocabulary.symbols[i] for i, _ in groupby(before + path) if i)[len(before) :]
        text = " ".join(text.split()) if trim else text
        p = math.prod(row[i] for row, i in zip(probabilities, path, strict=True))
        found[text] = found.get(text, 0.0) + p
    return found


@pytest.fixture(scope="module")
def of_words(tmp_path_factory):
    """A bigram of words, and its ARPA file."""
    model = estimate([line.split() for line in TEXT], order=2)
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    model.write(path)
    return model, str(path)


@pytest.fixture(scope="module")
def of_characters(tmp_path_factory):
    """A trigram of characters, and its ARPA file."""
    model = estimate([list(line.replace(" ", "▁")) for line in TEXT], order=3)
    path = tmp_path_factory.mktemp("lm") / "characters.arpa"
    model.write(path)
    return model, str(path)


def log10_of(model, tokens, back_off):
    sentence = ["<s>", *tokens, "</s>"]
    return sum(back_off(model, sentence[:i], sentence[i]) for i in range(1, len(sentence)))


@pytest.mark.parametrize("seed", range(8))
def test_without_anything_it_is_the_likeliest_text(seed):
    scores = logits(seed)
    found = BeamDecoder(VOCABULARY, nbest=5, **WIDE)(scores)
    texts = every_text(scores, trim=False)
    best = max(texts, key=texts.get)
    assert found.text == " ".join(best.split())
    assert found.alternatives[0].score == pytest.approx(math.log(texts[best]), abs=1e-3)
    assert found.num_frames == 6


@pytest.mark.parametrize("seed", range(8))
def test_with_words_it_is_the_best_of_all_sequences_of_words(seed, of_words, back_off):
    model, path = of_words
    scores = logits(seed)
    decoder = BeamDecoder(VOCABULARY, lm=path, lm_weight=1.5, word_score=0.3, nbest=4, **WIDE)
    found = decoder(scores)
    totals = {}
    for text, p in every_text(scores).items():
        words = text.split()
        if set(words) <= {"a", "b", "ab"}:
            totals[text] = math.log(p) + 1.5 * log10_of(model, words, back_off) + 0.3 * len(words)
    ranking = sorted(totals, key=totals.get, reverse=True)[:4]
    assert [alternative.text for alternative in found.alternatives] == ranking
    for alternative in found.alternatives:
        assert alternative.score == pytest.approx(totals[alternative.text], abs=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_with_characters_it_is_the_best_of_all_texts(seed, of_characters, back_off):
    model, path = of_characters
    scores = logits(seed)
    found = BeamDecoder(VOCABULARY, lm=path, lm_weight=0.8, **WIDE)(scores)
    totals = {
        text: math.log(p) + 0.8 * log10_of(model, text.replace(" ", "▁"), back_off)
        for text, p in every_text(scores, trim=False).items()
    }
    best = max(totals, key=totals.get)
    assert found.text == " ".join(best.split())
    assert found.alternatives[0].score == pytest.approx(totals[best], abs=2e-3)


def test_a_prior_divides_the_probabilities_of_each_frame(of_characters):
    _, path = of_characters
    scores, prior = logits(2), [0.5, 0.1, 0.3, 0.1]
    plain = BeamDecoder(VOCABULARY, lm=path, lm_weight=0.8, **WIDE)
    expected = plain(scores.log_softmax(-1) - 0.4 * torch.tensor(prior).log()).alternatives
    constant = (scores.softmax(-1) * torch.tensor(prior) ** -0.4).sum(-1).log().sum()
    plain.set_weights(lm_weight=0.8, word_score=0.0, prior_weight=0.4, prior=prior)
    found = plain(scores).alternatives
    assert [a.text for a in found] == [a.text for a in expected]
    assert found[0].score == pytest.approx(expected[0].score + float(constant), abs=1e-3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"lm_weight": 1, "word_score": 0, "prior_weight": 0.4, "prior": [0.5, 0.5]}', "a model with other symbols"),
        ('{"lm_weight": 1, "word_score": 0, "prior": 3}', "no weights of this decoder can be read"),
        ("[]", "no weights of this decoder can be read"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, content, reason):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        BeamDecoder(VOCABULARY, weights=str(tmp_path / "weights.json"))


def test_a_lexicon_without_a_model(tmp_path):
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("aba\nbb b b\n")
    scores = logits(3, frames=7)
    found = BeamDecoder(VOCABULARY, lexicon=str(lexicon), **WIDE)(scores)
    texts = {t: p for t, p in every_text(scores).items() if set(t.split()) <= {"aba", "bb"}}
    assert found.text == max(texts, key=texts.get)


def test_a_lexicon_writes_what_is_spelled(tmp_path):
    """Phonemes in, spelling out."""
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("eight\ta b\nbee\tb\n")
    path = torch.tensor([2, 2, 0, 3, 0, 1, 3, 3])
    scores = 12.0 * torch.nn.functional.one_hot(path, 4).float()
    found = BeamDecoder(VOCABULARY, lexicon=str(lexicon))(scores)
    assert found.text == "eight bee"
    words = [(word.text, word.start_s, word.end_s) for word in found.words(1.0)]
    assert words == [("eight", 0.0, 4.0), ("bee", 6.0, 8.0)]
    assert all(word.confidence > 0.99 for word in found.words(1.0))


def test_times_are_those_of_greedy_where_the_text_is_the_same():
    path = torch.tensor([0, 2, 2, 0, 3, 3, 1, 0, 3, 0, 3, 0, 0])
    scores = 9.0 * torch.nn.functional.one_hot(path, 4).float()
    found, expected = BeamDecoder(VOCABULARY)(scores), greedy(scores, VOCABULARY)
    assert found.text == expected.text == "ab bb"
    assert [(c.symbol, c.start, c.end) for c in found.characters] == [
        (c.symbol, c.start, c.end) for c in expected.characters
    ]
    assert found.num_blank_frames == expected.num_blank_frames == 6
    for ours, theirs in zip(found.characters, expected.characters, strict=True):
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)


def test_a_long_clip_is_aligned_in_parts(of_words):
    generator = torch.Generator().manual_seed(0)
    text = " ".join(["ab", "a", "b"][i] for i in torch.randint(3, (700,), generator=generator))
    path = [i for c in text for i in (VOCABULARY.symbols.index(c),) * 2 + (0,)]
    scores = 9.0 * torch.nn.functional.one_hot(torch.tensor(path), 4).float()
    found = BeamDecoder(VOCABULARY, lm=of_words[1], lm_weight=0.1)(scores)
    assert found.text == text and len(path) > 2 * MAX_FRAMES
    assert [(c.symbol, c.start, c.end) for c in found.characters] == [
        (c.symbol, c.start, c.end) for c in greedy(scores, VOCABULARY).characters
    ]


@pytest.mark.parametrize("kind", ["words", "characters", "nothing"])
def test_hotwords_win_where_they_are_likely_enough(of_words, of_characters, kind):
    """ "aa" against "ab": a little less likely, and unknown to the model of words."""
    scores = torch.full((3, 4), -30.0)
    scores[0, 2] = scores[1, 0] = 0.0
    scores[2, 2], scores[2, 3] = -1.0, 0.0
    lm = {"words": of_words[1], "characters": of_characters[1], "nothing": None}[kind]
    options = {"lm": lm, "lm_weight": 0.5, "beam_size": 100}
    assert BeamDecoder(VOCABULARY, **options)(scores).text == "ab"
    assert BeamDecoder(VOCABULARY, hotwords=["aa"], hotword_score=12.0, **options)(scores).text == "aa"
    assert BeamDecoder(VOCABULARY, hotwords=["bb"], hotword_score=12.0, **options)(scores).text == "ab"


def test_a_hotword_that_is_broken_off_costs_nothing(of_characters):
    decoder = BeamDecoder(VOCABULARY, nbest=50, **WIDE)
    bonus = BeamDecoder(VOCABULARY, hotwords=["ab ab"], hotword_score=7.0, nbest=50, **WIDE)
    scores = logits(5)
    plain = {a.text: a.score for a in decoder(scores).alternatives}
    for alternative in bonus(scores).alternatives:
        if alternative.text in plain:
            gain = 7.0 if "ab ab" in alternative.text else 0.0
            assert alternative.score == pytest.approx(plain[alternative.text] + gain, abs=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_the_bonus_does_not_depend_on_the_weight(of_words, of_characters, weight):
    """Every reading gains the bonus of the hotword that it has, and no other; `tune` tries a weight of 0."""
    for (_, lm), phrase in ((of_words, "b ab"), (of_characters, "ab")):
        options = {"lm": lm, "lm_weight": weight, "nbest": 50, **WIDE}
        plain = {a.text: a.score for a in BeamDecoder(VOCABULARY, **options)(logits(5)).alternatives}
        found = BeamDecoder(VOCABULARY, hotwords=[phrase], hotword_score=7.0, **options)(logits(5)).alternatives
        assert any(a.text == phrase for a in found)
        for alternative in found:
            if alternative.text in plain:
                times = f" {alternative.text} ".count(f" {phrase} ")
                assert alternative.score == pytest.approx(plain[alternative.text] + 7.0 * times, abs=2e-3)


def test_hotwords_are_written_as_the_model_can(tmp_path, of_words):
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("eight\ta b\nbee\tb\n")
    for options in ({}, {"lm": of_words[1]}, {"lexicon": str(lexicon)}):
        assert BeamDecoder(VOCABULARY, hotwords=["Ab  BA"], **options).hotwords == ["ab ba"]
        with pytest.raises(
            UserError, match=r"^the hotword 'xyz' cannot be spelled with the checkpoint's symbols; drop it$"
        ):
            BeamDecoder(VOCABULARY, hotwords=["ab", "xyz"], **options)
    both = Vocabulary((BLANK, " ", "a", "b", "A"))
    assert BeamDecoder(both, hotwords=["Ab", "AB"]).hotwords == ["Ab", "ab"]
    # A word of the lexicon has its spelling there.
    decoder = BeamDecoder(VOCABULARY, lexicon=str(lexicon), hotwords=["eight", "ba"])
    assert decoder.spellings == [("eight", ["a", "b", "▁"]), ("bee", ["b", "▁"]), ("ba", ["b", "a", "▁"])]


def test_a_model_of_other_units_is_none_of_words(tmp_path, of_characters):
    path = str(tmp_path / "other.arpa")
    estimate([list("ab▁a"), list("xé▁b")], order=2).write(path)
    with pytest.raises(UserError, match=r"units, some of which the checkpoint lacks, 'x' \(U\+0078 .*'é' \(U\+00E9 "):
        BeamDecoder(VOCABULARY, lm=path)
    estimate([["▁a", "b"], ["▁ab"]], order=2).write(path)
    with pytest.raises(UserError, match="units, some of which the checkpoint lacks, '▁a', '▁ab': build it"):
        BeamDecoder(VOCABULARY, lm=path)
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("ab\n")
    with pytest.raises(UserError, match=r"characters\.arpa is a language model of units, and decoder\.lexicon="):
        BeamDecoder(VOCABULARY, lm=of_characters[1], lexicon=str(lexicon))


def test_a_vocabulary_without_space_and_clips_of_nothing(tmp_path):
    vocabulary = Vocabulary((BLANK, "a", "b"))
    scores = logits(0, symbols=3)
    texts = every_text(scores, vocabulary=vocabulary)
    decoder = BeamDecoder(vocabulary, **WIDE)
    assert decoder(scores).text == max(texts, key=texts.get)
    assert decoder(torch.zeros(0, 3)).text == ""
    silent = torch.tensor([[9.0, 0.0, 0.0]] * 4)
    assert (decoder(silent).text, decoder(silent).num_blank_frames) == ("", 4)
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("ab\nb\n")
    assert BeamDecoder(vocabulary, lexicon=str(lexicon), **WIDE)(silent).text == ""


def test_pieces_of_words(tmp_path):
    vocabulary = Vocabulary((BLANK, "▁", "a", "▁ab"), units="bpe")
    path = torch.tensor([3, 3, 0, 2, 1, 2, 3])
    scores = 12.0 * torch.nn.functional.one_hot(path, 4).float()
    found = BeamDecoder(vocabulary)(scores)
    assert found.text == greedy(scores, vocabulary).text == "aba a ab"
    assert [w.text for w in found.words(1.0)] == ["aba", "a", "ab"]
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("ab\n")
    with pytest.raises(UserError, match="BPE pieces"):
        BeamDecoder(vocabulary, lexicon=str(lexicon))


def test_what_cannot_be_used_is_one_sentence(tmp_path, of_words):
    def refused(match, **options):
        with pytest.raises(UserError, match=match):
            BeamDecoder(VOCABULARY, **options)

    lexicon = tmp_path / "words.txt"
    lexicon.write_text("ab\nxyz\n")
    refused(r"words\.txt: the word 'xyz' cannot be spelled", lexicon=str(lexicon))
    lexicon.write_text("\n")
    refused(r"words\.txt: this lexicon is empty", lexicon=str(lexicon))
    refused(r"gone.txt: this lexicon cannot be read", lexicon=str(tmp_path / "gone.txt"))
    estimate([["x", "y"]], order=1).write(tmp_path / "other.arpa")
    refused("none of its words can be spelled", lm=str(tmp_path / "other.arpa"))
    broken = tmp_path / "broken.arpa"
    text = (tmp_path.parent / of_words[1]).read_text()
    broken.write_text(text[: text.index("\\2-grams")] + "\\2-grams:\n-1.0\tab b\nnot a line\n\n\\end\\\n")
    refused(r"broken\.arpa: this language model cannot be read", lm=str(broken))
    broken.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\x00\x01")
    refused(r"binary language model does not tell its words", lm=str(broken))
    refused(r"the hotword 'xyz' cannot be spelled", hotwords=["xyz"])


def test_words_that_cannot_be_spelled_are_left_out_of_a_model(tmp_path, caplog):
    estimate([["ab", "xy"], ["b"]], order=2).write(tmp_path / "lm.arpa")
    decoder = BeamDecoder(VOCABULARY, lm=str(tmp_path / "lm.arpa"))
    assert [word for word, _ in decoder.spellings] == ["ab", "b"]
    assert "1 of 3 words" in caplog.text and "'xy'" in caplog.text


def test_without_flashlight_the_result_is_greedy_and_that_is_said(monkeypatch, caplog):
    imported = builtins.__import__

    def missing(name, *arguments):
        if name.startswith("flashlight"):
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    decoder = build_decoder(VOCABULARY, lm="some.arpa")
    assert isinstance(decoder, GreedyDecoder)
    assert "pip install flashlight-text" in caplog.text.replace("\n", " ") and "greedy" in caplog.text
