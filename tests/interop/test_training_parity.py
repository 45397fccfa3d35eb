"""Losses and the gradient of every parameter against transformers, with the same masks, negatives and Gumbel noise.

Where the reference is wrong, the difference is shown.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechssl.interop import huggingface_out
from speechssl.models.masking import span_mask
from speechssl.objectives.wav2vec2 import Draw
from speechssl.training.checkpoint import Checkpoint, build_model, load_checkpoint
from speechssl.types import Batch

LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SHAPES = {
    "base": {},
    "large": LARGE,
    "layer norm, post-norm": {"feat_extract_norm": "layer"},
    "group norm, pre-norm": {"do_stable_layer_norm": True},
}
SAMPLES = {"uneven": (8_000, 5_000, 11_000), "even": (8_000, 8_000, 8_000)}


def batch(waveforms, targets=None):
    lengths = torch.tensor([len(x) for x in waveforms])
    return Batch(
        pad_sequence(waveforms, batch_first=True), lengths, [0] * len(waveforms), [None] * len(waveforms), targets
    )


def draw(frame_lengths, *, distractors, shape, seed=3):
    """Masks, distractors and noise of each clip; noise for every frame, as transformers quantizes every frame."""
    generator = torch.Generator().manual_seed(seed)
    masks = [span_mask(n, generator=generator, start_probability=0.1, span=4, min_spans=1) for n in frame_lengths]
    counts = [int(mask.sum()) for mask in masks]
    others = [torch.randint(n - 1, (n, distractors), generator=generator) for n in counts]
    others = [x + (x >= torch.arange(len(x))[:, None]) for x in others]
    noise = [-torch.empty(n, *shape).exponential_(generator=generator).log() for n in frame_lengths]
    masked = torch.cat([x[mask] for x, mask in zip(noise, masks, strict=True)])
    return Draw(torch.cat(masks)[None], counts, torch.cat(others), masked), masks, noise


def reference_loss(model, waveforms, masks, others, noise, monkeypatch, *, uneven):
    """transformers' output with the same choices, spread over its padded frames."""
    num_frames = max(len(mask) for mask in masks)
    time_mask = pad_sequence(masks, batch_first=True)
    negatives = torch.zeros(len(masks), num_frames, others[0].shape[1], dtype=torch.long)
    for i, (mask, other) in enumerate(zip(masks, others, strict=True)):
        negatives[i, : len(mask)][mask] = mask.nonzero().squeeze(1)[other] + i * num_frames
    padded = pad_sequence(noise, batch_first=True)

    def given_noise(logits, tau, hard):
        assert hard
        soft = ((logits + padded.reshape(logits.shape)) / tau).softmax(-1)
        return nn.functional.one_hot(soft.argmax(-1), logits.shape[-1]) - soft.detach() + soft

    monkeypatch.setattr(nn.functional, "gumbel_softmax", given_noise)
    lengths = torch.tensor([len(x) for x in waveforms])
    attention = (torch.arange(lengths.max())[None] < lengths[:, None]).long() if uneven else None
    return model(
        pad_sequence(waveforms, batch_first=True),
        attention_mask=attention,
        mask_time_indices=time_mask,
        sampled_negative_indices=negatives,
    )


def gradients(encoder, objective, config):
    """Our gradients under transformers' names."""
    modules = nn.ModuleDict({"encoder": encoder, "objective": objective})
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in modules.named_parameters()}
    return huggingface_out.tensors(Checkpoint(Path("gradients"), config, found))


def assert_same_gradients(model, ours):
    theirs = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert theirs.keys() == ours.keys()
    whole = torch.stack([g.norm() for g in theirs.values()]).norm()
    for name, gradient in theirs.items():
        # The softmax does not see a key's bias: its gradient is zero, of which there is rounding alone.
        limit = 1e-9 * whole if name.endswith("k_proj.bias") else 1e-4 * max(gradient.norm(), 1e-6 * whole)
        assert (ours[name] - gradient).norm() <= limit, name


# transformers' group norm runs over padding, ours does not: those models get clips of one length.
@pytest.mark.parametrize(
    ("shape", "samples"),
    [(shape, "even") for shape in SHAPES] + [("large", "uneven"), ("layer norm, post-norm", "uneven")],
)
def test_pretraining(peer, tmp_path, monkeypatch, shape, samples):
    changes = SHAPES[shape]
    uneven = samples == "uneven"
    model = peer.make("Wav2Vec2ForPreTraining", **peer.quantizer, **changes).train()
    checkpoint = load_checkpoint(peer.save(model, tmp_path))
    encoder, objective = build_model(checkpoint)
    encoder.train(), objective.train()
    temperature = objective.gumbel_temperature = 1.3
    model.set_gumbel_temperature(temperature)
    waveforms = peer.noise(*SAMPLES[samples])
    frames = [encoder.feature_encoder.num_frames(len(x)) for x in waveforms]
    choices, masks, noise = draw(frames, distractors=5, shape=(3, 7))

    ours = objective(encoder, batch(waveforms), draw=choices)
    theirs = reference_loss(
        model, waveforms, masks, choices.distractors.split(choices.num_masked), noise, monkeypatch, uneven=uneven
    )
    terms = ours.terms
    total = sum(term.weight * term.sum for term in terms.values())
    assert terms["contrastive"].sum.item() == pytest.approx(theirs.contrastive_loss.item(), rel=1e-5)
    assert terms["diversity"].sum.item() == pytest.approx(theirs.diversity_loss.item(), rel=1e-5)
    assert total.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    total.backward()
    theirs.loss.backward()
    assert_same_gradients(model, gradients(encoder, objective, checkpoint.config))


@pytest.mark.parametrize("shape", SHAPES)
def test_ctc(peer, tmp_path, shape):
    changes = SHAPES[shape]
    samples = SAMPLES["uneven" if changes.get("feat_extract_norm") == "layer" else "even"]
    model = peer.make("Wav2Vec2ForCTC", vocab_size=9, pad_token_id=4, mask_time_prob=0.0, **changes).train()
    nn.init.normal_(model.lm_head.weight)
    checkpoint = load_checkpoint(peer.save(model, tmp_path))
    encoder, objective = build_model(checkpoint)
    encoder.train(), objective.train()
    objective.freeze_feature_encoder, objective.mask_start_probability = False, 0.0
    waveforms = peer.noise(*samples)
    labels = [torch.tensor(x) for x in ([0, 1, 1, 8], [2], [3, 5, 6, 7, 3])]
    # Label 4 is the blank there; here the blank is 0 and the labels before it move up.
    targets = [torch.where(x < 4, x + 1, x) for x in labels]

    lengths = torch.tensor([len(x) for x in waveforms])
    mask = (torch.arange(lengths.max())[None] < lengths[:, None]).long()
    theirs = model(
        pad_sequence(waveforms, batch_first=True),
        attention_mask=mask if len(set(samples)) > 1 else None,
        labels=pad_sequence(labels, batch_first=True, padding_value=-100),
    ).loss
    term = objective(encoder, batch(waveforms, targets)).terms["ctc"]
    assert term.count == 10
    assert term.sum.item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs.backward()
    term.sum.backward()
    assert_same_gradients(model, gradients(encoder, objective, checkpoint.config))


def test_a_clip_shorter_than_a_span_is_masked_on_padding_there_and_not_at_all_here():
    module = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    frames, span = [40, 6], 10
    attention = (torch.arange(40)[None] < torch.tensor(frames)[:, None]).long()
    theirs = module._compute_mask_indices((2, 40), 0.65, span, attention_mask=attention)
    assert theirs[1, 6:].any() and not theirs[1, :6].any()  # its loss counts a frame that does not exist
    generator = torch.Generator().manual_seed(0)
    options = {"start_probability": 0.065, "span": span, "min_spans": 2}
    assert not span_mask(frames[1], generator=generator, **options).any()


def test_accumulated_gradients_are_those_of_the_whole_batch_here_and_not_there(peer, tmp_path, monkeypatch):
    """transformers' example script divides the gradients gathered so far by each micro-batch's own count.

    Here sums and counts add up, so that two micro-batches of one clip give the gradient of one batch of two clips. The
    diversity loss is left out: it is of each micro-batch's own, here and in fairseq.
    """
    model = peer.make("Wav2Vec2ForPreTraining", **peer.quantizer, diversity_loss_weight=0.0, **LARGE).train()
    encoder, objective = build_model(load_checkpoint(peer.save(model, tmp_path)))
    encoder.train(), objective.train()
    waveforms = peer.noise(8_000, 20_000)
    frames = [encoder.feature_encoder.num_frames(len(x)) for x in waveforms]
    choices, masks, noise = draw(frames, distractors=5, shape=(3, 7))
    counts = choices.num_masked
    noises = choices.noise.split(counts)
    probe, weight = model.project_hid.weight, objective.project_context.weight

    def reference(*clips):
        model.set_gumbel_temperature(objective.gumbel_temperature)
        parts = ([x[i] for i in clips] for x in (waveforms, masks, choices.distractors.split(counts), noise))
        return reference_loss(model, *parts, monkeypatch, uneven=len(clips) > 1).loss

    reference(0, 1).backward()
    whole = probe.grad / sum(counts)

    probe.grad = None
    for i in range(2):
        reference(i).backward()
        probe.grad /= counts[i]
    assert (probe.grad - whole).norm() > 0.1 * whole.norm()

    terms = []
    for i in range(2):
        mask = choices.masks.split(frames, 1)[i]
        part = Draw(mask, [counts[i]], choices.distractors.split(counts)[i], noises[i])
        terms.append(objective(encoder, batch([waveforms[i]]), draw=part).terms["contrastive"])
    for term in terms:
        (term.sum / sum(term.count for term in terms)).backward()
    assert (weight.grad - whole).norm() <= 1e-4 * whole.norm()
