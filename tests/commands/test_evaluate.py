"""`speechssl evaluate` with models whose answers are known, so that every figure follows by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from speechssl import cli, enrolment, manifest
from speechssl.decoding.ngram import estimate
from speechssl.identifier import Identifier


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path):
    """Run the command with a model on a manifest -> (exit code, stdout, stderr)."""

    def run(model, *overrides: str):
        monkeypatch.setattr("speechssl.commands.evaluate.load_model", lambda path, device: model)
        given = (f"data.test={tmp_path / 'data' / 'test.jsonl'}", f"out={tmp_path / 'out'}")
        code = cli.main(["evaluate", "checkpoint=run", *given, *overrides])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def corpus(tmp_path, audio_tools):
    """Write clips and their manifest from (spelled, {keys}) each."""

    def write(*clips):
        rows = []
        for i, (spelled, keys) in enumerate(clips):
            waveform = audio_tools.spell(spelled)
            audio_tools.save(tmp_path / "data" / f"{i}.wav", waveform)
            rows.append({"audio_filepath": f"{i}.wav", "duration": len(waveform) / 16_000, **keys})
        manifest.write(tmp_path / "data" / "test.jsonl", rows)

    return write


def results(tmp_path, name):
    lines = (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()
    return json.loads((tmp_path / "out" / "metrics.json").read_text()), [json.loads(line) for line in lines]


def test_recognition_by_hand(evaluate, corpus, spelling_model, tmp_path):
    corpus(
        ("ab c", {"text": "ab c", "speaker": "zoe", "id": "first"}),
        ("a", {"text": "b", "speaker": "ann", "id": "second"}),
        ("abc abc", {"text": "abc abd abc", "speaker": "zoe", "id": "third"}),
    )
    code, out, _ = evaluate(spelling_model)
    metrics, rows = results(tmp_path, "hypotheses.jsonl")
    assert code == 0
    keys = "id", "audio_filepath", "reference", "hypothesis"
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("first", str(tmp_path / "data/0.wav"), "ab c", "ab c"),
        ("second", str(tmp_path / "data/1.wav"), "b", "a"),
        ("third", str(tmp_path / "data/2.wav"), "abc abd abc", "abc abc"),
    ]
    assert all(row.keys() == {*keys, "duration"} for row in rows)
    # One substitution and one deletion in six words; b/a and the four characters "abd " of 16.
    assert metrics["wer"] == pytest.approx(2 / 6)
    assert metrics["cer"] == pytest.approx(5 / 16)
    assert metrics["wer_by_speaker"] == {"ann": 1.0, "zoe": pytest.approx(1 / 5)}
    assert (metrics["num_utterances"], metrics["num_skipped"]) == (3, 0)
    # Twelve characters of four frames of 320 samples, and 80 samples a clip for the last frame's field.
    assert metrics["audio_seconds"] == pytest.approx((12 * 4 * 320 + 3 * 80) / 16_000)
    assert metrics["blank_share"] == pytest.approx(1 / 4)
    assert metrics["rtf"] > 0
    assert "NFC" in metrics["normalisation"]
    printed = json.loads(out)
    assert printed == {k: metrics[k] for k in ("wer", "cer", "num_utterances", "audio_seconds", "rtf")}


def test_rows_say_which_part_of_the_audio_they_are_about(evaluate, corpus, spelling_model, audio_tools, tmp_path):
    corpus(("ab", {"text": "ab", "id": "whole"}))
    audio_tools.save(tmp_path / "data" / "long.wav", torch.cat([audio_tools.spell("ab"), audio_tools.spell("c")]))
    sound = (tmp_path / "data" / "0.wav").read_bytes()
    (tmp_path / "data" / "all.tar").write_bytes(b"x" * 512 + sound)
    test = tmp_path / "data" / "test.jsonl"
    start = len(audio_tools.spell("ab")) / 16_000
    part = {"audio_filepath": "long.wav", "offset": start, "duration": 0.08, "text": "c", "channel": 0}
    manifest.write(test, [part])
    assert evaluate(spelling_model)[0] == 0
    metrics, [row] = results(tmp_path, "hypotheses.jsonl")
    assert metrics["wer"] == 0.0
    assert {key: row.get(key) for key in ("offset", "duration", "channel", "bytes")} == {
        "offset": start,
        "duration": 0.08,
        "channel": 0,
        "bytes": None,
    }
    manifest.write(test, [{"audio_filepath": "all.tar", "bytes": [512, len(sound)], "duration": start, "text": "ab"}])
    assert evaluate(spelling_model)[0] == 0
    _, [row] = results(tmp_path, "hypotheses.jsonl")
    assert row["bytes"] == [512, len(sound)] and row["hypothesis"] == "ab"
    # A row is a clip as a manifest has it, wherever it lies.
    again = manifest.Manifest(tmp_path / "out" / "hypotheses.jsonl")[0]
    assert (again.audio_path, again.byte_range) == (tmp_path / "data" / "all.tar", (512, len(sound)))


def test_results_do_not_depend_on_batches(evaluate, corpus, spelling_model, tmp_path):
    corpus(*((text, {"text": "abc a"}) for text in ("abc", "a", "abc a", "cc bb aa", "b")))
    evaluate(spelling_model, "data.batch_seconds=0.1")
    metrics, rows = results(tmp_path, "hypotheses.jsonl")
    evaluate(spelling_model, "data.batch_seconds=100")
    again, rows_again = results(tmp_path, "hypotheses.jsonl")
    assert rows == rows_again
    assert [row["hypothesis"] for row in rows] == ["abc", "a", "abc a", "cc bb aa", "b"]
    for key in metrics.keys() - {"rtf"}:
        assert metrics[key] == again[key]


def test_clips_in_windows_give_the_same_text(evaluate, corpus, spelling_model, tmp_path):
    corpus(*((text, {"text": text}) for text in ("abc abc abc abc abc", "a", "bb")))
    lengths, encode = [], spelling_model.encode
    spelling_model.encode = lambda waveforms, n: lengths.append(max(n.tolist())) or encode(waveforms, n)
    code, _, _ = evaluate(spelling_model, "window_s=0.5", "context_s=0.1")
    assert code == 0 and results(tmp_path, "hypotheses.jsonl")[0]["cer"] == 0.0
    assert len(lengths) > 3 and max(lengths) <= 8_000


def test_without_speakers_there_is_no_breakdown(evaluate, corpus, spelling_model, tmp_path):
    corpus(("a", {"text": "a"}))
    evaluate(spelling_model)
    assert "wer_by_speaker" not in results(tmp_path, "hypotheses.jsonl")[0]


def test_lowercase_of_the_config_or_of_the_checkpoint(evaluate, corpus, spelling_model, tmp_path):
    corpus(("a", {"text": "A"}))
    evaluate(spelling_model)
    assert results(tmp_path, "hypotheses.jsonl")[0]["wer"] == 1.0
    evaluate(spelling_model, "lowercase=true")
    assert results(tmp_path, "hypotheses.jsonl")[0]["wer"] == 0.0
    spelling_model.objective.lowercase = True
    evaluate(spelling_model)
    metrics, _ = results(tmp_path, "hypotheses.jsonl")
    assert metrics["wer"] == 0.0 and "lower-cased" in metrics["normalisation"]


def test_characters_that_the_checkpoint_lacks_count_and_are_named(evaluate, corpus, spelling_model, tmp_path):
    corpus(("ab", {"text": "aé"}))
    code, _, err = evaluate(spelling_model)
    assert code == 0
    assert results(tmp_path, "hypotheses.jsonl")[0]["cer"] == 0.5
    assert "U+00E9" in err


def test_a_checkpoint_that_says_nothing_is_told(evaluate, corpus, spelling_model, tmp_path):
    corpus(("ab", {"text": "ab"}), ("c", {"text": "c"}))
    spelling_model.objective.linear.bias.data[0] = 100.0
    _, _, err = evaluate(spelling_model)
    metrics, _ = results(tmp_path, "hypotheses.jsonl")
    assert metrics["wer"] == metrics["cer"] == metrics["blank_share"] == 1.0
    assert "every hypothesis is empty" in err


def test_a_clip_without_text_is_refused_or_skipped(evaluate, corpus, spelling_model, tmp_path):
    corpus(("a", {"text": "a"}), ("b", {}))
    code, out, err = evaluate(spelling_model)
    assert (code, out) == (2, "")
    assert "1.wav" in err and "no `text`" in err and "Traceback" not in err
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert evaluate(spelling_model, "data.skip_invalid=true")[0] == 0
    metrics, _ = results(tmp_path, "hypotheses.jsonl")
    assert (metrics["num_utterances"], metrics["num_skipped"]) == (1, 1)


def test_a_broken_clip_is_refused_or_skipped(evaluate, corpus, spelling_model, tmp_path):
    corpus(("a", {"text": "a"}), ("b", {"text": "b"}))
    (tmp_path / "data" / "1.wav").write_bytes(b"no audio")
    code, _, err = evaluate(spelling_model)
    assert code == 2 and "1.wav" in err and "broken" in err
    assert evaluate(spelling_model, "data.max_broken_share=0.5")[0] == 0
    metrics, _ = results(tmp_path, "hypotheses.jsonl")
    assert (metrics["num_utterances"], metrics["num_skipped"]) == (1, 1)


def test_a_missing_file_or_manifest(evaluate, corpus, spelling_model, tmp_path):
    assert "test.jsonl" in evaluate(spelling_model)[2]
    corpus(("a", {"text": "a"}))
    (tmp_path / "data" / "0.wav").unlink()
    code, _, err = evaluate(spelling_model)
    assert code == 2 and "0.wav" in err and "test.jsonl:1" in err


def test_classification_by_hand(evaluate, corpus, voice_model, tmp_path):
    corpus(
        ("aaa", {"speaker": "ann", "id": "1"}),
        ("aaaaaa", {"speaker": "ann", "id": "2"}),
        ("bbb", {"speaker": "bob", "id": "3"}),
        ("aaab", {"speaker": "bob", "id": "4"}),
    )
    code, out, _ = evaluate(voice_model)
    metrics, rows = results(tmp_path, "scores.jsonl")
    assert code == 0
    assert [(row["id"], row["label"], row["prediction"]) for row in rows] == [
        ("1", "ann", "ann"),
        ("2", "ann", "ann"),
        ("3", "bob", "bob"),
        ("4", "bob", "ann"),
    ]
    assert rows[0]["audio_filepath"] == str(tmp_path / "data/0.wav")
    assert all(1 / 3 < row["score"] < 1 for row in rows)
    assert metrics["accuracy"] == 3 / 4
    assert (metrics["num_trials"], metrics["num_target_trials"]) == (6, 2)
    calibration = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert calibration["scale"] > 0 and calibration["p_target"] == metrics["p_target"] == 0.05
    assert "<svg" in (tmp_path / "out" / "det.svg").read_text()
    # By likeness: ann's pair; two pairs of hers with bob's "aaab"; bob's own pair; two of "aaa" with "bbb".
    # P_miss and P_fa meet at 1/2; accepting the first pair alone costs least, half of accepting none.
    assert metrics["eer"] == pytest.approx(1 / 2)
    assert metrics["min_dcf"] == pytest.approx(1 / 2)
    assert set(json.loads(out)) == {"accuracy", "eer", "min_dcf", "num_utterances", "audio_seconds", "rtf"}


def test_an_unknown_speaker_is_one_sentence(evaluate, corpus, voice_model):
    corpus(("a", {"speaker": "ann"}), ("a", {"speaker": "dan"}))
    code, out, err = evaluate(voice_model)
    assert (code, out) == (2, "")
    assert "'dan'" in err and "1.wav" in err and len(err.strip().splitlines()) == 1


def test_no_speaker_is_one_sentence(evaluate, corpus, voice_model):
    corpus(("a", {}))
    code, _, err = evaluate(voice_model)
    assert code == 2 and "'speaker'" in err and "0.wav" in err


def test_a_checkpoint_without_a_head(evaluate, corpus, spelling_model):
    corpus(("a", {"text": "a"}))
    spelling_model.objective = None
    code, _, err = evaluate(spelling_model)
    assert code == 2 and "no head" in err and "finetune" in err


def test_speakers_who_were_not_trained_on_are_compared_only(evaluate, corpus, voice_model, tmp_path):
    corpus(*((text, {"speaker": who}) for text, who in (("aaa", "x"), ("aaab", "x"), ("bbb", "y"), ("cbb", "y"))))
    code, out, _ = evaluate(voice_model)
    metrics, _ = results(tmp_path, "scores.jsonl")
    assert code == 0 and metrics["accuracy"] is None and metrics["eer"] == 0.0
    assert json.loads(out)["accuracy"] is None


def test_trials_of_a_list(evaluate, corpus, voice_model, tmp_path):
    corpus(
        ("aaa", {"speaker": "ann", "id": "one"}),
        ("aaaaaa", {"speaker": "ann", "id": "two"}),
        ("bbb", {"speaker": "bob"}),
    )
    trials = tmp_path / "trials.txt"
    trials.write_text("1 one two\n0 data/1.wav 2.wav\n")  # an id, a path, the end of a path
    assert evaluate(voice_model, f"trials={trials}")[0] == 0
    metrics, _ = results(tmp_path, "scores.jsonl")
    assert (metrics["num_trials"], metrics["num_target_trials"], metrics["eer"]) == (2, 1, 0.0)
    # A clip that is left out takes its trials with it.
    manifest = tmp_path / "data" / "test.jsonl"
    first, *others = (json.loads(line) for line in manifest.read_text().splitlines())
    manifest.write_text("".join(json.dumps(row) + "\n" for row in ({**first, "duration": 0.05}, *others)))
    trials.write_text("1 one two\n0 two 2.wav\n")
    code, _, err = evaluate(voice_model, f"trials={trials}", "data.skip_invalid=true")
    assert code == 0 and results(tmp_path, "scores.jsonl")[0]["num_trials"] == 1 and "1 of 2 trials left out" in err
    for text, words in (
        ("1 one gone.wav\n", "trials.txt:1: the clip gone.wav is not in data.test"),
        ("1 one\n", "trials.txt:1"),
        ("\n", "no trial"),
        ("1 one 2.wav\n", "'ann' and 'bob'"),
    ):
        trials.write_text(text)
        code, _, err = evaluate(voice_model, f"trials={trials}")
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err


def test_a_cohort_normalises_the_scores(evaluate, corpus, voice_model, tmp_path):
    corpus(
        *((text, {"speaker": who}) for text, who in (("aaa", "ann"), ("aab", "ann"), ("bbb", "bob"), ("cbb", "bob")))
    )
    cohort = tmp_path / "data" / "cohort.jsonl"
    tested = (tmp_path / "data" / "test.jsonl").read_text()
    cohort.write_text(tested.replace("ann", "eve").replace("bob", "fay"))
    assert evaluate(voice_model, f"cohort={cohort}", "cohort_top=2")[0] == 0
    metrics, _ = results(tmp_path, "scores.jsonl")
    assert metrics["score"] == "AS-norm" and metrics["num_trials"] == 6
    # `identify` finds the cohort beside the calibration: the clips that were tested, under other names.
    calibration, kept = enrolment.read_calibration(tmp_path / "out" / "calibration.json", voice_model)
    files = [tmp_path / "data" / f"{i}.wav" for i in range(4)]
    clips = np.stack([Identifier(voice_model).embed_clip(path).numpy() for path in files])
    assert calibration.cohort_top == kept.top == 2
    np.testing.assert_allclose(kept.directions, clips / np.linalg.norm(clips, axis=1, keepdims=True), atol=1e-6)
    cohort.write_text(tested.replace("ann", "eve"))
    code, _, err = evaluate(voice_model, f"cohort={cohort}")
    assert code == 2 and "data.test and cohort must have no speaker in common, and 'bob'" in err


def test_the_page_of_a_recogniser(evaluate, corpus, spelling_model, tmp_path):
    corpus(("ab c", {"text": "Ab, c", "id": "1"}), ("a b", {"text": "a b", "id": "2"}), ("a", {"text": "c", "id": "3"}))
    code, _, _ = evaluate(spelling_model, "lowercase=true", "normalisation.punctuation=remove")
    metrics, _ = results(tmp_path, "hypotheses.jsonl")
    assert code == 0 and metrics["wer"] == pytest.approx(1 / 5)
    assert metrics["wer_interval"][0] <= 1 / 5 <= metrics["wer_interval"][1]
    assert metrics["confusions"] == [["c", "a", 1]]
    assert metrics["wer_by_length"] == {"0 to 2 s": pytest.approx(1 / 5)}
    assert "punctuation removed" in metrics["normalisation"] and metrics["decoder"] == "GreedyDecoder"


def test_two_systems_on_the_same_clips(evaluate, corpus, spelling_model, tmp_path):
    corpus(*((text, {"text": "ab c", "id": str(i)}) for i, text in enumerate(["ab c", "ab b", "ab c", "a c"])))
    other = tmp_path / "other.jsonl"
    # What Unicode calls a line's end is none in JSON Lines.
    rows = ({"id": str(i), "hypothesis": "b b", "note": "one\u2028two"} for i in range(4))
    other.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert evaluate(spelling_model, f"against={other}")[0] == 0
    found = results(tmp_path, "hypotheses.jsonl")[0]["against"]
    assert found["wer"]["theirs"] == 1.0 and found["wer"]["difference"] == pytest.approx(2 / 8 - 1)
    assert found["cer"]["p"] <= 1 and found["file"] == str(other)
    other.write_text(json.dumps({"id": "0", "hypothesis": "b"}) + "\n")
    assert "lacks the clip 1" in evaluate(spelling_model, f"against={other}")[2]
    other.write_text("{}\n")
    assert "is no hypotheses.jsonl" in evaluate(spelling_model, f"against={other}")[2]
    assert "cannot be read" in evaluate(spelling_model, f"against={tmp_path / 'gone'}")[2]


def test_with_a_language_model(evaluate, corpus, spelling_model, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    corpus(("ab c", {"text": "ab c"}), ("a", {"text": "a"}))
    estimate([["ab", "c"], ["a"]], order=2).write(tmp_path / "lm.arpa")
    code, _, _ = evaluate(spelling_model, "decoder=beam", f"decoder.lm={tmp_path / 'lm.arpa'}", "decoder.nbest=3")
    metrics, rows = results(tmp_path, "hypotheses.jsonl")
    assert code == 0 and metrics["wer"] == 0.0 and metrics["decoder"] == "BeamDecoder"
    assert rows[0]["alternatives"][0]["text"] == "ab c" and len(rows[0]["alternatives"]) == 3
    (tmp_path / "weights.json").write_text('{"lm_weight": 0.5, "word_score": -1.0}')
    assert evaluate(spelling_model, "decoder=beam", f"decoder.weights={tmp_path / 'weights.json'}")[0] == 0
    code, _, err = evaluate(spelling_model, "decoder=beam", f"decoder.weights={tmp_path / 'gone.json'}")
    assert code == 2 and "gone.json" in err


def test_a_test_set_in_another_script_is_one_sentence(evaluate, corpus, spelling_model):
    corpus(("ab", {"text": "яй"}), ("a", {"text": "ж ж"}))
    code, out, err = evaluate(spelling_model)
    assert (code, out) == (2, "") and "have no characters in common" in err and "Traceback" not in err


def test_a_silent_clip_is_named(evaluate, corpus, voice_model, audio_tools, tmp_path):
    corpus(("aaa", {"speaker": "ann"}), ("bbb", {"speaker": "bob"}))
    audio_tools.save(tmp_path / "data" / "1.wav", 0 * audio_tools.spell("bbb"))
    code, _, err = evaluate(voice_model)
    assert code == 2 and "1.wav: is silence" in err and len(err.strip().splitlines()) == 1
