"""Manifest to batches: what is refused before a run, what is skipped in it, and when it stops."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, islice

import pytest
import torch

from speechssl.data.loader import BatchLoader
from speechssl.errors import UserError
from speechssl.manifest import Manifest, ManifestSet


@pytest.fixture
def build(write_corpus):
    """`build(seconds=…, broken=…, **options)`: a loader of tones; the files of the clips in `broken` are cut off."""

    def make(seconds=(0.5, 0.6, 0.4, 0.8), broken=(), **options):
        manifest = Manifest(write_corpus(seconds=seconds))
        for index in broken:
            path = manifest[index].audio_path
            path.write_bytes(path.read_bytes()[:100])
        defaults = {"sample_rate": 16_000, "normalize": False, "min_samples": 400, "batch_seconds": 1.0, "seed": 0}
        return BatchLoader(manifest, **defaults | options)

    return make


def ids(batches):
    """Of the clips, a list a batch."""
    return [[utterance.id for utterance in batch.utterances] for batch in batches]


def flat(batches):
    return list(chain.from_iterable(ids(batches)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_stream_goes_on_from_its_position(build, num_workers):
    whole = ids(islice(build().stream(), 12))
    loader = build(num_workers=num_workers)
    first = ids(islice(loader.stream(), 5))
    assert loader.position == 5  # what was handed out, not what was read ahead
    later = build(num_workers=num_workers)
    later.position = 5
    assert first + ids(islice(later.stream(), 7)) == whole


def test_one_pass_has_every_clip_once_in_the_same_order(build):
    loader = build(shuffle=False)
    first = flat(loader.once())
    assert sorted(first) == ["0", "1", "2", "3"]
    assert flat(loader.once()) == first


def test_clips_shorter_than_the_receptive_field_are_refused_by_name(build):
    seconds = (0.5, 0.02, 0.6, 0.01)
    with pytest.raises(UserError, match=r"2 of the 4 clips in .*train\.jsonl .*/1\.wav.* 0\.0200 s .* 0\.0250 s"):
        build(seconds=seconds)
    assert build(seconds=seconds, skip_invalid=True).usable.tolist() == [0, 2]
    assert build(seconds=(0.025, 0.5)).usable.tolist() == [0, 1]  # just long enough


def test_clips_that_fail_a_check_are_refused_or_left_out(build, caplog):
    def check(utterance):
        return "it is the second" if utterance.id == "1" else None

    with pytest.raises(UserError, match=r"1 of the 4 clips .*/1\.wav: it is the second"):
        build(check=check)
    assert sorted(flat(build(check=check, skip_invalid=True).once())) == ["0", "2", "3"]
    assert "it is the second; left out" in caplog.text


def test_no_clip_left_is_refused(build):
    with pytest.raises(UserError, match=r"no clip is left in .*train\.jsonl"):
        build(check=lambda utterance: "no", skip_invalid=True)


def test_broken_clips_are_named_counted_and_skipped_for_any_number_of_epochs(build, caplog):
    loader = build(seconds=[0.1] * 20, broken=[7], batch_seconds=1.05)
    found = flat(islice(loader.stream(), 60))  # two batches an epoch
    assert (loader.num_broken, loader.num_read) == (30, 600)
    assert len(found) == 570
    assert "7" not in found
    assert "clip 7 skipped" in caplog.text
    assert "7.wav" in caplog.text


def test_too_many_broken_clips_stop_the_run(build):
    loader = build(seconds=[0.1] * 20, broken=[3, 4, 5])
    with pytest.raises(UserError, match=r"3 of the \d+ clips read so far are broken.*\.wav.*data\.max_broken_share"):
        list(islice(loader.stream(), 60))
    assert len(list(islice(build(seconds=[0.1] * 20, broken=[3, 4, 5], max_broken_share=0.2).stream(), 60))) == 60


def test_a_single_broken_clip_may_be_too_many(build):
    with pytest.raises(UserError, match=r"1 of the"):
        list(build(broken=[0], max_broken_share=0.0).once())


def test_cropped_clips_fill_batches_by_what_is_left_of_them(build):
    loader = build(seconds=[2.0] * 6, max_clip_s=0.5, batch_seconds=1.5)
    batches = list(islice(loader.stream(), 2))
    assert [batch.lengths.tolist() for batch in batches] == [[8_000] * 3] * 2


def test_labels_come_with_their_clips(build):
    loader = build(encode=lambda utterance: torch.tensor([int(utterance.id)]))
    for batch in loader.once():
        assert [int(target) for target in batch.targets] == [int(utterance.id) for utterance in batch.utterances]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_of_workers_are_those_read_here_and_stay_so(build, num_workers):
    # More batches than a worker reads ahead; one clip fits into no slot, one is broken and moves those after it.
    options = {"seconds": [0.2, 0.35, 0.5, 0.55, 0.3, 2.0, 0.25], "broken": [2], "max_broken_share": 1.0}
    options["encode"] = lambda utterance: torch.tensor([int(utterance.id), 7])
    here = list(islice(build(**options).stream(), 30))
    sent = list(islice(build(**options, num_workers=num_workers).stream(), 30))
    assert max(batch.waveforms.numel() for batch in here) == 32_000
    for one, other in zip(here, sent, strict=True):
        assert torch.equal(one.waveforms, other.waveforms)
        assert torch.equal(one.lengths, other.lengths)
        assert [target.tolist() for target in one.targets] == [target.tolist() for target in other.targets]


def test_a_script_ends_while_a_stream_of_workers_is_open(write_corpus):
    script = """if True:
        import sys
        from speechssl.data.loader import BatchLoader
        from speechssl.manifest import Manifest
        options = {"sample_rate": 16_000, "normalize": False, "min_samples": 400, "batch_seconds": 1.0, "seed": 0}
        stream = BatchLoader(Manifest(sys.argv[1]), num_workers=1, **options).stream()
        kept = [stream]
        kept.append(kept)
        print(next(stream).waveforms.ndim)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(write_corpus())], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "2\n"


def test_ranks_and_workers_take_every_clip_once(build):
    share_out(build, [(2, 2), (3, 1), (5, 0), (8, 3)])


@pytest.mark.slow  # some four hundred worker processes
@pytest.mark.parametrize("num_workers", range(5))
def test_any_number_of_ranks_and_workers_takes_every_clip_once(build, num_workers):
    share_out(build, [(world_size, num_workers) for world_size in range(1, 9)])


def share_out(build, cases):
    seconds = [0.1 + 0.01 * i for i in range(23)]
    alone = ids(islice(build(seconds=seconds).stream(), 40))
    an_epoch = len(list(build(seconds=seconds).once()))
    assert sorted(chain.from_iterable(alone[:an_epoch]), key=int) == [str(i) for i in range(23)]
    for world_size, num_workers in cases:
        for rank in range(world_size):
            loader = build(seconds=seconds, num_workers=num_workers, rank=rank, world_size=world_size)
            own = ids(islice(loader.stream(), len(alone[rank::world_size])))
            assert own == alone[rank::world_size]
        first = [
            clip
            for rank in range(world_size)
            for clip in flat(build(seconds=seconds, rank=rank, world_size=world_size).once())
        ]
        assert sorted(first, key=int) == [str(i) for i in range(23)]


def test_a_rank_goes_on_where_all_of_them_were(build):
    whole = ids(islice(build().stream(), 12))
    loader = build(rank=1, world_size=2)
    list(islice(loader.stream(), 3))
    assert loader.position == 6
    later = build(rank=0, world_size=3)  # on another number of machines
    later.position = loader.position
    assert ids(islice(later.stream(), 2)) == whole[6::3]


def test_a_transcript_is_not_trained_on_a_part_of_its_clip(build, caplog):
    options = {"seconds": [0.5, 2.0, 0.6, 3.0], "max_clip_s": 1.0, "whole_clips": True}
    with pytest.raises(UserError, match=r"2 of the 4 clips .*/1\.wav: its 2\.00 s are more than data\.max_clip_s=1"):
        build(**options)
    assert sorted(flat(build(**options, skip_invalid=True).once())) == ["0", "2"]
    assert "2 of the 4 clips" in caplog.text


def test_waiting_is_measured_and_warned_about(build, caplog):
    loader = build()
    list(islice(loader.stream(), 4))
    assert 0 < loader.waited_s < 10
    assert loader.waiting_share(1e9) < 1e-6
    for _ in range(3):
        loader.waited_s = 0.5
        assert loader.waiting_share(2.0) == 0.25
    assert "waits for audio 25 % of the time; raise data.num_workers" in caplog.text


def test_several_manifests_are_mixed(write_corpus):
    manifests = ManifestSet(
        [Manifest(write_corpus("a", seconds=[0.5] * 6)), Manifest(write_corpus("b", seconds=[0.5]))]
    )
    options = {"sample_rate": 16_000, "normalize": False, "min_samples": 400, "batch_seconds": 1.0, "seed": 0}
    loader = BatchLoader(manifests, **options, mix_temperature=1e9)
    batches = list(islice(loader.stream(), 100))
    paths = [str(utterance.audio_path) for batch in batches for utterance in batch.utterances]
    assert sum("/b/" in path for path in paths) / len(paths) == pytest.approx(0.5, abs=0.05)
    seeds = [seed for batch in batches for seed, u in zip(batch.seeds, batch.utterances, strict=True)]
    assert len(set(seeds)) > 0.9 * len(seeds)
