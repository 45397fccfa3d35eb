"""speechssl.corpora.librispeech: the official layout."""

import pytest

from speechssl.corpora import librispeech
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

CLIPS = {
    "train-clean-100": ["19-198-0000", "19-198-0001", "26-495-0000"],
    "train-clean-360": ["14-208-0000"],
    "dev-clean": ["84-121123-0000"],
    "test-clean": ["61-70968-0000"],
}


@pytest.fixture
def root(tmp_path, write_clip):
    for subset, names in CLIPS.items():
        for name in names:
            speaker, chapter, _ = name.split("-")
            folder = tmp_path / "in/LibriSpeech" / subset / speaker / chapter
            write_clip(folder / f"{name}.flac", seconds=1.5)
            with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
                file.write(f"{name} WORDS OF {name[-1]} IT'S\n")
    return tmp_path / "in"


def test_official_layout(tmp_path, root, read_manifest):
    counts = librispeech.prepare(root, Preparation(tmp_path / "out"))
    assert counts == {"train": 3, "valid": 1, "test": 1, "left_out": 0}
    train = read_manifest(tmp_path / "out/train.jsonl")
    assert list(train) == CLIPS["train-clean-100"]
    clip = train["19-198-0001"]
    assert (clip.speaker, clip.text, clip.duration_s) == ("19", "WORDS OF 1 IT'S", 1.5)
    assert list(read_manifest(tmp_path / "out/test.jsonl")) == CLIPS["test-clean"]


def test_subsets_are_chosen(tmp_path, root, read_manifest):
    counts = librispeech.prepare(
        root / "LibriSpeech",
        Preparation(tmp_path / "out"),
        train=["train-clean-100", "train-clean-360"],
        valid=[],
        test=[],
    )
    assert counts == {"train": 4, "left_out": 0}
    assert list(read_manifest(tmp_path / "out/train.jsonl"))[-1] == "14-208-0000"


def test_other_formats_and_clips_without_transcript(tmp_path, write_clip, read_manifest):
    write_clip(tmp_path / "in/dev-clean/1/2/1-2-0000.opus")
    librispeech.prepare(tmp_path / "in", Preparation(tmp_path / "out"), train=["dev-clean"], valid=[], test=[])
    assert read_manifest(tmp_path / "out/train.jsonl")["1-2-0000"].text is None


def test_missing_subset_lists_those_there_are(tmp_path, root):
    with pytest.raises(UserError, match=r"has no subset test-other; set corpus\.test to some of \[dev-clean, test-c"):
        librispeech.prepare(root, Preparation(tmp_path / "out"), test=["test-other"])
    with pytest.raises(UserError, match="other subsets of LibriSpeech in it"):
        librispeech.prepare(tmp_path, Preparation(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
