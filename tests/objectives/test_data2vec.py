"""data2vec's targets against transformers' layers, its loss by hand, and what visible frames alone change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from speechssl.models.encoder import Encoder
from speechssl.objectives.common import hidden_frames
from speechssl.objectives.data2vec import Data2VecObjective

LENGTHS = [12_000, 9_000, 7_600]
OPTIONS = {
    "top_layers": 2,
    "num_masks": 1,
    "decoder_layers": 0,
    "decoder_size": 32,
    "teacher_memory": (0.01, 0.1),
    "teacher_anneal": 0.1,
    "mask_start_probability": 0.065,
    "mask_span": 5,
    "mask_min_spans": 2,
    "feature_gradient_scale": 1.0,
}


@pytest.fixture
def build(small_config):
    """`build(**options)`: encoder and objective, the teacher equal to the student."""

    def make(**options):
        torch.manual_seed(0)
        encoder = Encoder(small_config(num_layers=3))
        objective = Data2VecObjective(encoder.config, **OPTIONS | options)
        objective.begin_step(1, 100)
        objective.teacher.follow(encoder.context)
        return encoder.eval(), objective.eval()

    return make


def test_targets_are_those_of_transformers_layers(build, make_batch, transformers_weights, small_config):
    encoder, objective = build()
    config = encoder.config
    theirs = Wav2Vec2Model(
        Wav2Vec2Config(
            conv_dim=config.conv_channels,
            conv_kernel=config.conv_kernels,
            conv_stride=config.conv_strides,
            conv_bias=False,
            hidden_size=config.hidden_size,
            num_hidden_layers=3,
            num_attention_heads=config.num_heads,
            intermediate_size=config.feed_forward_size,
            num_conv_pos_embeddings=config.position_kernel,
            num_conv_pos_embedding_groups=config.position_groups,
        )
    ).eval()
    ours = nn.ModuleDict({"encoder": encoder})
    ours.load_state_dict(transformers_weights(theirs.state_dict()))
    objective.begin_step(1, 100)
    objective.teacher.started.fill_(False)
    objective.teacher.follow(encoder.context)
    found = []
    for layer in theirs.encoder.layers[1:]:
        layer.feed_forward.output_dense.register_forward_hook(lambda _m, _i, output: found.append(output))
    batch = make_batch(LENGTHS)
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    targets = objective.targets(encoder, encoder.feature_norm(features), frame_lengths)
    for clip, n, target in zip(batch.waveforms, LENGTHS, targets.split(frame_lengths), strict=True):
        found.clear()
        with torch.no_grad():
            theirs(clip[None, :n])
        expected = sum(F.instance_norm(x.transpose(1, 2)) for x in found) / 2
        torch.testing.assert_close(target, expected[0].T, rtol=1e-3, atol=1e-4)


def test_loss_is_the_squared_error_at_masked_frames(build, make_batch):
    encoder, objective = build(num_masks=2)
    batch = make_batch(LENGTHS)
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    normed = encoder.feature_norm(features)
    targets = objective.targets(encoder, normed, frame_lengths)
    expected, count = 0.0, 0
    for mask in objective._masks(batch, frame_lengths):
        hidden = encoder.contextualize(normed, frame_lengths, mask=mask).packed[-1]
        error = (objective.regression(hidden[mask]) - targets[mask]).square()
        expected, count = expected + error.sum() / 16**0.5, count + int(mask.sum())
    found = objective(encoder, batch).terms["regression"]
    torch.testing.assert_close(found.sum, expected)
    assert found.count == count
    found.sum.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def fill_in(encoder, objective, normed, frame_lengths, masks, batch):
    return hidden_frames(
        encoder, normed, frame_lengths, masks, seeds=batch.seeds, decoder=objective.decoder, generator=None
    )


def test_hidden_frames_do_not_reach_the_layers(build, make_batch):
    """With a decoder the layers see as many frames as are visible, and never those that are hidden."""
    encoder, objective = build(num_masks=2, decoder_layers=2)
    batch = make_batch(LENGTHS)
    seen = []
    encoder.context.layers[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    masks = objective._masks(batch, frame_lengths)
    normed = encoder.feature_norm(features)
    frames, filled = fill_in(encoder, objective, normed, frame_lengths, masks, batch)
    assert len(frames) == int((~masks).sum())
    assert len(filled) % 64 == 0
    changed = torch.where(masks[0][:, None], 9.0, normed)
    first = int((~masks[0]).sum())
    again, _ = fill_in(encoder, objective, changed, frame_lengths, masks, batch)
    torch.testing.assert_close(again[:first], frames[:first])
    assert sum(len(x) for x in seen) % 64 == 0


def test_every_clip_keeps_a_visible_frame(build, make_batch):
    encoder, objective = build(decoder_layers=2, mask_start_probability=0.9, mask_span=5, num_masks=20)
    batch = make_batch([2_000, 3_600])  # of 6 and 11 frames
    masks = objective._masks(batch, [5, 10])
    assert not masks[:, :5].all(1).any()
    assert not masks[:, 5:].all(1).any()
    assert objective(encoder, batch).terms["regression"].sum.isfinite()


@pytest.mark.parametrize("decoder_layers", [0, 1])
def test_the_teacher_drops_nothing_in_training(build, make_batch, decoder_layers):
    encoder, objective = build(decoder_layers=decoder_layers)
    batch = make_batch(LENGTHS)
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    still = objective.targets(encoder, features, frame_lengths)
    for part in (encoder, objective):
        part.train()
    encoder.config = replace(encoder.config, projection_dropout=0.5)
    torch.testing.assert_close(objective.targets(encoder, features, frame_lengths), still)
