"""HuBERT's labels reach the right frames, and it says so when they do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from speechssl.data.frame_labels import write_labels
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder
from speechssl.objectives.hubert import HubertObjective

LENGTHS = [16_000, 9_999, 3_000]


@pytest.fixture
def build(small_config, make_batch, tmp_path):
    """`build(**options)`: encoder, objective with stored labels, batch and its labels."""

    def make(**options):
        torch.manual_seed(0)
        encoder = Encoder(small_config()).eval()
        values = {
            "num_clusters": 6,
            "labels": None,
            "cluster_hours": 1.0,
            "logits": "linear",
            "final_size": 8,
            "temperature": 0.1,
            "unmasked_weight": 0.0,
            "mask_start_probability": 0.1,
            "mask_span": 5,
            "mask_min_spans": 1,
            "feature_gradient_scale": 0.0,
        }
        objective = HubertObjective(encoder.config, **values | options).eval()
        batch = make_batch(LENGTHS)
        random = np.random.default_rng(0)
        labels = [random.integers(6, size=encoder.config.num_frames(n)) for n in LENGTHS]
        write_labels(
            tmp_path / "labels",
            info={"source": "mfcc", "hop": 320, "sample_rate": 16_000},
            centroids=np.zeros((6, 39)),
            clips=zip(batch.utterances, labels, strict=True),
        )
        return encoder, objective, batch, torch.from_numpy(np.concatenate(labels))

    return make


def test_loss_is_the_cross_entropy_with_the_stored_labels(build, tmp_path):
    encoder, objective, batch, labels = build()
    objective.open(tmp_path / "labels")
    found = objective(encoder, batch).terms["masked"]
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    from speechssl.objectives.common import draw_masks

    mask = torch.cat(draw_masks(batch, frame_lengths, objective.mask_options))
    hidden = encoder.contextualize(encoder.feature_norm(features), frame_lengths, mask=mask).packed[-1]
    logits = hidden @ objective.head.projection.weight.T + objective.head.projection.bias
    expected = F.cross_entropy(logits[mask], labels[mask], reduction="sum")
    torch.testing.assert_close(found.sum, expected)
    assert found.count == int(mask.sum()) == objective.counts(batch, frame_lengths)["masked"] > 0


def test_a_crop_takes_the_labels_from_where_it_begins(build, tmp_path):
    encoder, objective, batch, labels = build()
    objective.open(tmp_path / "labels")
    count = encoder.config.num_frames(LENGTHS[0])
    crop = replace(
        batch,
        waveforms=batch.waveforms[:1, :6000],
        lengths=torch.tensor([6000]),
        seeds=batch.seeds[:1],
        utterances=batch.utterances[:1],
        starts_s=[0.405],  # 20.25 frames
    )
    assert objective.labels(crop, [18]).tolist() == labels[:count][20:38].tolist()


def test_labels_that_do_not_fit_are_one_sentence(build, tmp_path):
    encoder, objective, batch, _ = build()
    with pytest.raises(UserError, match="no labels to predict"):
        objective(encoder, batch)
    with pytest.raises(UserError, match="holds no labels of frames"):
        objective.open(tmp_path)
    other = HubertObjective(
        encoder.config,
        num_clusters=7,
        labels=None,
        cluster_hours=1.0,
        logits="cosine",
        final_size=8,
        temperature=0.1,
        unmasked_weight=0.0,
        mask_start_probability=0.1,
        mask_span=5,
        mask_min_spans=1,
        feature_gradient_scale=0.0,
    )
    with pytest.raises(UserError, match=r"objective.num_clusters=6"):
        other.open(tmp_path / "labels")
    objective.open(tmp_path / "labels")
    stranger = replace(batch, utterances=[replace(u, id="x") for u in batch.utterances])
    with pytest.raises(UserError, match="has no labels for the clip x"):
        objective(encoder, stranger)
    with pytest.raises(UserError, match="has 49 labels for the clip 0, but it has frames up to 59"):
        objective.stored(batch.utterances[0], 0.2, 49)
