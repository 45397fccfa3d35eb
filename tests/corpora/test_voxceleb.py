"""VoxCeleb's verification list, small; its other layout is in test_readers."""

from __future__ import annotations

import json

import pytest
import torch

from speechssl.corpora.preparing import Preparation
from speechssl.corpora.voxceleb import prepare
from speechssl.errors import UserError

TRIALS = "veri_test.txt"


@pytest.fixture
def root(tmp_path, audio_tools):
    """Four speakers, two videos of two clips each; id4 and id3 are in the trials."""
    folder = tmp_path / "voxceleb1"
    for i in range(1, 5):
        for video in ("aaa", "bbb"):
            for number in (1, 2):
                audio_tools.save(folder / "wav" / f"id{i}" / video / f"0000{number}.wav", torch.zeros(8000) + 0.1)
    trials = ["1 id4/aaa/00001.wav id4/bbb/00002.wav", "0 id4/aaa/00001.wav id3/bbb/00001.wav"]
    (folder / TRIALS).write_text("\n".join(trials) + "\n")
    return folder


def ids(folder, name):
    path = folder / f"{name}.jsonl"
    return {json.loads(line)["id"]: json.loads(line)["speaker"] for line in path.read_text().splitlines()}


def test_verification_trains_on_nobody_in_the_trials(root, tmp_path):
    counts = prepare(root, Preparation(tmp_path / "out"), valid_share=0.2, trial_list=TRIALS)
    assert ids(tmp_path / "out", "test") == {
        "id4/aaa/00001.wav": "id4",
        "id4/bbb/00002.wav": "id4",
        "id3/bbb/00001.wav": "id3",
    }
    trained = ids(tmp_path / "out", "train") | ids(tmp_path / "out", "valid")
    assert set(trained.values()) == {"id1", "id2"} and len(trained) == 8 and counts["left_out"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 id4/aaa/00001.wav id9/aaa/00001.wav", "veri_test.txt:1: there is no clip id9"),
        ("same id4/aaa/00001.wav", "veri_test.txt:1: is not"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_sentence(root, tmp_path, text, words):
    (root / TRIALS).write_text(text + "\n")
    with pytest.raises(UserError) as error:
        prepare(root, Preparation(tmp_path / "out"), trial_list=TRIALS)
    assert words in str(error.value)
