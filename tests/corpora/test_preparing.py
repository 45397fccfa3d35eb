"""speechssl.corpora.preparing: measured in parallel, left out by name, resumed, reported."""

import json
import logging

import pytest

from speechssl import audio
from speechssl.corpora import splits
from speechssl.corpora.preparing import Options, Preparation, complete
from speechssl.errors import UserError


def rows(count, **fields):
    return [
        {"audio_filepath": f"/d/{i}.wav", "duration": 6.0, "text": f"t{i}", "id": f"clip{i}", **fields}
        for i in range(count)
    ]


@pytest.mark.parametrize("num_workers", [1, 5])
def test_measure_names_what_it_leaves_out(num_workers, tmp_path, write_clip, caplog):
    write_clip(tmp_path / "good.wav", seconds=0.75, text=" two\twords\n")
    write_clip(tmp_path / "other/good.wav")
    write_clip(tmp_path / "least.wav", seconds=400 / 16_000)
    write_clip(tmp_path / "short.wav", seconds=399 / 16_000)
    write_clip(tmp_path / "latin.wav").with_suffix(".txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "junk.flac").write_bytes(b"no audio" * 50)
    paths = splits.audio_files(tmp_path)
    job = Preparation(tmp_path / "out", Options(num_workers=num_workers))
    usable = job.measure(
        {"audio_filepath": str(path), "id": path.stem, "text": path.with_suffix(".txt"), "mood": "calm"}
        if path.with_suffix(".txt").exists()
        else {"audio_filepath": str(path), "id": path.stem}
        for path in paths
    )
    good = {
        "audio_filepath": str(tmp_path / "good.wav"),
        "duration": 0.75,
        "id": "good",
        "text": "two words",
        "mood": "calm",
    }
    least = {"audio_filepath": str(tmp_path / "least.wav"), "duration": 0.025, "id": "least"}
    assert usable == [good, least]
    assert job.num_left_out == 5
    warnings = [record.getMessage() for record in caplog.records]
    for name, reason in [
        ("other/good.wav", "has the name of"),
        ("short.wav", "lasts 0.0249 s, less than one frame"),
        ("latin.txt", "is not UTF-8"),
        ("empty.wav", "is empty"),
        ("junk.flac", "is broken or not audio"),
    ]:
        assert any(f"{tmp_path / name}: {reason}" in warning for warning in warnings), name
    assert warnings[-1] == "left out 5 of 7 clips"


def test_write_splits_logs_counts_and_removes_what_is_now_empty(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="speechssl")
    (tmp_path / "valid.jsonl").write_text("of a former run")
    counts = Preparation(tmp_path).write({"train": rows(600, speaker="a"), "valid": []})
    assert counts == {"train": 600, "left_out": 0}
    assert not (tmp_path / "valid.jsonl").exists()
    assert "train.jsonl: 600 clips, 1.00 h, 1 speakers" in caplog.text  # 600 clips of 6 s


def test_no_train_clip_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"no usable audio file is left for .*train\.jsonl"):
        Preparation(tmp_path).write({"test": rows(1), "train": []})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_preparation_goes_on(tmp_path, write_clip, monkeypatch):
    for i in range(40):
        write_clip(tmp_path / f"in/{i:02d}.wav")
    (tmp_path / "in/bad.wav").write_bytes(b"no audio")
    clips = [{"audio_filepath": str(path), "id": path.stem} for path in splits.audio_files(tmp_path / "in")]
    looked, real = [], audio.info

    def info(path, **options):
        looked.append(path)
        if len(looked) == 15:
            raise KeyboardInterrupt
        return real(path, **options)

    monkeypatch.setattr(audio, "info", info)
    with pytest.raises(KeyboardInterrupt):
        Preparation(tmp_path / "out", Options(num_workers=1)).measure(clips)
    with (tmp_path / "out/.measured.jsonl").open("a") as journal:
        journal.write('[["cut off by a ki')
    first = len(looked)
    done = Preparation(tmp_path / "out", Options(num_workers=1)).measure(clips)
    assert [row["id"] for row in done] == [f"{i:02d}" for i in range(40)]
    assert len(looked) - first < 41
    before = len(looked)
    write_clip(tmp_path / "in/03.wav", seconds=0.75)  # has changed
    again = Preparation(tmp_path / "out", Options(num_workers=1)).measure(clips)
    assert [str(path) for path in looked[before:]] == [str(tmp_path / "in/03.wav")]
    assert [row["duration"] for row in again] == [0.75 if row["id"] == "03" else 0.5 for row in done]


def test_the_report_says_what_was_found(tmp_path, write_clip):
    write_clip(tmp_path / "a.wav", seconds=1.5)
    write_clip(tmp_path / "b.flac", seconds=4.5, rate=8000)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    (tmp_path / "d.wav").touch()
    job = Preparation(tmp_path / "out")
    clips = [
        {"audio_filepath": str(tmp_path / name), "id": name, "text": text, "speaker": "ann"}
        for name, text in {"a.wav": "né né", "b.flac": "", "c.wav": "x", "d.wav": "x"}.items()
    ]
    job.write({"train": job.measure(clips)})
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    part = report["parts"]["train"]
    assert (part["clips"], part["hours"], part["speakers"]) == (2, pytest.approx(6 / 3600, abs=1e-6), 1)
    assert part["duration_s"]["shortest"] == 1.5 and part["duration_s"]["longest"] == 4.5
    assert (part["durations"]["1 to 2 s"], part["durations"]["2 to 5 s"]) == (1, 1)
    assert (part["transcribed_clips"], part["words"], part["characters"]) == (1, 2, {"n": 2, "é": 2, " ": 1})
    assert report["audio"] == {
        "sample_rates": {"16000": 1, "8000": 1},
        "channels": {"1": 2},
        "formats": {"WAV": 1, "FLAC": 1},
    }
    assert report["left_out"] == 2
    assert [clip["id"] for clip in report["left_out_clips"]] == ["c.wav", "d.wav"]
    assert sum(report["left_out_reasons"].values()) == 2
    assert any("is empty (N bytes)" in reason for reason in report["left_out_reasons"])


INFO = audio.AudioInfo(sample_rate=8000, num_channels=2, num_samples=80_000, format="WAV")  # 10 s


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"offset": -0.5}, "from -0.500 s"),
        ({"offset": 10.0}, "less than one frame"),
        ({"offset": 9.0, "duration": 2.0}, "to 11.000 s, the file lasts 10.000 s"),
        ({"offset": 3.0, "duration": -1.0}, "lasts -1.0000 s"),
        ({"duration": 0.0}, "lasts 0.0000 s"),
        ({"channel": 2}, "has 2 channels"),
        ({"text": "gone"}, None),
    ],
)
def test_a_part_of_a_file_has_to_be_inside(row, reason):
    row = {"audio_filepath": "/d/a.wav", "id": "a", **row}
    if reason:
        with pytest.raises(UserError, match=reason):
            complete(row, INFO)
    else:
        assert complete(row, INFO)["duration"] == 10.0


def test_the_end_of_a_file_may_be_rounded():
    row = {"audio_filepath": "/d/a.wav", "id": "a", "offset": 9.0, "duration": 1.01}
    assert complete(row, INFO) == {**row, "duration": 1.0}


def test_what_is_left_out_is_in_the_log_up_to_a_bound(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("speechssl.corpora.preparing.MOST_NAMED", 2)
    job = Preparation(tmp_path)
    for i in range(5):
        job.leave_out(str(i), f"{i}: is broken")
    assert [record.getMessage() for record in caplog.records] == [
        "left out: 0: is broken",
        "left out: 1: is broken",
        f"left out: more, which {tmp_path}/report.json will name",
    ]
    assert len(job.report.left_out) == 5
