"""Manifest to batches: what is refused before a run, what is skipped in it, and when it stops."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch

from speechssl.data.loader import BatchLoader
from speechssl.errors import UserError
from speechssl.manifest import Manifest


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
