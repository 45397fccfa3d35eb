"""Halves of clips: what lies where in the recordings, and that held-out speakers are nowhere else."""

from __future__ import annotations

import json

import pytest
import torch

from speechssl import audio
from speechssl.corpora.halves import prepare
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError
from speechssl.manifest import Manifest


@pytest.fixture
def root(tmp_path, audio_tools):
    """Ten speakers, one clip of 5 to 14 seconds each, whose samples rise with time."""
    for i in range(10):
        seconds = 5 + i
        ramp = torch.arange(seconds * 1000) / 20_000
        audio_tools.save(tmp_path / "clips" / f"s{i}-book-{i}.wav", ramp, rate=1000)
    return tmp_path / "clips"


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_first_halves_train_and_second_halves_test(root, tmp_path):
    counts = prepare(root, Preparation(tmp_path / "out"), piece_s=2.0, unseen_share=0.3)
    out = tmp_path / "out"
    train, valid, test, verify = (rows(out, name) for name in ("train", "valid", "test", "verify"))
    seen = {row["speaker"] for row in train}
    assert {row["speaker"] for row in valid} == {row["speaker"] for row in test} == seen
    for name in ("train", "valid", "test"):
        every = rows(out, f"{name}_all")
        assert {row["speaker"] for row in every} == {f"s{i}" for i in range(10)}
        assert [row for row in every if row["speaker"] in seen] == rows(out, name)
    assert not seen & {row["speaker"] for row in verify} and len(seen) + len(verify) / 2 == 10
    assert counts["test"] == len(test) == len(seen)
    for row in test:
        length = 5 + int(row["speaker"][1:])
        mine = [x for x in train + valid if x["speaker"] == row["speaker"]]
        assert row["offset"] == length / 2 == pytest.approx(row["duration"], abs=1e-4)
        assert len(mine) == max(round(length / 4), 2)
        # The pieces of the first half lie end to end, and end where the second begins.
        mine.sort(key=lambda x: x["offset"])
        ends = [x["offset"] + x["duration"] for x in mine]
        assert mine[0]["offset"] == 0 and ends[-1] == pytest.approx(length / 2, abs=1e-4)
        assert ends[:-1] == pytest.approx([x["offset"] for x in mine[1:]], abs=1e-4)
        assert mine[-1] in valid
    by_speaker = {}
    for row in verify:
        by_speaker.setdefault(row["speaker"], []).append(row["offset"])
    assert all(len(offsets) == 2 and offsets[0] == 0 for offsets in by_speaker.values())


def test_every_piece_can_be_read(root, tmp_path):
    prepare(root, Preparation(tmp_path / "out"))
    for name in ("train", "valid", "test", "verify"):
        for clip in Manifest(tmp_path / "out" / f"{name}.jsonl"):
            x = audio.load(clip.audio_path, sample_rate=1000, offset_s=clip.offset_s, duration_s=clip.duration_s)
            assert x[0] == pytest.approx(clip.offset_s / 20, abs=1e-3)


def test_what_is_wrong_is_one_sentence(root, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "gone", Preparation(tmp_path / "out"))
    with pytest.raises(UserError, match="0 speakers"):
        prepare(root, Preparation(tmp_path / "out"), separator="_")
