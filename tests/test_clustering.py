"""Streamed k-means finds clusters that are there; long clips are labelled in pieces as if whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl import clustering
from speechssl.clustering import FrameFeatures, fit, nearest
from speechssl.errors import UserError


def blobs(num=4000):
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    which = torch.randint(4, (num,), generator=generator)
    return centres, which, centres[which] + torch.randn(num, 2, generator=generator)


def test_clusters_are_found_from_a_stream():
    centres, which, points = blobs()
    found = fit(iter(points.split(97)), 4, seed=0)
    order = torch.cdist(centres, found).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(found[order], centres, rtol=0, atol=0.15)
    labels, distances = nearest(points, found)
    assert (labels == order[which].numpy()).mean() > 0.999
    expected = np.square(points.numpy()[:, None] - found.numpy()[None]).sum(-1).min(1)
    assert distances == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert torch.equal(fit(iter(points.split(97)), 4, seed=0), found)


def test_too_few_frames_are_one_sentence():
    with pytest.raises(UserError, match="3 frames are too few for 4 clusters"):
        fit(iter([torch.zeros(3, 2)]), 4, seed=0)


def test_pieces_of_a_long_clip_have_the_frames_of_the_whole(small_config, make_batch, monkeypatch):
    features = FrameFeatures(
        "mfcc", layer=-1, encoder=small_config(), sample_rate=16_000, normalize=False, device="cpu"
    )
    batch = make_batch([30_000, 400], padding=float("nan"))
    whole = features(batch)
    monkeypatch.setattr(clustering, "PIECE", 20)
    pieces = features(batch)
    assert [len(x) for x in pieces] == [len(x) for x in whole] == [93, 1]
    torch.testing.assert_close(pieces[0][:, :13], whole[0][:, :13], rtol=1e-4, atol=1e-3)  # but for differences
