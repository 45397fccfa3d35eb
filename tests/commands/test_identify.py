"""`speechssl identify` with voices that are known: what it prints, and what it refuses."""

from __future__ import annotations

import pytest

from speechssl import cli


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
