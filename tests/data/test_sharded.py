"""Training from tar shards: the same batches as any number of ranks and workers, resumed exactly, from anywhere."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch

from speechssl import audio
from speechssl.corpora.preparing import Options, Preparation
from speechssl.data.loader import BatchLoader
from speechssl.manifest import Manifest, ManifestSet

OPTIONS = {"sample_rate": 16_000, "normalize": False, "min_samples": 400, "batch_seconds": 1.5, "seed": 0}


@pytest.fixture
def packed(tmp_path, write_corpus):
    """Twenty-three clips in shards of about five, and the manifest that they were packed from."""
    source = Manifest(write_corpus(seconds=[0.3 + 0.01 * i for i in range(23)]))
    rows = [{**clip.fields, "audio_filepath": str(clip.audio_path)} for clip in source]
    Preparation(tmp_path / "out", Options(shards=True, shard_mib=0.06)).write({"train": rows})
    return Manifest(tmp_path / "out/train.jsonl"), source


def loader(manifest, **options):
    return BatchLoader(manifest, shuffle_buffer=8, **OPTIONS | options)


def ids(batches):
    return [[utterance.id for utterance in batch.utterances] for batch in batches]


def test_every_clip_once_an_epoch_for_ranks_and_workers(packed):
    shards, _ = packed
    assert len({clip.audio_path for clip in shards}) > 3
    alone = ids(islice(loader(shards).stream(), 24))
    an_epoch = len(loader(shards).sampler.epoch(0))
    assert sorted(chain.from_iterable(alone[:an_epoch]), key=int) == [str(i) for i in range(23)]
    for world_size, num_workers in ((2, 0), (3, 2), (8, 1)):
        for rank in range(world_size):
            own = loader(shards, num_workers=num_workers, rank=rank, world_size=world_size)
            assert ids(islice(own.stream(), 24 // world_size)) == alone[rank::world_size]


def test_a_resumed_run_has_the_same_batches(packed):
    whole = list(islice(loader(packed[0]).stream(), 12))
    for position in (1, 3, 7):
        resumed = loader(packed[0], num_workers=position % 2)
        resumed.position = position
        for batch, expected in zip(islice(resumed.stream(), 12 - position), whole[position:], strict=True):
            assert torch.equal(batch.waveforms, expected.waveforms) and batch.seeds == expected.seeds


def test_packing_changes_no_clip(packed):
    shards, source = packed
    for clip, original in zip(shards, source, strict=True):
        assert torch.equal(audio.load(clip.audio_path, byte_range=clip.byte_range), audio.load(original.audio_path))
        assert (clip.id, clip.text, clip.speaker) == (original.id, original.text, original.speaker)


def test_shards_are_read_from_a_url(packed, tmp_path):
    import fsspec

    shards, _ = packed
    memory = fsspec.filesystem("memory")
    lines = (tmp_path / "out/train.jsonl").read_text().replace("train-shards/", "memory://bucket/")
    for path in (tmp_path / "out/train-shards").glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    (tmp_path / "remote.jsonl").write_text(lines)
    remote = Manifest(tmp_path / "remote.jsonl")
    remote.check_files()
    for batch, expected in zip(islice(loader(remote).stream(), 6), islice(loader(shards).stream(), 6), strict=True):
        assert torch.equal(batch.waveforms, expected.waveforms)
    url = remote[0].audio_path
    memory.rm(url)
    with pytest.raises(audio.AudioError, match=f"{url}: cannot be read"):
        audio.load(url, byte_range=remote[0].byte_range)
    with pytest.raises(audio.AudioError, match="fsspec has no driver for it"):
        audio.load("nowhere://a.tar", byte_range=(0, 9))
    memory.pipe("/bucket/whole.wav", (tmp_path / "train/0.wav").read_bytes())
    assert torch.equal(audio.load("memory://bucket/whole.wav"), audio.load(tmp_path / "train/0.wav"))


def test_a_shard_that_was_cut_off_is_named(packed):
    clip = packed[0][22]
    clip.audio_path.write_bytes(clip.audio_path.read_bytes()[: clip.byte_range[0] + 50])
    with pytest.raises(audio.AudioError, match="ends within the audio at byte"):
        audio.load(clip.audio_path, byte_range=clip.byte_range)


def test_shards_and_files_are_mixed(packed):
    both = ManifestSet(list(packed))
    batches = ids(islice(loader(both, mix_temperature=2.0).stream(), 20))
    assert {clip for batch in batches for clip in batch} == {str(i) for i in range(23)}
    assert sum(map(len, ids(loader(both).once()))) == 46
