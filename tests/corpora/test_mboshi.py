"""speechssl.corpora.mboshi: dev is the test, accents stay, a sentence is in one split only, few labels."""

import unicodedata

import pytest

from speechssl.corpora import mboshi
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

SUFFIX = ".mb.cleaned"


def test_layout_transcripts_and_splits(tmp_path, write_clip, read_manifest):
    decomposed = unicodedata.normalize("NFD", "kyéma  yeékirá\n")
    write_clip(tmp_path / "in/dev/martial_2015_1.wav", text=decomposed, suffix=SUFFIX)
    for i in range(150):
        write_clip(tmp_path / f"in/train/ann_{i}.wav", seconds=0.5, text=f"mbωngέ {i % 60}", suffix=SUFFIX)
    write_clip(tmp_path / "in/train/ann_untranscribed.flac")
    counts = mboshi.prepare(tmp_path / "in", Preparation(tmp_path / "out"), labels_minutes=[0.25, 0.5])
    train, valid, test = (read_manifest(tmp_path / f"out/{name}.jsonl") for name in ("train", "valid", "test"))
    assert counts["train"] + counts["valid"] == 151
    [clip] = test.values()
    assert (clip.id, clip.speaker, clip.text) == ("martial_2015_1", "martial", "kyéma yeékirá")
    assert len(clip.text) == 13  # composed: one code point for each accented letter
    assert {clip.speaker for clip in train.values()} == {"ann"}
    assert valid
    assert not {clip.text for clip in valid.values()} & {clip.text for clip in train.values()}
    assert train["ann_untranscribed"].text is None
    few, more = (read_manifest(tmp_path / f"out/train_{minutes}min.jsonl") for minutes in (0.25, 0.5))
    assert (len(few), len(more)) == (30, 60)  # 15 s and 30 s of half a second each
    assert set(few) < set(more) < set(train)
    assert "ann_untranscribed" not in more


def test_wrong_root_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.root .*train and dev .*\.mb\.cleaned"):
        mboshi.prepare(tmp_path, Preparation(tmp_path / "out"))


def test_real_recordings(tmp_path, unpack, read_manifest):
    root = unpack("mboshi.tar.gz", lambda name: "/dev/martial" in name or "/train/kouarata" in name)
    counts = mboshi.prepare(root, Preparation(tmp_path / "out"), labels_minutes=[1])
    assert counts["left_out"] == 0
    assert counts["valid"] < 0.1 * counts["train"]
    texts = [clip.text for clip in read_manifest(tmp_path / "out/train.jsonl").values()]
    assert all(text == unicodedata.normalize("NFC", text) for text in texts)
    assert set("áéíóύώεωɔ") & set("".join(texts))  # tones are there
    few = read_manifest(tmp_path / "out/train_1min.jsonl").values()
    assert 60 <= sum(clip.duration_s for clip in few) < 75
