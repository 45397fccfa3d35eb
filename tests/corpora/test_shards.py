"""Tar shards: read back by the index, in webdataset's layout, the same again, resumed."""

import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from speechssl import audio
from speechssl.corpora import shards
from speechssl.corpora.preparing import Options, Preparation
from speechssl.manifest import Manifest

RATE = 8000


@pytest.fixture
def clips(tmp_path):
    """Rows of nine files of three formats, and of two parts of one of them; their audio."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(9):
        path = tmp_path / f"in/a {i}.{('wav', 'flac', 'ogg')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, random.normal(0, 0.1, RATE + 100 * i), RATE)
        rows.append({"audio_filepath": str(path), "id": f"é{i}", "text": f"text {i}", "speaker": "s", "mood": "calm"})
    for i, offset in enumerate((0.25, 0.5)):
        rows.append({"audio_filepath": rows[3]["audio_filepath"], "id": f"part{i}", "offset": offset, "duration": 0.5})
    return rows


def prepare(out, rows, **options):
    job = Preparation(out, Options(shards=True, num_workers=2, **options))
    job.write({"train": job.measure(rows)})
    return Manifest(out / "train.jsonl")


def test_the_index_gives_every_clip_back(tmp_path, clips):
    packed = prepare(tmp_path / "out", clips)
    packed.check_files()
    assert [clip.id for clip in packed] == [row["id"] for row in clips]
    for row, clip in zip(clips, packed, strict=True):
        expected = audio.load(row["audio_filepath"], offset_s=row.get("offset", 0), duration_s=row.get("duration"))
        found = audio.load(
            clip.audio_path, byte_range=clip.byte_range, offset_s=clip.offset_s, duration_s=clip.duration_s
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert (clip.text, clip.speaker, clip.fields.get("mood")) == (
            row.get("text"),
            row.get("speaker"),
            row.get("mood"),
        )


def test_the_layout_is_webdatasets(tmp_path, clips):
    prepare(tmp_path / "out", clips, shard_mib=0.03)
    folder = tmp_path / "out/train-shards"
    listed = json.loads((folder / "index.json").read_text())["shardlist"]
    assert len(listed) > 2 and sum(shard["nsamples"] for shard in listed) == len(clips)
    names = []
    for shard in listed:
        with tarfile.open(folder / shard["url"]) as tar:
            members = tar.getnames()
            assert [name.partition(".")[0] for name in members[::2]] == [n.partition(".")[0] for n in members[1::2]]
            assert all(name.endswith(".json") for name in members[::2])
            labels = [json.loads(tar.extractfile(name).read()) for name in members[::2]]
            names += [label["id"] for label in labels]
    assert names == [row["id"] for row in clips]


def test_webdataset_reads_them(tmp_path, clips):
    webdataset = pytest.importorskip("webdataset")
    prepare(tmp_path / "out", clips)
    shard = tmp_path / "out/train-shards/train-000000.tar"
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == [row["id"] for row in clips]
    assert all({"wav", "flac", "ogg"} & sample.keys() for sample in samples)


def test_equal_clips_give_equal_shards_and_finished_ones_are_kept(tmp_path, clips, monkeypatch):
    first, second = (prepare(tmp_path / name, clips, shard_mib=0.03) for name in ("one", "two"))
    tars = sorted((tmp_path / "one/train-shards").glob("*.tar"))
    assert [path.read_bytes() for path in tars] == [
        path.read_bytes() for path in sorted((tmp_path / "two/train-shards").glob("*.tar"))
    ]
    times = [path.stat().st_mtime_ns for path in tars]
    tars[1].unlink()
    tars[2].write_bytes(tars[2].read_bytes()[:1000])  # as if cut off
    again = prepare(tmp_path / "one", clips, shard_mib=0.03)
    assert [clip.byte_range for clip in again] == [clip.byte_range for clip in second] == [c.byte_range for c in first]
    now = [path.stat().st_mtime_ns for path in tars]
    assert [a == b for a, b in zip(times, now, strict=True)] == [i not in (1, 2) for i in range(len(tars))]
    fewer = prepare(tmp_path / "one", clips[:3], shard_mib=0.03)
    assert len(fewer) == 3
    assert len(list((tmp_path / "one/train-shards").glob("*.tar"))) == len({clip.audio_path for clip in fewer})


def test_a_part_of_a_float_file_keeps_24_bits(tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    row = {"audio_filepath": str(tmp_path / "a.wav"), "id": "a", "offset": 0.5, "duration": 0.25}
    [clip] = prepare(tmp_path / "out", [row])
    found = audio.load(clip.audio_path, byte_range=clip.byte_range, sample_rate=RATE)
    np.testing.assert_allclose(found, samples[4000:6000], atol=2**-22)


def test_clips_that_break_when_packed_are_left_out(tmp_path, clips):
    job = Preparation(tmp_path / "out", Options(shards=True))
    rows = job.measure(clips)
    broken = tmp_path / "in/a 4.flac"
    broken.write_bytes(broken.read_bytes()[:60])
    counts = job.write({"train": rows})
    assert counts == {"train": 10, "left_out": 1}
    assert len(Manifest(tmp_path / "out/train.jsonl")) == 10


def test_one_channel_of_a_file_is_packed_alone(tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, (RATE, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    rows = [{"audio_filepath": str(tmp_path / "a.wav"), "id": str(i), "channel": i} for i in range(2)]
    for i, clip in enumerate(prepare(tmp_path / "out", rows)):
        found = audio.load(clip.audio_path, byte_range=clip.byte_range, sample_rate=RATE, channel=clip.channel)
        np.testing.assert_array_equal(found, samples[:, i] / 2**15)


def test_the_plan_fills_shards_in_order(tmp_path):
    rows = [{"audio_filepath": "/none/a.wav", "id": str(i), "offset": 1.0, "duration": 1.0} for i in range(7)]
    # A second without a file to look at counts 24,000 bytes.
    plan = shards.plan(tmp_path, "train", rows, shard_bytes=72_000)
    assert [[row["id"] for row in shard.rows] for shard in plan] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [shard.first for shard in plan] == [0, 3, 6]
