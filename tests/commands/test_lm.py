"""`speechssl lm` and `speechssl tune`, from a text to weights that decoding takes."""

from __future__ import annotations

import json

import pytest
import torch

from speechssl import manifest
from speechssl.commands.tune import search
from speechssl.data.text import BLANK, Vocabulary
from speechssl.decoding.beam import BeamDecoder
from speechssl.decoding.ngram import arpa_words, estimate
from speechssl.decoding.posterior import PosteriorDecoder


def test_words_of_a_text(speechssl, tmp_path):
    text = tmp_path / "a text.txt"
    text.write_text("The cat  sat\n\nthe Dog\n", encoding="utf-8")
    result = speechssl("lm", f"text={text}", f"out={tmp_path / 'words.arpa'}", "order=2", "lowercase=true")
    assert result.code == 0
    found = json.loads(result.out)
    assert (found["sentences"], found["tokens"]) == (2, 5)
    # <s>, </s>, <unk> and the, cat, sat, dog; pairs: <s> the, the cat, cat sat, sat </s>, the dog, dog </s>.
    assert found["ngrams"] == [7, 6]
    assert sorted(arpa_words(tmp_path / "words.arpa")) == ["cat", "dog", "sat", "the"]


def test_units_of_a_checkpoint_and_manifests(speechssl, ctc_run, tmp_path):
    rows = [{"audio_filepath": "a.wav", "duration": 1, "text": text} for text in ("ab c", "xyz")]
    manifest.write(tmp_path / "train.jsonl", [row | {"id": str(i)} for i, row in enumerate(rows)])
    arguments = ("lm", f"text={tmp_path / 'train.jsonl'}", f"out={tmp_path / 'units.arpa'}", f"checkpoint={ctc_run}")
    result = speechssl(*arguments)
    assert result.code == 0 and "1 of 2 sentences" in result.err
    assert sorted(arpa_words(tmp_path / "units.arpa")) == ["a", "b", "c", "▁"]
    manifest.write(tmp_path / "train.jsonl", [rows[1]])
    assert "no characters in common" in speechssl(*arguments).sentence


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), (b"\xff\xfe", "no text in UTF-8"), (b"\n\n", "no sentence")]
)
def test_texts_that_cannot_be_used(speechssl, tmp_path, content, reason):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    result = speechssl("lm", f"text={tmp_path / 'text.txt'}", f"out={tmp_path / 'lm.arpa'}")
    assert result.code == 2 and reason in result.sentence
    assert not (tmp_path / "lm.arpa").exists()


def test_a_single_word_is_no_history(speechssl, tmp_path):
    (tmp_path / "text.txt").write_text("a")
    result = speechssl("lm", f"text={tmp_path / 'text.txt'}", f"out={tmp_path / 'lm.arpa'}", "order=1")
    assert result.code == 2 and "order=1 must be 2 or more" in result.sentence


def test_a_checkpoint_without_units(speechssl, speaker_run, tmp_path):
    (tmp_path / "text.txt").write_text("a")
    result = speechssl(
        "lm", f"text={tmp_path / 'text.txt'}", f"out={tmp_path / 'lm.arpa'}", f"checkpoint={speaker_run}"
    )
    assert result.code == 2 and "no CTC head" in result.sentence


@pytest.fixture
def joint_run(write_run):
    """A run folder of task=ctc_speaker with random weights."""
    ctc = {"lowercase": True, "dropout": 0.0, "mask_start_probability": 0.0, "mask_span": 10}
    return write_run(
        "ctc_speaker", vocabulary=[BLANK, " ", "a", "b"], labels=["ann", "bob"], label="speaker", speaker_weight=0.5,
        freeze_feature_encoder=True, freeze_encoder=0.0, ctc=ctc, speaker={"dropout": 0.0},
    )  # fmt: skip


def test_the_recogniser_of_two_heads(speechssl, joint_run, write_corpus, tmp_path):
    (tmp_path / "text.txt").write_text("AB a\n")
    lm = tmp_path / "units.arpa"
    result = speechssl("lm", f"text={tmp_path / 'text.txt'}", f"out={lm}", f"checkpoint={joint_run}", "order=2")
    assert result.code == 0, result.err
    assert sorted(arpa_words(lm)) == ["a", "b", "▁"]  # lower-cased, as its checkpoint wants it
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    valid = write_corpus("valid", seconds=(0.5, 0.6))
    given = (f"checkpoint={joint_run}", f"decoder.lm={lm}", f"data.valid={valid}", f"out={tmp_path / 'w.json'}")
    result = speechssl("tune", *given, "decoder.hotwords=[ab]")
    assert result.code == 0 and "lm_weight 0," in result.err, result.err


@pytest.mark.parametrize("kind", ["beam", "posterior"])
def test_the_search_finds_a_weight_that_mends_an_error(tmp_path, kind):
    """The model hears "aa" a little better than the "ab" that is said; the language model knows "ab" best."""
    if kind == "beam":
        pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    sentences = [["ab"]] * 9 + [["aa"]] if kind == "beam" else [["a", "b"]] * 9 + [["a", "a"]]
    estimate(sentences, order=2).write(tmp_path / "lm.arpa")
    make = BeamDecoder if kind == "beam" else PosteriorDecoder
    decoder = make(Vocabulary((BLANK, " ", "a", "b")), lm=str(tmp_path / "lm.arpa"), lm_weight=0.0)
    scores = torch.full((3, 4), -20.0)
    scores[0, 2] = scores[1, 0] = 0.0
    scores[2, 2], scores[2, 3] = 0.0, -1.0
    assert decoder(scores).text == "aa"
    found = search(decoder, [scores], ["ab"], by="wer")
    assert found["wer"] == 0.0 and found["lm_weight"] > 0
    del found["wer"]
    decoder.set_weights(**found)
    assert decoder(scores).text == "ab"


def test_the_search_finds_the_weight_of_a_prior(tmp_path):
    """A network that has seen many an a hears one in a b, as often as it hears a b; the n-gram likes both alike."""
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    estimate([["a"], ["b"]], order=2).write(tmp_path / "lm.arpa")
    decoder = BeamDecoder(Vocabulary((BLANK, " ", "a", "b")), lm=str(tmp_path / "lm.arpa"))
    sure, unsure = torch.tensor([[0.0, 0.0, 8.0, 0.0]]), torch.tensor([[0.0, 0.0, 2.2, 2.0]])
    clips, said = [sure, sure, sure, unsure], ["a", "a", "a", "b"]
    found = search(decoder, clips, said, by="cer")
    assert found["cer"] == 0.0 and found["prior_weight"] > 0
    assert found["prior"] == pytest.approx(torch.cat(clips).softmax(-1).mean(0).tolist())


@pytest.mark.parametrize("kind", ["beam", "posterior"])
def test_tune_writes_what_evaluate_takes(speechssl, ctc_run, write_corpus, tmp_path, kind):
    if kind == "beam":
        pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    valid = write_corpus("valid", seconds=(0.5, 0.6))
    lm = tmp_path / "lm.arpa"
    of_units = [f"checkpoint={ctc_run}"] if kind == "posterior" else []
    assert speechssl("lm", f"text={valid}", f"out={lm}", "order=2", *of_units).code == 0
    given = (f"checkpoint={ctc_run}", f"decoder={kind}", f"decoder.lm={lm}")
    result = speechssl("tune", *given, f"data.valid={valid}", f"out={tmp_path / 'weights.json'}")
    assert result.code == 0
    assert json.loads(result.out) == json.loads((tmp_path / "weights.json").read_text())
    evaluated = speechssl(
        "evaluate", *given, f"decoder.weights={tmp_path / 'weights.json'}", f"data.test={valid}",
        f"out={tmp_path / 'test'}",
    )  # fmt: skip
    assert evaluated.code == 0
    assert json.loads(evaluated.out)["wer"] == pytest.approx(json.loads(result.out)["wer"])
    nothing = speechssl("tune", *given[:2], f"data.valid={valid}", f"out={tmp_path / 'w.json'}")
    assert nothing.code == 2 and "give decoder.lm" in nothing.sentence
