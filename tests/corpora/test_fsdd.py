"""speechssl.corpora.fsdd: the official test split, a validation split apart from it, and sixty clips."""

import re

import pytest

from speechssl.corpora import fsdd
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_splits_by_index(tmp_path, write_clip, read_manifest, suffix):
    for speaker in ("ann", "bob"):
        for digit in (0, 7):
            for index in range(12):
                write_clip(tmp_path / "in/recordings" / f"{digit}_{speaker}_{index}{suffix}", rate=8000, seconds=0.1)
    write_clip(tmp_path / "in/recordings/readme_noise.wav")
    out = tmp_path / "out"
    counts = fsdd.prepare(tmp_path / "in", Preparation(out))
    few_digits = {"train_speakers": 2, "valid_speakers": 4, "test_speakers": 10}
    assert counts == {"train": 20, "valid": 8, "test": 20, "train_60": 4, **few_digits, "left_out": 0}
    for name in few_digits:
        digits = {clip.fields["digit"] for clip in read_manifest(out / f"{name}.jsonl").values()}
        assert digits == ({"7"} if name == "test_speakers" else {"0"})
    indexes = {"train": range(7, 12), "valid": range(5, 7), "test": range(5)}
    for name, wanted in indexes.items():
        expected = {f"{d}_{s}_{i}" for d in (0, 7) for s in ("ann", "bob") for i in wanted}
        assert set(read_manifest(out / f"{name}.jsonl")) == expected
    clip = read_manifest(out / "train.jsonl")["7_bob_9"]
    assert (clip.text, clip.speaker, clip.fields["digit"], clip.duration_s) == ("seven", "bob", "7", 0.1)
    few = read_manifest(out / "train_60.jsonl")
    assert set(few) < set(read_manifest(out / "train.jsonl"))
    assert sorted((clip.speaker, clip.text) for clip in few.values()) == [
        (speaker, word) for speaker in ("ann", "bob") for word in ("seven", "zero")
    ]


def test_seed_changes_the_few_only(tmp_path, write_clip, read_manifest):
    for index in range(7, 40):
        write_clip(tmp_path / f"recordings/3_ann_{index}.wav", seconds=0.05)
    for seed in (0, 0, 1):
        fsdd.prepare(tmp_path, Preparation(tmp_path / f"out{seed}"), seed=seed)
    assert (tmp_path / "out0/train.jsonl").read_text() == (tmp_path / "out1/train.jsonl").read_text()
    assert set(read_manifest(tmp_path / "out0/train_60.jsonl")) != set(read_manifest(tmp_path / "out1/train_60.jsonl"))


def test_wrong_root_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.root .*recordings/DIGIT_SPEAKER_INDEX\.wav"):
        fsdd.prepare(tmp_path, Preparation(tmp_path / "out"))
    (tmp_path / "recordings").mkdir()
    with pytest.raises(UserError, match="no usable recording"):
        fsdd.prepare(tmp_path, Preparation(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_real_recordings(tmp_path, unpack, read_manifest):
    root = unpack("fsdd.tar.gz", lambda name: bool(re.search(r"/[49]_(theo|lucas)_(0|5|7|8)\.flac$", name)))
    counts = fsdd.prepare(root, Preparation(tmp_path / "out"))
    few_digits = {"train_speakers": 2, "valid_speakers": 2, "test_speakers": 2}
    assert counts == {"train": 8, "valid": 4, "test": 4, "train_60": 4, **few_digits, "left_out": 0}
    clips = read_manifest(tmp_path / "out/test.jsonl")
    assert {(clip.speaker, clip.text) for clip in clips.values()} == {
        (speaker, word) for speaker in ("theo", "lucas") for word in ("four", "nine")
    }
    assert all(0.1 < clip.duration_s < 2.5 for clip in clips.values())
