"""The classifier of clips: pooling by hand, labels, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.errors import UserError
from speechssl.heads.speaker import ClassifyObjective
from speechssl.models.encoder import Encoder
from speechssl.types import Utterance


@pytest.fixture
def build(small_config):
    """`build(**options)`: a small encoder and a classifier of ann, bob and cid."""

    def make(**options):
        torch.manual_seed(0)
        encoder = Encoder(small_config())
        defaults = {
            "labels": ["ann", "bob", "cid"],
            "label": "speaker",
            "dropout": 0.0,
            "freeze_feature_encoder": True,
            "freeze_encoder": 0.0,
        }
        return encoder.eval(), ClassifyObjective(encoder.config, **defaults | options).eval()

    return make


@pytest.fixture
def batch(make_batch):
    """Three clips, the second of one frame, by bob, ann and cid."""
    return make_batch([10_000, 400, 8_000], targets=[torch.tensor([i]) for i in (1, 0, 2)])


def utterance(tmp_path, **fields):
    return Utterance("a", tmp_path / "a.wav", 1.0, fields=fields)


def test_embeddings_are_mean_and_deviation_of_each_clips_own_frames(build, batch):
    """Equal weights of the layers at the start; then LayerNorm, whose gain is 1 and bias 0."""
    encoder, objective = build()
    output = encoder(batch.waveforms, batch.lengths)
    ours = objective.embed(output).detach().numpy()
    layers = np.mean([x.detach().double().numpy() for x in output.packed], axis=0)
    for embedding, clip in zip(ours, np.split(layers, np.cumsum(output.frame_lengths)[:-1]), strict=True):
        pooled = np.concatenate([clip.mean(0), np.sqrt(clip.var(0) + 1e-5)])
        expected = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5)
        np.testing.assert_allclose(embedding, expected, rtol=1e-3, atol=1e-4)


def test_loss_is_cross_entropy_of_the_clips(build, batch):
    encoder, objective = build()
    output = objective(encoder, batch)
    logits = objective.classify(objective.embed(encoder(batch.waveforms, batch.lengths)))
    probabilities = logits.softmax(-1)[torch.arange(3), torch.tensor([1, 0, 2])]
    term = output.terms["cross_entropy"]
    assert term.sum.item() == pytest.approx(-probabilities.log().sum().item(), rel=1e-5)
    assert term.count == objective.counts(batch, [31, 1, 24])["cross_entropy"] == 3
    right = logits.argmax(-1) == torch.tensor([1, 0, 2])
    assert (float(output.metrics["accuracy"][0]), output.metrics["accuracy"][1]) == (int(right.sum()), 3)


def test_what_is_frozen_gets_no_gradient(build, batch):
    for frozen, expected in ((False, {"feature_norm", "projection", "context"}), (True, set())):
        encoder, objective = build(freeze_encoder=float(frozen))
        objective.begin_step(1, 10)
        objective(encoder, batch).terms["cross_entropy"].sum.backward()
        assert {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None} == expected
        assert all(p.grad is not None for p in objective.parameters())


def test_labels_are_the_columns_values_sorted(build, tmp_path):
    utterances = [utterance(tmp_path, digit=digit) for digit in (3, "x", 3, 10, None)]
    assert ClassifyObjective.data_options(utterances, label="digit", dropout=0.1)["labels"] == ["10", "3", "x"]
    with pytest.raises(UserError, match=r"1 different values of 'digit'.*needs two"):
        ClassifyObjective.data_options(utterances[:1], label="digit")
    _, objective = build(labels=["10", "3", "x"], label="digit")
    assert objective.target(utterances[0]).tolist() == [1]


def test_fifty_milliseconds_are_no_voice(build, tmp_path):
    _, objective = build()
    clip = Utterance("a", tmp_path / "a.wav", 0.05, fields={"speaker": "bob"})
    assert objective.check(clip, 2) == "its 0.050 s are too short for a voice"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"speaker": "bob"}, None),
        ({"speaker": None}, "it has no 'speaker'"),
        ({}, "it has no 'speaker'"),
        ({"speaker": ""}, "it has no 'speaker'"),
        ({"speaker": "dan"}, "its speaker 'dan' does not occur in the training manifest"),
    ],
)
def test_clips_that_cannot_be_trained_on(build, tmp_path, fields, reason):
    _, objective = build()
    assert objective.check(utterance(tmp_path, **fields), 50) == reason


EVERY_PART = {
    "layers": "last",
    "projection_size": 12,
    "tdnn": [10, 10, 10, 10, 14],
    "pooling": "attentive",
    "embedding_size": 5,
    "loss": "aam_softmax",
    "sub_centres": 2,
}


@pytest.mark.parametrize(
    "options",
    [EVERY_PART, {"pooling": "mean", "projection_size": 7, "norm": False}, {"loss": "am_softmax", "embedding_size": 9}],
)
def test_every_part_learns_and_no_clip_hears_another(build, batch, options):
    encoder, objective = build(**options)
    objective.train()
    objective(encoder, batch).terms["cross_entropy"].sum.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    objective.eval()
    together = objective.embed(encoder(batch.waveforms, batch.lengths))
    assert together.shape == (3, objective.embedding_size)
    for i, length in enumerate(batch.lengths):
        alone = objective.embed(encoder(batch.waveforms[i : i + 1, :length], length[None]))
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)


def test_the_margin_rises_and_is_for_training_only(build, batch):
    encoder, objective = build(loss="aam_softmax", margin=0.3, margin_warmup=0.5)
    margins = []
    for step in (1, 25, 50, 51, 100):
        objective.begin_step(step, 100)
        margins.append(objective.margin)
    assert margins == pytest.approx([0.006, 0.15, 0.3, 0.3, 0.3])
    without = objective(encoder, batch).terms["cross_entropy"].sum.item()
    logits = objective.classify(objective.embed(encoder(batch.waveforms, batch.lengths)))
    target = torch.tensor([1, 0, 2])
    assert without == pytest.approx(torch.nn.functional.cross_entropy(logits, target, reduction="sum").item(), rel=1e-5)
    objective.train()
    assert objective(encoder, batch).terms["cross_entropy"].sum.item() > without
    objective.full_margin, objective.margin_warmup = 0.3, 0.0
    objective.begin_step(1, 100)
    assert objective.margin == 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "max"}, "task.pooling=max must be mean, statistics or attentive"),
        ({"layers": "first"}, "task.layers=first"),
        ({"loss": "hinge"}, "task.loss=hinge"),
        ({"tdnn": [8] * 6}, "at most five"),
        ({"sub_centres": 0}, "task.sub_centres=0"),
        ({"loss": "aam_softmax", "scale": 0.0}, "task.scale=0 must be more than 0"),
        ({"loss": "am_softmax", "margin": -5.0}, "task.margin=-5 must be from 0 to 1"),
    ],
)
def test_what_does_not_exist_is_one_sentence(build, options, words):
    with pytest.raises(UserError, match=words):
        build(**options)


def test_a_frozen_encoder_drops_nothing(small_config, build, batch):
    """As at the test; the same encoder that trains does."""
    torch.manual_seed(0)
    encoder = Encoder(small_config(dropout=0.5))
    _, objective = build(freeze_encoder=0.5)
    objective.train()

    def losses(step):
        objective.begin_step(step, 100)
        encoder.train()
        return [objective(encoder, batch).terms["cross_entropy"].sum.item() for _ in range(2)]

    frozen, trained = losses(1), losses(100)
    assert frozen[0] == frozen[1] and trained[0] != trained[1]


def test_a_class_of_too_short_clips_is_one_sentence(tmp_path):
    clips = [utterance(tmp_path, speaker=name) for name in ("ann", "bob")]
    clips.append(Utterance("b", tmp_path / "b.wav", 0.05, fields={"speaker": "cid"}))
    with pytest.raises(UserError, match="speaker 'cid' has no clip of"):
        ClassifyObjective.data_options(clips, label="speaker")
    assert ClassifyObjective.data_options(clips[:2], label="speaker") == {"labels": ["ann", "bob"]}
