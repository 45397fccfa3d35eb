"""`speechssl selftrain`: what is kept, what is trained on, and that it goes on where it was."""

from __future__ import annotations

import json

import pytest

from speechssl import manifest
from speechssl.commands.selftrain import confidence, mix, write_rows
from speechssl.decoding.ngram import estimate
from speechssl.decoding.transcript import Character, Transcript
from speechssl.manifest import Manifest, ManifestSet


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


def test_clips_of_two_manifests_may_be_called_alike(write_corpus, tmp_path):
    labelled = ManifestSet([Manifest(write_corpus(name, seconds=(1.0, 1.0))) for name in ("one", "two")])
    pseudo = [{"audio_filepath": "x.wav", "duration": 8.0, "id": "p", "text": "a"}]
    rows = mix(labelled, pseudo, labelled_share=0.5, folder=tmp_path)
    assert len(rows) == 2 * 4 + 1
    assert [row["id"] for row in rows[:4]] == ["0", "0#1", "1", "1#1"]
    assert [row["id"] for row in rows[4:8]] == ["0#2", "0#3", "1#2", "1#3"]
    assert [row["audio_filepath"] for row in rows[::2]] == ["one/0.wav", "one/1.wav", "two/0.wav", "two/1.wav", "x.wav"]


def test_shards_stay_where_they_are_and_apart_from_files(write_corpus, tmp_path):
    url, inside = "memory://bucket/a.tar", tmp_path / "shards" / "b.tar"
    row = {"duration": 1.0, "text": "a", "bytes": [512, 10]}
    shards = [{**row, "audio_filepath": url, "id": "a"}, {**row, "audio_filepath": str(inside), "id": "b"}]
    manifest.write(tmp_path / "shards.jsonl", shards)
    rows = mix(Manifest(tmp_path / "shards.jsonl"), [], labelled_share=0.0, folder=tmp_path / "st")
    path = write_rows(tmp_path / "st", rows, name="train")
    written = list(Manifest(path))
    assert [clip.audio_path for clip in written] == [url, tmp_path / "st/../shards/b.tar"]
    assert all(clip.byte_range == (512, 10) for clip in written)
    files = mix(Manifest(write_corpus("train")), rows, labelled_share=0.0, folder=tmp_path / "st")
    both = ManifestSet([Manifest(part) for part in write_rows(tmp_path / "st", files, name="train")])
    assert both.sizes == [4, 2]


def test_several_manifests_and_both_heads(selftrain, write_corpus, tmp_path):
    """The transcripts lie in two manifests with the same names; the teacher's recogniser is one of its two heads."""
    other = write_corpus("other", seconds=(0.6, 0.7))
    result = selftrain(f"data.train=[{tmp_path / 'train.jsonl'},{other}]", "rounds=1", "task=ctc_speaker")
    assert result.code == 0, result.err
    assert len({utterance.id for utterance in Manifest(tmp_path / "st" / "round_1" / "train.jsonl")}) > 6


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
    path = tmp_path / "st" / "round_1" / "pseudo.json"
    other = f"data.unlabelled={tmp_path / 'valid.jsonl'}"
    for override, said in {
        "keep_share=0.3": "keep_share=0.5, not 0.3",
        "min_confidence=0.1": "min_confidence=0.0, not 0.1",
        "decoder=beam": "decoder=greedy, not beam",
        other: f"data.unlabelled={tmp_path / 'audio.jsonl'}, not {tmp_path / 'valid.jsonl'}",
    }.items():
        refused = selftrain("keep_share=0.5", override)
        assert refused.sentence == f"{path} was made with {said}: give that again, or another run_dir"


def test_a_teacher_that_is_sure_of_nothing_is_one_sentence(selftrain):
    result = selftrain("min_confidence=1.0")
    assert result.code == 2 and "sure of none of the 5 unlabelled clips" in result.sentence


def test_hypotheses_in_phonemes_are_refused(selftrain, tmp_path):
    """As transcripts they would be spelled again. Where that is known before a round is trained, it is said then."""
    pytest.importorskip("espeakng_loader", reason="the extra `synthetic` is not installed")
    result = selftrain("task.units=phonemes")
    assert result.code == 2 and "a model of phonemes writes none by itself" in result.sentence
    assert not (tmp_path / "st").exists()
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    estimate([["æ", "b"], ["b", "ɑː"]], order=2).write(tmp_path / "units.arpa")  # espeak-ng's of "ab" and "ba"
    late = selftrain("task.units=phonemes", "decoder=beam", f"decoder.lm={tmp_path / 'units.arpa'}")
    assert late.sentence == result.sentence and not (tmp_path / "st" / "round_1").exists()
