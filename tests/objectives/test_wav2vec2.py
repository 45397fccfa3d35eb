"""The wav2vec 2.0 loss against a naive one and against transformers', and its figures by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder
from speechssl.objectives.wav2vec2 import Draw, Wav2Vec2Objective, _alike

LENGTHS = [20_000, 16_000, 9_000, 3_000]  # the last has 9 frames, fewer than a span


@pytest.fixture
def build(small_config, wav2vec2_options):
    """`build(**options)`: a small encoder and objective, in evaluation mode, weights such that codes differ."""

    def make(encoder_changes=None, **options):
        torch.manual_seed(0)
        encoder = Encoder(small_config(**encoder_changes or {}))
        objective = Wav2Vec2Objective(encoder.config, **wav2vec2_options(**options))
        nn.init.normal_(objective.quantizer.codebook)
        return encoder.eval(), objective.eval()

    return make


def parts(encoder, objective, batch, draw):
    """Contexts [M, D], targets [M, D] and codes [M, G] of the masked frames, from the parts of the model."""
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    normed = encoder.feature_norm(features)
    [mask] = draw.masks
    output = encoder.contextualize(normed, frame_lengths, mask=mask)
    quantized = objective.quantizer(
        normed[mask], temperature=objective.gumbel_temperature, noise=draw.noise if objective.training else None
    )
    contexts = objective.project_context(output.packed[-1][mask])
    return contexts, objective.project_target(quantized.vectors), quantized


def naive_loss(contexts, targets, codes, draw, temperature):
    """Equation 3 with every distractor as a vector: summed loss, and the accuracy and chance of each frame."""
    loss, right, chance, start = 0.0, [], [], 0
    for masked, distractors in zip(draw.num_masked, draw.distractors.split(draw.num_masked), strict=True):
        for i in range(masked):
            candidates = [i, *(j for j in distractors[i].tolist() if (codes[start + i] != codes[start + j]).any())]
            similarity = torch.cosine_similarity(contexts[start + i], targets[[start + j for j in candidates]], dim=-1)
            loss = loss - (similarity / temperature).log_softmax(0)[0]
            right.append(bool(similarity[0] >= similarity.max()))
            chance.append(1 / len({tuple(codes[start + j].tolist()) for j in candidates}))
        start += masked
    return loss, right, chance


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_codewords", [2, 5])  # few: many distractors share the true target's codes
def test_contrastive_loss_is_that_of_a_naive_one(build, make_batch, training, num_codewords):
    encoder, objective = build(num_codewords=num_codewords, feature_gradient_scale=1.0)
    objective.train(training)
    batch = make_batch(LENGTHS)
    draw = objective.draw(batch, [62, 49, 27, 9])
    output = objective(encoder, batch, draw=draw)
    contexts, targets, quantized = parts(encoder, objective, batch, draw)
    loss, right, chance = naive_loss(contexts, targets, quantized.codes, draw, 0.1)
    term = output.terms["contrastive"]
    assert term.count == len(right) == int(draw.masks.sum())
    assert term.sum.item() == pytest.approx(loss.item(), rel=1e-5)
    assert float(output.metrics["accuracy"][0]) == sum(right)
    assert float(output.metrics["chance"][0]) == pytest.approx(sum(chance), rel=1e-5)
    shared = sum((quantized.codes[a] == quantized.codes[b]).all() for a in range(20) for b in range(a))
    assert shared > 0  # so that the exclusion was exercised

    ours = torch.autograd.grad(term.sum, encoder.parameters(), allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(loss, encoder.parameters(), allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_diversity_and_feature_penalty_by_hand(build, make_batch):
    encoder, objective = build()
    batch = make_batch(LENGTHS)
    output = objective(encoder, batch)
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    normed = encoder.feature_norm(features)
    draw = objective.draw(batch, frame_lengths)
    masked = int(draw.masks.sum())

    logits = objective.quantizer.projection(normed[draw.masks[0]]).view(masked, 2, 5)
    mean = logits.softmax(-1).mean(0).detach().double().numpy()
    exp_entropy = np.exp(-(mean * np.log(mean)).sum(-1)).sum()
    diversity = output.terms["diversity"]
    assert diversity.sum.item() / diversity.count == pytest.approx((10 - exp_entropy) / 10, rel=1e-5)
    assert (diversity.count, diversity.weight) == (masked, 0.1)

    penalty = output.terms["feature_penalty"]
    assert penalty.sum.item() / penalty.count == pytest.approx(features.square().mean().item(), rel=1e-5)
    assert (penalty.count, penalty.weight) == (62 + 49 + 27 + 9, 10.0)

    used = np.stack([np.bincount(codes, minlength=5) for codes in logits.argmax(-1).T.numpy()]) / masked
    entropy = -sum(p * log(p) for p in used[0] if p), -sum(p * log(p) for p in used[1] if p)
    code_perplexity = float(output.metrics["code_perplexity"][0])
    assert code_perplexity == pytest.approx(np.exp(entropy).sum(), rel=1e-5)
    assert 2 <= code_perplexity <= 10


MASKS = [{}, {"num_masks": 3}, {"num_masks": 2, "decoder_layers": 2, "decoder_size": 16}]


@pytest.mark.parametrize("options", MASKS)
def test_counts_are_known_before_the_forward_pass(build, make_batch, options):
    encoder, objective = build(**options)
    for lengths in (LENGTHS, LENGTHS[3:]):
        batch = make_batch(lengths)
        frames = [encoder.feature_encoder.num_frames(n) for n in lengths]
        terms = objective(encoder, batch).terms
        assert objective.counts(batch, frames) == {name: term.count for name, term in terms.items()}


@pytest.mark.parametrize("options", MASKS)
def test_no_term_of_a_clip_knows_the_other_clips(build, make_batch, options):
    """Three clips and a short one, of distinct content: with one distractor from elsewhere the sums would differ."""
    encoder, objective = build(num_distractors=50, **options)
    batch = make_batch(LENGTHS)
    together = objective(encoder, batch)
    alone = []
    for i, length in enumerate(LENGTHS):
        single = make_batch([length])
        single.waveforms, single.seeds = batch.waveforms[i : i + 1, :length], batch.seeds[i : i + 1]
        alone.append(objective(encoder, single))
    for name in ("contrastive", "feature_penalty"):
        assert together.terms[name].count == sum(output.terms[name].count for output in alone)
        total = sum(output.terms[name].sum.item() for output in alone)
        assert together.terms[name].sum.item() == pytest.approx(total, rel=1e-5)
    for name in ("accuracy", "chance"):
        total = sum(float(output.metrics[name][0]) for output in alone)
        assert float(together.metrics[name][0]) == pytest.approx(total, rel=1e-5)


def test_masks_lie_within_the_clips(build, make_batch):
    _, objective = build()
    draw = objective.draw(make_batch(LENGTHS), [62, 49, 27, 9])
    assert draw.masks.shape == (1, 62 + 49 + 27 + 9)
    masked = [int(mask.sum()) for mask in draw.masks[0].split([62, 49, 27, 9])]
    assert masked[3] == 0  # too short for a span: no part in the loss
    assert masked[:3] == draw.num_masked
    assert len(draw.distractors) == sum(masked)
    for number, drawn in zip(draw.num_masked, draw.distractors.split(draw.num_masked), strict=True):
        assert 0 <= drawn.min() <= drawn.max() < number


@pytest.mark.parametrize("training", [False, True])
def test_several_masks_share_features_and_targets(build, make_batch, training):
    """The sum over masks of what a naive loss makes of each, with the codewords of one choice."""
    encoder, objective = build(num_masks=3)
    objective.train(training)
    batch, frames = make_batch(LENGTHS), [62, 49, 27, 9]
    draw = objective.draw(batch, frames)
    assert len({tuple(mask.tolist()) for mask in draw.masks}) == 3
    hidden = draw.masks.any(0)
    features, _ = encoder.features(batch.waveforms, batch.lengths)
    normed = encoder.feature_norm(features)
    quantized = objective.quantizer(normed[hidden], temperature=objective.gumbel_temperature, noise=draw.noise)
    targets, codes = torch.zeros(len(hidden), 8), torch.zeros(len(hidden), 2, dtype=torch.long)
    targets[hidden], codes[hidden] = objective.project_target(quantized.vectors), quantized.codes
    expected, done = 0.0, 0
    for mask in draw.masks:
        counts = [int(part.sum()) for part in mask.split(frames) if part.any()]
        part = slice(sum(draw.num_masked[:done]), sum(draw.num_masked[:done]) + sum(counts))
        assert draw.num_masked[done : done + len(counts)] == counts
        last = encoder.contextualize(normed, frames, mask=mask).packed[-1]
        alone = Draw(mask[None], counts, draw.distractors[part], None)
        loss, _, _ = naive_loss(objective.project_context(last[mask]), targets[mask], codes[mask], alone, 0.1)
        expected, done = expected + loss.item(), done + len(counts)
    output = objective(encoder, batch, draw=draw)
    assert output.terms["contrastive"].sum.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["contrastive"].count == int(draw.masks.sum())
    mean = quantized.probabilities.mean(0).double()
    diversity = 1 - (-(mean * mean.log()).sum(-1)).exp().sum().item() / 10
    term = output.terms["diversity"]
    assert (term.sum.item() / term.count, term.count) == (pytest.approx(diversity, rel=1e-4), int(hidden.sum()))


def test_the_first_of_several_masks_is_that_of_one(build, make_batch):
    batch, frames = make_batch(LENGTHS), [62, 49, 27, 9]
    (_, one), (_, three) = build(), build(num_masks=3)
    a, b = one.draw(batch, frames), three.draw(batch, frames)
    assert torch.equal(a.masks[0], b.masks[0])
    assert torch.equal(a.distractors, b.distractors[: len(a.distractors)])


def test_with_a_decoder_the_layers_see_visible_frames_only(build, make_batch):
    encoder, objective = build(decoder_layers=1, decoder_size=16)
    batch = make_batch([20_000])
    hidden = int(objective.draw(batch, [62]).masks.sum())
    seen = []
    encoder.context.layers[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[1]))
    objective(encoder, batch)
    assert seen == [[62 - hidden, 64 - (62 - hidden)]]  # and the clip that rounds rows up


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"decoder_layers": 1, "decoder_size": 24}, "decoder_size is 24"),
        ({"decoder_layers": 1, "decoder_size": 16, "mask_span": 2}, "mask_span is 2, .* at least 3 .* decoder"),
        ({"encoder_changes": {"context": "recurrent"}, "decoder_layers": 1, "decoder_size": 16}, "recurrent context"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(build, options, reason):
    with pytest.raises(UserError, match=reason):
        build(**options)


def test_what_changes_nothing_is_not_kept_with_a_run():
    """So that a run begun before these settings existed goes on."""
    old = {"num_groups": 2, "temperature": 0.1}
    complete = Wav2Vec2Objective.complete
    assert complete(old | {"num_masks": 1, "decoder_layers": 0, "decoder_size": 384}, None) == old
    new = old | {"num_masks": 2, "decoder_layers": 4, "decoder_size": 384}
    assert complete(new, None) == new


@pytest.mark.parametrize("options", MASKS)
def test_a_batch_of_short_clips_has_no_loss_and_no_gradient(build, make_batch, options):
    encoder, objective = build(**options)
    objective.train()
    output = objective(encoder, make_batch([3_000, 2_000]))
    assert output.terms["contrastive"].count == output.terms["diversity"].count == 0
    assert output.terms["contrastive"].sum == output.terms["diversity"].sum == 0
    sum(term.weight * term.sum / max(term.count, 1) for term in output.terms.values()).backward()
    for parameter in [*encoder.parameters(), *objective.parameters()]:
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_random_choices_are_those_of_the_clips_seeds(build, make_batch):
    _, objective = build()
    objective.train()
    batch = make_batch(LENGTHS)
    draw, again = (objective.draw(batch, [62, 49, 27, 9]) for _ in range(2))
    assert torch.equal(draw.masks, again.masks)
    assert torch.equal(draw.noise, again.noise)
    assert draw.noise.shape == (sum(draw.num_masked), 2, 5)
    other = make_batch(LENGTHS)
    other.seeds = [seed + 1 for seed in batch.seeds]
    assert not torch.equal(draw.masks, objective.draw(other, [62, 49, 27, 9]).masks)
    assert objective.eval().draw(batch, [62, 49, 27, 9]).noise is None


def test_a_collapsed_codebook_is_right_by_chance(build, make_batch):
    """One code for all frames: every distractor equals the true target, so that guessing is always right."""
    encoder, objective = build()
    with torch.no_grad():
        objective.quantizer.projection.weight.zero_()
        objective.quantizer.projection.bias.copy_(torch.arange(10.0))
    output = objective(encoder, make_batch(LENGTHS))
    masked = output.terms["contrastive"].count
    assert float(output.metrics["accuracy"][0]) == float(output.metrics["chance"][0]) == masked
    assert output.terms["contrastive"].sum.item() == pytest.approx(0, abs=1e-4)
    assert float(output.metrics["code_perplexity"][0]) == pytest.approx(2)


def test_equal_similarities_give_the_loss_of_chance(build, make_batch):
    """With contexts that say nothing (temperature so high that similarities vanish) the loss is log(K + 1)."""
    encoder, objective = build(num_codewords=320, num_distractors=100, temperature=1e6)
    term = objective(encoder, make_batch([48_000])).terms["contrastive"]
    assert term.sum.item() / term.count == pytest.approx(log(101), rel=0.02)


def test_feature_gradient_is_scaled_and_no_other(build, make_batch):
    batch = make_batch(LENGTHS)
    found = {}
    for scale in (1.0, 0.1):
        encoder, objective = build(feature_gradient_scale=scale)
        terms = objective(encoder, batch).terms.values()
        sum(term.sum for term in terms).backward()
        found[scale] = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    for name, gradient in found[1.0].items():
        scale = 0.1 if name.startswith("feature_encoder.") else 1.0
        torch.testing.assert_close(found[0.1][name], scale * gradient, rtol=1e-4, atol=1e-5)


def test_temperature_falls_as_the_paper_has_it(build):
    _, objective = build(gumbel_decay=0.999995)
    for step, expected in ((1, 2 * 0.999995), (100_000, 2 * 0.999995**100_000), (400_000, 0.5)):
        objective.begin_step(step, 400_000)
        assert objective.gumbel_temperature == pytest.approx(expected)
    _, objective = build(gumbel_decay=None)
    for step, expected in ((350, 1.0), (700, 0.5), (1000, 0.5)):  # half of the way in log, at half of 70 %
        objective.begin_step(step, 1000)
        assert objective.gumbel_temperature == pytest.approx(expected)


def test_spans_of_one_frame_leave_no_distractors(build):
    with pytest.raises(UserError, match=r"mask_span is 1"):
        build(mask_span=1)


@pytest.mark.parametrize("training", [False, True])
def test_loss_and_gradients_are_those_of_transformers(build, make_batch, transformers_weights, monkeypatch, training):
    """Given the same weights, masks, negatives and Gumbel noise; two equally long clips, since theirs pads."""
    encoder, objective = build(num_codewords=3, feature_gradient_scale=1.0, feature_penalty=0.0)
    config = encoder.config
    theirs = Wav2Vec2ForPreTraining(
        Wav2Vec2Config(
            conv_dim=config.conv_channels,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.feed_forward_size,
            num_conv_pos_embeddings=config.position_kernel,
            num_conv_pos_embedding_groups=config.position_groups,
            num_codevectors_per_group=3,
            codevector_dim=8,
            proj_codevector_dim=8,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            feat_quantizer_dropout=0.0,
            layerdrop=0.0,
        )
    )
    ours = nn.ModuleDict({"encoder": encoder, "objective": objective}).train(training)
    ours.load_state_dict(transformers_weights(theirs.state_dict()))
    theirs.train(training)

    batch, frames = make_batch([20_000, 20_000]), 62
    draw = objective.draw(batch, [frames, frames])
    masks = draw.masks.view(2, frames)
    negatives = torch.zeros(2, frames, 10, dtype=torch.long)
    for clip, drawn in enumerate(draw.distractors.split(draw.num_masked)):
        negatives[clip, masks[clip]] = clip * frames + masks[clip].nonzero().squeeze(1)[drawn]

    def gumbel_softmax(logits, tau, hard):
        noise = torch.zeros(2 * frames, 2, 3)
        noise[draw.masks[0]] = draw.noise
        soft = ((logits + noise.view(-1, 3)) / tau).softmax(-1)
        hot = nn.functional.one_hot(soft.argmax(-1), 3)
        # In torch's own order, rounding can hide from transformers that two codes are the same.
        return hot + (soft - soft.detach())

    monkeypatch.setattr(nn.functional, "gumbel_softmax", gumbel_softmax)
    expected = theirs(batch.waveforms.clone(), mask_time_indices=masks, sampled_negative_indices=negatives)
    terms = objective(encoder, batch, draw=draw).terms
    assert terms["contrastive"].sum.item() == pytest.approx(expected.contrastive_loss.item(), rel=1e-5)
    loss, their_loss = terms["contrastive"].sum, expected.contrastive_loss
    if training:  # theirs takes hard choices for diversity when evaluating
        assert terms["diversity"].sum.item() == pytest.approx(expected.diversity_loss.item(), rel=1e-5)
        loss, their_loss = loss + 0.1 * terms["diversity"].sum, expected.loss

    loss.backward()
    their_loss.backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    our_gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    their_gradients = transformers_weights(their_gradients)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        scale = gradient.abs().max().clamp_min(1e-2)
        torch.testing.assert_close(our_gradients[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("together", [1, 20_000, 10**9])
def test_each_frame_is_in_one_product_and_few_rows_are_of_none(together):
    counts = [100, 7, 90, 2, 33, 31, 100]
    rows = list(_alike(counts, together))
    frames = torch.cat([x.flatten() for x in rows])
    assert sorted(frames[frames < sum(counts)].tolist()) == list(range(sum(counts)))
    for x in rows:
        sizes = (x < sum(counts)).sum(1)
        rounded = -(-sizes // 16) * 16
        assert len(x) == 1 or x.shape[1] ** 2 * len(x) <= min(1.5 * rounded.square().sum(), together)
        assert all((row[:size].diff() == 1).all() for row, size in zip(x, sizes, strict=True))
    assert len(rows) == {1: 7, 20_000: 5, 10**9: 3}[together]


def test_a_draw_can_be_given(build, make_batch):
    encoder, objective = build()
    batch = make_batch([16_000])
    mask = torch.zeros(49, dtype=torch.bool)
    mask[[3, 4, 5]] = True
    draw = Draw(mask[None], [3], torch.tensor([[1, 2], [0, 0], [1, 1]]), noise=None)
    output = objective(encoder, batch, draw=draw)
    contexts, targets, quantized = parts(encoder, objective, batch, draw)
    loss, _, _ = naive_loss(contexts, targets, quantized.codes, draw, 0.1)
    assert output.terms["contrastive"].sum.item() == pytest.approx(loss.item(), rel=1e-5)
