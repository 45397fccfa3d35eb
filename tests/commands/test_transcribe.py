"""`speechssl transcribe` with a model that says back what is spelled: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest

from speechssl import cli


@pytest.fixture
def transcribe(monkeypatch, capsys, spelling_model):
    """Run the command -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("speechssl.commands.transcribe.load_model", lambda path, device: spelling_model)

    def run(*overrides: str):
        code = cli.main(["transcribe", "checkpoint=run", *overrides])
        return code, *capsys.readouterr()

    return run


def test_a_file_gives_its_text(transcribe, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("ab cab"))
    assert transcribe(f"audio={path}")[:2] == (0, "ab cab\n")


def test_a_folder_gives_path_and_text_sorted(transcribe, audio_tools, tmp_path):
    texts = {"z.wav": "a", "b/long.flac": "abc cba abc", "a.wav": "", "b/x=[1],é.wav": "bb"}
    for name, text in texts.items():
        audio_tools.save(tmp_path / name, audio_tools.spell(text or " "))
    code, out, _ = transcribe(f"audio={tmp_path}", "data.batch_seconds=1.0")
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines == [[str(tmp_path / name), text] for name, text in sorted(texts.items())]


def test_a_folder_with_one_file_still_gives_its_path(transcribe, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("a"))
    assert transcribe(f"audio={tmp_path}")[1] == f"{path}\ta\n"


def test_json_adds_times_and_confidences(transcribe, audio_tools, tmp_path):
    for name, text in (("1.wav", "ab c"), ("2.wav", "b")):
        audio_tools.save(tmp_path / name, audio_tools.spell(text))
    _, out, _ = transcribe(f"audio={tmp_path}", "format=json")
    first, second = map(json.loads, out.splitlines())
    assert (first["audio_filepath"], first["text"]) == (str(tmp_path / "1.wav"), "ab c")
    assert [word["text"] for word in first["words"]] == ["ab", "c"]
    assert first["words"][1]["start_s"] == pytest.approx(0.24)
    assert first["words"][1]["end_s"] == pytest.approx(0.30)
    assert 0.9 < first["words"][1]["confidence"] < 1
    assert second["text"] == "b"


def test_a_broken_file_in_a_folder_costs_only_itself(transcribe, audio_tools, tmp_path):
    good = audio_tools.save(tmp_path / "good.wav", audio_tools.spell("a"))
    (tmp_path / "bad.wav").write_bytes(b"not audio at all")
    code, out, err = transcribe(f"audio={tmp_path}")
    assert (code, out) == (2, f"{good}\ta\n")
    assert "1 of 2 files" in err.splitlines()[-1] and "bad.wav" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.wav", None, "no such file"),
        ("empty.wav", b"", "is empty"),
        ("broken.wav", b"nothing like audio", "is broken or not audio"),
    ],
)
def test_audio_that_cannot_be_used(transcribe, tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = transcribe(f"audio={tmp_path / name}")
    assert (code, out) == (2, "")
    assert name in err.splitlines()[-1] and reason in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_clip_shorter_than_the_receptive_field(transcribe, audio_tools, tmp_path):
    path = audio_tools.save(tmp_path / "short.wav", audio_tools.spell("a")[:399])
    code, _, err = transcribe(f"audio={path}")
    assert code == 2 and "needs at least 0.0250 s" in err


def test_a_folder_without_audio(transcribe, tmp_path):
    code, _, err = transcribe(f"audio={tmp_path}")
    assert code == 2 and "no audio file" in err


def test_a_long_file_in_windows_and_at_once(transcribe, audio_tools, tmp_path):
    text = "abc ab a " * 20 + "b"
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell(text))
    assert transcribe(f"audio={path}", "window_s=2", "context_s=0.3")[:2] == (0, f"{text}\n")
    assert transcribe(f"audio={path}", "window_s=null")[:2] == (0, f"{text}\n")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["window_s=2", "context_s=1"], "longer than twice the context"),
        (["window_s=0"], "window_s=0.0 must be a number, more than 0"),
        (["context_s=-1"], "context_s=-1.0 must be a number, 0 or more"),
        (["context_s=null"], "context_s=null must be a number"),
    ],
)
def test_windows_that_cannot_be(transcribe, audio_tools, tmp_path, overrides, reason):
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("a"))
    code, out, err = transcribe(f"audio={path}", *overrides)
    assert (code, out) == (2, "") and reason in err and "Traceback" not in err


def test_an_unknown_format(transcribe, tmp_path):
    code, _, err = transcribe(f"audio={tmp_path}", "format=xml")
    assert code == 2 and "format=xml must be text or json" in err


def test_a_checkpoint_of_another_kind(transcribe, monkeypatch, voice_model, audio_tools, tmp_path):
    monkeypatch.setattr("speechssl.commands.transcribe.load_model", lambda path, device: voice_model)
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("a"))
    code, out, err = transcribe(f"audio={path}")
    assert (code, out) == (2, "") and "no CTC head" in err
