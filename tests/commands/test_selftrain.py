"""`speechssl selftrain`: what is kept, what is trained on, and that it goes on where it was."""

from __future__ import annotations

import json

import pytest

from speechssl.commands.selftrain import confidence, mix
from speechssl.decoding.transcript import Character, Transcript
from speechssl.manifest import Manifest


@pytest.fixture
def selftrain(speechssl, small_overrides, write_corpus, tmp_path):
    """`selftrain(*overrides)`: two rounds of a few steps on tones."""
    train, valid = write_corpus("train"), write_corpus("valid", seconds=(0.5, 0.6))
    unlabelled = write_corpus("audio", seconds=(0.7, 0.8, 0.5, 0.9, 0.6))

    def run(*overrides):
        return speechssl(
            "selftrain", "init=none", f"data.train={train}", f"data.unlabelled={unlabelled}", f"data.valid={valid}",
            f"run_dir={tmp_path / 'st'}", "rounds=2", *small_overrides, *overrides,
        )  # fmt: skip

    return run


def test_how_sure_a_transcript_is():
    characters = (Character("a", 0, 2, 0.5), Character(" ", 2, 2, 1.0), Character("b", 3, 4, 0.125))
    assert confidence(Transcript(characters, 5, 2)) == pytest.approx(0.25)
    assert confidence(Transcript((), 5, 5)) == 0.0


def test_real_transcripts_are_repeated_to_their_share(write_corpus, tmp_path):
    labelled = Manifest(write_corpus("train", seconds=(1.0, 1.0)))
    pseudo = [{"audio_filepath": "x.wav", "duration": 2.0, "id": f"p{i}", "text": "a"} for i in range(4)]
    rows = mix(labelled, pseudo, labelled_share=0.5, folder=tmp_path / "deep" / "er")
    assert len(rows) == 2 * 4 + 4 and len({row["id"] for row in rows}) == 12
    assert rows[0]["audio_filepath"] == "../../train/0.wav"
    assert len(mix(labelled, pseudo, labelled_share=0.0, folder=tmp_path)) == 2 + 4


def test_rounds_keep_the_surest_and_are_done_once(selftrain, tmp_path):
    result = selftrain("keep_share=0.5")
    assert result.code == 0, result.err
    rounds = [json.loads(line) for line in result.out.splitlines()]
    assert [row["round"] for row in rounds] == [0, 1, 2]
    assert all({"valid_cer", "valid_wer"} <= row.keys() for row in rounds)
    assert rounds[1]["of"] == 5 and 1 <= rounds[1]["kept"] <= 3 and "cer_of_kept" in rounds[1]
    train = Manifest(tmp_path / "st" / "round_1" / "train.jsonl")
    train.check_files()
    pseudo = [utterance for utterance in train if "confidence" in utterance.fields]
    values = [utterance.fields["confidence"] for utterance in pseudo]
    assert len(pseudo) == rounds[1]["kept"] and values == sorted(values, reverse=True)
    again = selftrain("keep_share=0.5")
    assert again.code == 0 and again.out == result.out
    assert "transcribing" not in again.err


def test_a_teacher_that_is_sure_of_nothing_is_one_sentence(selftrain):
    result = selftrain("min_confidence=1.0")
    assert result.code == 2 and "sure of none of the 5 unlabelled clips" in result.sentence
