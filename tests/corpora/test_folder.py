"""speechssl.corpora.folder: a user's own recordings, whatever is among them."""

import pytest

from speechssl.corpora import folder
from speechssl.corpora.preparing import Options, Preparation
from speechssl.errors import UserError


def test_tree_with_transcripts_and_speakers(tmp_path, write_clip, read_manifest, caplog):
    root = tmp_path / "in"
    for i in range(40):
        write_clip(root / f"ann/day 1/clip={i}.wav", text="naïve\n" if i % 2 else "")
        write_clip(root / f"bób/{i}.opus", seconds=0.25)
    (root / "bób/broken.mp3").write_bytes(b"\0" * 300)
    (root / "bób/empty.flac").touch()
    write_clip(root / "ann/blip.wav", seconds=0.02)
    counts = folder.prepare(root, Preparation(tmp_path / "out"), valid_share=0.2, test_share=0.2, speaker_level=1)
    assert counts.pop("left_out") == 3
    assert sum(counts.values()) == 80
    assert set(counts) == {"train", "valid", "test"}
    clips = {}
    for name in counts:
        clips |= read_manifest(tmp_path / f"out/{name}.jsonl")
    assert len(clips) == 80
    assert clips["ann/day 1/clip=1.wav"].text == "naïve"
    assert clips["ann/day 1/clip=2.wav"].text is None
    assert {clip.speaker for clip in clips.values()} == {"ann", "bób"}
    assert clips["bób/7.opus"].duration_s == 0.25
    for name in ("bób/broken.mp3", "bób/empty.flac", "ann/blip.wav"):
        assert f"left out: {root / name}: " in caplog.text
    assert "left out 3 of 83 clips" in caplog.text


def test_speaker_is_absent_by_default(tmp_path, write_clip, read_manifest):
    write_clip(tmp_path / "in/ann/a.wav")
    assert folder.prepare(tmp_path / "in", Preparation(tmp_path / "out")) == {"train": 1, "left_out": 0}
    assert read_manifest(tmp_path / "out/train.jsonl")["ann/a.wav"].speaker is None


def test_a_few_recordings_give_every_split(tmp_path, write_clip):
    for i in range(4):
        write_clip(tmp_path / f"in/{i}.wav")
    counts = folder.prepare(tmp_path / "in", Preparation(tmp_path / "out"))
    assert counts["valid"] >= 1
    assert counts["test"] >= 1
    assert counts["train"] >= 1


def test_users_mistakes(tmp_path, write_clip):
    root = tmp_path / "in"
    with pytest.raises(UserError, match="no such folder"):
        folder.prepare(root, Preparation(tmp_path / "out"))
    root.mkdir()
    (root / "empty.wav").touch()
    with pytest.raises(UserError, match=r"has no usable audio file \(1 left out\)"):
        folder.prepare(root, Preparation(tmp_path / "out"))
    write_clip(root / "a.wav")
    with pytest.raises(UserError, match=r"speaker_level=1, but a\.wav lies 0 folders below"):
        folder.prepare(root, Preparation(tmp_path / "out"), speaker_level=1)
    with pytest.raises(UserError, match="leave nothing to train on"):
        folder.prepare(root, Preparation(tmp_path / "out"), valid_share=0.5, test_share=0.5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".measured.jsonl"]


def test_segments_of_a_recording_stay_together(tmp_path, write_clip, read_manifest):
    for i in range(20):
        write_clip(tmp_path / f"in/{i}.wav", seconds=1.0)
    job = Preparation(tmp_path / "out", Options(segment="windows", segment_s=0.25))
    counts = folder.prepare(tmp_path / "in", job, valid_share=0.3, test_share=0.2)
    assert counts.pop("left_out") == 0 and sum(counts.values()) == 80
    parts = [{clip.audio_path for clip in read_manifest(tmp_path / f"out/{name}.jsonl").values()} for name in counts]
    assert len(parts) == 3 and sum(map(len, parts)) == 20
