"""`speechssl identify` with voices that are known: what it prints, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest

from speechssl import cli, manifest


@pytest.fixture
def identify(monkeypatch, capsys, voice_model):
    """Run the command -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("speechssl.commands.identify.load_model", lambda path, device: voice_model)

    def run(*overrides: str):
        code = cli.main(["identify", "checkpoint=run", *overrides])
        return code, *capsys.readouterr()

    return run


def test_a_file_gives_speaker_and_score(identify, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("ccc"))
    code, out, _ = identify(f"audio={path}")
    speaker, score = out.rstrip("\n").split("\t")
    assert (code, speaker) == (0, "cid")
    assert 1 / 3 < float(score) < 1


def test_a_folder_gives_paths_first_and_sorted(identify, audio_tools, tmp_path):
    for name, text in (("b.wav", "bb"), ("a/a.wav", "aaaaaaaaaaaa"), ("c.wav", "c")):
        audio_tools.save(tmp_path / name, audio_tools.spell(text))
    _, out, _ = identify(f"audio={tmp_path}")
    lines = [line.split("\t")[:2] for line in out.splitlines()]
    names = (("a/a.wav", "ann"), ("b.wav", "bob"), ("c.wav", "cid"))
    assert lines == [[str(tmp_path / name), speaker] for name, speaker in names]


def test_two_voices_are_compared(identify, audio_tools, tmp_path):
    texts = {"one.wav": "aaa", "same.wav": "aaaaa", "other.wav": "bbb"}
    one, same, other = (audio_tools.save(tmp_path / x, audio_tools.spell(text)) for x, text in texts.items())
    cosines = [float(identify(f"audio={one}", f"other={x}")[1]) for x in (one, same, other)]
    assert cosines[0] == 1.0
    assert cosines[0] >= cosines[1] > cosines[2]


def test_only_files_are_compared(identify, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("a"))
    for overrides in ((f"audio={tmp_path}", f"other={path}"), (f"audio={path}", f"other={tmp_path}")):
        code, _, err = identify(*overrides)
        assert code == 2 and "must both be files" in err


def test_the_other_file_must_exist(identify, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("a"))
    code, out, err = identify(f"audio={path}", f"other={tmp_path / 'gone.wav'}")
    assert (code, out) == (2, "") and "gone.wav: no such audio file" in err


def test_a_checkpoint_of_another_kind(identify, monkeypatch, spelling_model, audio_tools, tmp_path):
    monkeypatch.setattr("speechssl.commands.identify.load_model", lambda path, device: spelling_model)
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("a"))
    code, out, err = identify(f"audio={path}")
    assert (code, out) == (2, "") and "no classifier" in err


def test_with_a_calibration_two_recordings_are_the_same_or_not(identify, audio_tools, tmp_path):
    content = {"scale": 10.0, "offset": -8.0, "p_target": 0.5, "num_trials": 2, "num_target_trials": 1}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    one, same, other = (
        audio_tools.save(tmp_path / f"{i}.wav", audio_tools.spell(text))
        for i, text in enumerate(("aaa", "aaaaa", "bbb"))
    )
    given = f"calibration={tmp_path / 'calibration.json'}"
    for path, verdict in ((same, "same"), (other, "different")):
        code, out, _ = identify(f"audio={one}", f"other={path}", given)
        said, score, probability = out.split()
        assert (code, said) == (0, verdict)
        expected = 1 / (1 + math.exp(8 - 10 * float(score)))
        assert float(probability) == pytest.approx(expected, abs=1e-3)
    (tmp_path / "calibration.json").write_text("{}")
    code, out, err = identify(f"audio={one}", f"other={other}", given)
    assert (code, out) == (2, "") and "no calibration" in err


def test_the_prior_decides_and_one_that_nothing_passes_is_said(identify, audio_tools, tmp_path):
    """A weak calibration: likelihood ratio 2 s - 0.5, so even a cosine of 1 has odds of e^1.5 / 19 at 5 %."""
    content = {"scale": 2.0, "offset": -0.5, "p_target": 0.05, "num_trials": 9, "num_target_trials": 3}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("aaa"))
    given = (f"audio={path}", f"other={path}", f"calibration={tmp_path / 'calibration.json'}")
    code, out, err = identify(*given)
    assert (code, out.split()[0]) == (0, "different") and "p_target=0.05" in err and "larger p_target" in err
    assert float(out.split()[2]) == pytest.approx(1 / (1 + 19 * math.exp(-1.5)), abs=1e-4)
    code, out, err = identify(*given, "p_target=0.5")
    assert (code, out.split()[0]) == (0, "same") and "p_target" not in err
    assert float(out.split()[2]) == pytest.approx(1 / (1 + math.exp(-1.5)), abs=1e-4)
    for useless in ("p_target=0.5", f"calibration={tmp_path / 'calibration.json'}"):
        code, _, err = identify(f"audio={path}", useless)
        assert code == 2 and "give other=" in err


@pytest.mark.parametrize("missing", ["calibration", "voices"])
def test_a_file_that_is_missing_is_one_sentence(identify, audio_tools, tmp_path, missing):
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("aaa"))
    others = [f"other={path}"] if missing == "calibration" else []
    code, out, err = identify(f"audio={path}", f"{missing}={tmp_path / 'gone'}", *others)
    assert (code, out) == (2, "") and "gone" in err and len(err.strip().splitlines()) == 1
    assert "speechssl evaluate" in err if missing == "calibration" else "speechssl enrol" in err


def test_without_a_calibration_the_cosine_is_all_and_it_says_so(identify, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "x.wav", audio_tools.spell("aaa"))
    code, out, err = identify(f"audio={path}", f"other={path}")
    assert (code, float(out)) == (0, 1.0) and "calibration.json" in err


def test_enrolled_voices_are_named_and_a_stranger_is_unknown(
    identify, monkeypatch, capsys, voice_model, audio_tools, tmp_path
):
    monkeypatch.setattr("speechssl.commands.enrol.load_model", lambda path, device: voice_model)
    rows = []
    for i, (text, who) in enumerate((("aaa", "eve"), ("aaaa", "eve"), ("bbb", "fay"), ("bbbbb", "fay"))):
        waveform = audio_tools.spell(text)
        audio_tools.save(tmp_path / "family" / f"{i}.wav", waveform)
        rows.append({"audio_filepath": f"{i}.wav", "duration": len(waveform) / 16_000, "speaker": who})
    manifest.write(tmp_path / "family" / "enrol.jsonl", rows)
    given = (f"data.enrol={tmp_path / 'family' / 'enrol.jsonl'}", f"out={tmp_path / 'voices'}")
    assert cli.main(["enrol", "checkpoint=run", *given]) == 0
    assert capsys.readouterr().out == "eve\t2\nfay\t2\n"
    found = {}
    for text in ("aaaaaa", "bbbbbb", "cccccc"):
        path = audio_tools.save(tmp_path / f"{text}.wav", audio_tools.spell(text))
        code, out, _ = identify(f"audio={path}", f"voices={tmp_path / 'voices'}")
        assert code == 0
        found[text] = out.split()[0]
    assert found == {"aaaaaa": "eve", "bbbbbb": "fay", "cccccc": "unknown"}
    cohort = (tmp_path / "family" / "enrol.jsonl").read_text().replace("eve", "gus").replace("fay", "hal")
    (tmp_path / "family" / "cohort.jsonl").write_text(cohort)
    given = (*given, f"cohort={tmp_path / 'family' / 'cohort.jsonl'}", "cohort_top=3")
    assert cli.main(["enrol", "checkpoint=run", *given]) == 0
    capsys.readouterr()
    code, out, _ = identify(f"audio={tmp_path / 'aaaaaa.wav'}", f"voices={tmp_path / 'voices'}")
    assert code == 0 and out.split()[0] == "eve"
    assert cli.main(["enrol", "checkpoint=run", *given, f"calibration={tmp_path / 'x.json'}"]) == 2
    assert "drop it, or cohort=" in capsys.readouterr().err
    code, _, err = identify(f"audio={path}", f"voices={tmp_path / 'voices'}", f"other={path}")
    assert code == 2 and "drop it, or other=" in err


@pytest.mark.parametrize(
    ("text", "num_samples", "word"), [("aaa", 800, "a voice takes at least 0.08 s"), ("   ", None, "silence")]
)
def test_what_holds_no_voice_is_one_sentence(identify, audio_tools, tmp_path, text, num_samples, word):
    waveform = audio_tools.spell(text)[:num_samples] if word != "silence" else 0 * audio_tools.spell("aaa")
    path = audio_tools.save(tmp_path / "x.wav", waveform)
    code, out, err = identify(f"audio={path}")
    assert (code, out) == (2, "") and word in err and len(err.strip().splitlines()) == 1
