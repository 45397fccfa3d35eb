"""`speechssl transcribe` with a model that says back what is spelled: what it prints, and what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

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
    assert code == 2 and "format=xml must be text, json, srt" in err


def test_a_checkpoint_of_another_kind(transcribe, monkeypatch, voice_model, audio_tools, tmp_path):
    monkeypatch.setattr("speechssl.commands.transcribe.load_model", lambda path, device: voice_model)
    path = audio_tools.save(tmp_path / "a.wav", audio_tools.spell("a"))
    code, out, err = transcribe(f"audio={path}")
    assert (code, out) == (2, "") and "no CTC head" in err


@pytest.fixture
def spoken(audio_tools, tmp_path):
    """A folder with two files, of which one says "ab c" and a second later "b"."""
    first = torch.cat([audio_tools.spell("ab c")[:-80], torch.zeros(16_000), audio_tools.spell(" b")])
    audio_tools.save(tmp_path / "in" / "1.wav", first)
    audio_tools.save(tmp_path / "in" / "deep" / "2 x.wav", audio_tools.spell("a"))
    return tmp_path / "in"


def test_subtitles_of_a_file(transcribe, spoken):
    _, out, _ = transcribe(f"audio={spoken / '1.wav'}", "format=srt")
    # Three frames of 20 ms a character and one of blank: "ab c" takes 16 frames, the silence 50, the space 4.
    assert out.splitlines() == [
        "1", "00:00:00,000 --> 00:00:00,300", "ab c", "", "2", "00:00:01,400 --> 00:00:01,460", "b",
    ]  # fmt: skip
    _, out, _ = transcribe(f"audio={spoken / '1.wav'}", "format=vtt")
    assert out.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.300\nab c\n\n")


def test_a_folder_into_a_folder(transcribe, spoken, tmp_path):
    code, _, err = transcribe(f"audio={spoken}", "format=textgrid")
    assert code == 2 and "give out=DIR" in err
    assert transcribe(f"audio={spoken}", "format=textgrid", f"out={tmp_path / 'out'}")[:2] == (0, "")
    grid = (tmp_path / "out" / "deep" / "2 x.wav.TextGrid").read_text()
    assert "intervals: size = 2" in grid and 'text = "a"' in grid and "xmax = 0.080000" in grid


def test_a_line_a_word(transcribe, spoken):
    lines = transcribe(f"audio={spoken}", "format=ctm")[1].splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["1", "1", "0.000", "0.140", "ab"],
        ["1", "1", "0.240", "0.060", "c"],
        ["1", "1", "1.400", "0.060", "b"],
        ["2_x", "1", "0.000", "0.060", "a"],
    ]


def test_files_that_are_called_alike_have_names_of_their_own(transcribe, audio_tools, tmp_path):
    def names(*files):
        for name in files:
            audio_tools.save(tmp_path / "in" / name, audio_tools.spell("a"))
        return [line.split()[0] for line in transcribe(f"audio={tmp_path / 'in'}", "format=ctm")[1].splitlines()]

    assert names("x/clip.wav", "y/other.wav") == ["clip", "other"]
    assert names("y/clip.wav") == ["x/clip", "y/clip", "y/other"]
    assert names("x/clip.flac") == ["x/clip.flac", "x/clip.wav", "y/clip.wav", "y/other.wav"]


def test_standard_input(transcribe, monkeypatch, spoken):
    with (spoken / "1.wav").open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file, isatty=lambda: False))
        assert transcribe("audio=-")[:2] == (0, "ab c b\n")
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = transcribe("audio=-")
    assert code == 2 and "standard input" in err


@pytest.mark.slow
def test_what_no_process_can_start_with_is_one_sentence(speechssl, ctc_run, write_corpus, tmp_path):
    write_corpus("train")
    (tmp_path / "broken.arpa").write_text("no ARPA")
    audio = f"audio={tmp_path / 'train'}"
    beam = (f"checkpoint={ctc_run}", "decoder=beam", f"decoder.lm={tmp_path / 'broken.arpa'}")
    for given in ((f"checkpoint={tmp_path / 'gone'}",), beam):
        one, two = (speechssl("transcribe", audio, *given, jobs) for jobs in ("jobs=1", "jobs=2"))
        assert two.code == 2 and two.sentence == one.sentence and "memory" not in two.sentence


@pytest.mark.slow
def test_several_files_at_a_time(speechssl, ctc_run, write_corpus, tmp_path):
    write_corpus("train", seconds=(0.5, 0.6, 0.4))
    (tmp_path / "train" / "3.wav").write_bytes(b"no audio")
    one, two = (
        speechssl("transcribe", f"checkpoint={ctc_run}", f"audio={tmp_path / 'train'}", j) for j in ("jobs=1", "jobs=2")
    )
    assert one.out == two.out and len(one.out.splitlines()) == 3
    assert (one.code, two.code) == (2, 2) and "1 of 4 files" in two.sentence
