"""Stored labels come back, in one byte each where that is enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechssl.data.frame_labels import FrameLabels, write_labels
from speechssl.types import Utterance


@pytest.mark.parametrize(("num_clusters", "size"), [(256, 1), (257, 2)])
def test_labels_come_back(tmp_path, num_clusters, size):
    random = np.random.default_rng(0)
    clips = [(Utterance(str(i), Path(f"{i}.wav"), 1.0), random.integers(num_clusters, size=20 + i)) for i in range(50)]
    centroids = random.normal(size=(num_clusters, 3))
    write_labels(tmp_path / "x", info={"hop": 320, "sample_rate": 16_000}, centroids=centroids, clips=iter(clips))
    found = FrameLabels(tmp_path / "x")
    assert found.labels.dtype.itemsize == size
    assert (found.info["num_clips"], found.info["num_frames"]) == (50, sum(20 + i for i in range(50)))
    for utterance, labels in clips:
        assert found(utterance, 0.0, len(labels)).tolist() == labels.tolist()
        assert found(utterance, 0.1, 10).tolist() == labels[5:15].tolist()
    # Rounding may ask for a frame behind the last.
    assert found(clips[0][0], 0.0, 21).tolist() == [*clips[0][1], clips[0][1][-1]]


def test_clips_with_one_id_in_two_manifests_are_told_apart(tmp_path):
    train, valid = Utterance("1", Path("train/1.wav"), 1.0), Utterance("1", Path("valid/1.wav"), 1.2)
    moved = Utterance("1", Path("elsewhere/1.wav"), 1.2)
    clips = [(train, np.array([0, 0])), (valid, np.array([1, 1]))]
    write_labels(tmp_path / "x", info={"hop": 320, "sample_rate": 16_000}, centroids=np.zeros((2, 3)), clips=clips)
    found = FrameLabels(tmp_path / "x")
    assert (found(train, 0.0, 2).tolist(), found(moved, 0.0, 2).tolist()) == ([0, 0], [1, 1])
