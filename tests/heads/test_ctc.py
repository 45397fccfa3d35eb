"""CTC fine-tuning: the loss against all alignments, what trains, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby, product

import pytest
import torch

from speechssl.data.text import BLANK
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective, ctc_loss
from speechssl.models.encoder import Encoder
from speechssl.types import Utterance


@pytest.fixture
def build(small_config):
    """`build(**options)`: a small encoder and a CTC head over a, b and space."""

    def make(**options):
        torch.manual_seed(0)
        encoder = Encoder(small_config())
        defaults = {
            "vocabulary": [BLANK, " ", "a", "b"],
            "lowercase": False,
            "dropout": 0.0,
            "mask_start_probability": 0.0,
            "mask_span": 10,
            "freeze_feature_encoder": True,
            "freeze_encoder": 0.0,
        }
        return encoder, CTCObjective(encoder.config, **defaults | options)

    return make


@pytest.fixture
def batch(make_batch):
    """Three clips of 31, 15 and 24 frames with their labels."""
    return make_batch([10_000, 5_000, 8_000], targets=[torch.tensor(x) for x in ([2, 3], [3], [2, 2, 1, 3])])


def utterance(text, tmp_path):
    return Utterance("a", tmp_path / "a.wav", 1.0, text=text)


def collapse(path):
    """Merge repeats, then drop blanks (Graves et al. 2006, section 3.1)."""
    return [symbol for symbol, _ in groupby(path) if symbol]


def test_loss_is_that_of_all_alignments():
    """Summed probability of every path that collapses to the labels, for clips of 5 and of 3 frames."""
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    targets = [[1, 1], [2]]
    expected = 0.0
    for clip, target in zip(logits.softmax(-1).split([5, 3]), targets, strict=True):
        paths = (path for path in product(range(3), repeat=len(clip)) if collapse(path) == target)
        expected -= sum(clip[range(len(clip)), path].prod() for path in paths).log().item()
    loss = ctc_loss(logits, [5, 3], [torch.tensor(target) for target in targets])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_count_is_labels_and_no_clip_knows_the_others(build, batch, make_batch):
    encoder, objective = build()
    term = objective(encoder, batch).terms["ctc"]
    assert term.count == objective.counts(batch, [31, 15, 24])["ctc"] == 7
    total = 0.0
    for i, length in enumerate(batch.lengths.tolist()):
        single = make_batch([length], targets=[batch.targets[i]])
        single.waveforms = batch.waveforms[i : i + 1, :length]
        total += objective(encoder, single).terms["ctc"].sum.item()
    assert term.sum.item() == pytest.approx(total, rel=1e-5)


def trained(encoder, objective, batch):
    """Names of the parts that get a gradient."""
    loss = objective(encoder, batch).terms["ctc"].sum
    loss.backward()
    parts = {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None}
    return parts | {"head" for p in objective.parameters() if p.grad is not None}


def test_what_is_frozen_gets_no_gradient(build, batch):
    network = {"feature_norm", "projection", "context", "head"}
    assert trained(*build(), batch) == network
    assert trained(*build(freeze_feature_encoder=False), batch) == network | {"feature_encoder"}
    encoder, objective = build(freeze_feature_encoder=False, freeze_encoder=0.5)
    objective.begin_step(5, 10)
    assert trained(encoder, objective, batch) == {"head"}


@pytest.mark.parametrize(("freeze", "last_frozen"), [(0.0, 0), (0.3, 30), (1.0, 100), (7, 7)])
def test_the_encoder_is_frozen_for_a_share_of_the_run_or_so_many_steps(build, freeze, last_frozen):
    _, objective = build(freeze_encoder=freeze)
    frozen = []
    for step in range(1, 101):
        objective.begin_step(step, 100)
        frozen.append(objective.encoder_frozen)
    assert sum(frozen) == last_frozen
    assert all(frozen[:last_frozen])


def test_frames_are_masked_in_training_alone(build, batch):
    encoder, objective = build(mask_start_probability=0.1, mask_span=5)
    encoder.eval()
    seen = []
    hook = encoder.context.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective.train()(encoder, batch)
    objective.eval()(encoder, batch)
    hook.remove()
    masked, plain = seen
    hidden = (masked == encoder.mask_vector).all(-1)
    assert 0 < hidden.sum() < len(hidden)
    assert torch.equal(masked[~hidden], plain[~hidden])


def test_validation_gives_the_error_rates_of_the_greedy_path(build, batch):
    """The head says "a" in every frame: "ab" has 1 edit, "b" 1, "aa b" 3; all 4 words are wrong."""
    encoder, objective = build()
    with torch.no_grad():
        objective.linear.weight.zero_()
        objective.linear.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    metrics = objective.eval()(encoder, batch).metrics
    assert metrics["cer"] == (1 + 1 + 3, 2 + 1 + 4)
    assert metrics["wer"] == (4, 4)
    assert float(metrics["blank_share"][0]) == 0
    assert "cer" not in objective.train()(encoder, batch).metrics


@pytest.mark.parametrize(
    ("text", "num_frames", "reason"),
    [
        ("ab ab", 5, None),
        ("ab ab", 4, r"needs 5 frames, the audio gives 4 \(labels longer than frames\)"),
        ("aab", 3, "needs 4 frames"),  # a blank between the two a
        ("abc dé", 50, r"outside the vocabulary: c.* d.* é"),
        ("", 50, "transcript is empty"),
        (" \n", 50, "transcript is empty"),
        (None, 50, "no `text`"),
        ("AB", 50, "outside the vocabulary"),
    ],
)
def test_clips_that_cannot_be_trained_on(build, tmp_path, text, num_frames, reason):
    _, objective = build()
    said = objective.check(utterance(text, tmp_path), num_frames)
    assert said is None if reason is None else re.search(reason, said)


def test_case_is_a_choice(build, tmp_path):
    _, objective = build(lowercase=True)
    assert objective.check(utterance("AB", tmp_path), 50) is None
    assert objective.target(utterance("A\tB", tmp_path)).tolist() == [2, 1, 3]


def test_the_vocabulary_is_that_of_the_training_texts(tmp_path):
    texts = [utterance(text, tmp_path) for text in ("ba", None, "e\u0301 B")]  # a combining accent becomes é
    options = {"name": "ctc", "dropout": 0.1}
    found = CTCObjective.data_options(texts, lowercase=False, **options)["vocabulary"]
    assert found == [BLANK, " ", "B", "a", "b", "é"]
    found = CTCObjective.data_options(texts, lowercase=True, **options)["vocabulary"]
    assert found == [BLANK, " ", "a", "b", "é"]


def test_channels_are_masked_in_training_alone_after_the_frames(build, batch):
    encoder, objective = build(
        mask_start_probability=0.1, mask_span=5, channel_mask_start_probability=0.2, channel_mask_span=2
    )
    encoder.eval()
    seen = []
    hook = encoder.context.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective.train()(encoder, batch)
    objective.eval()(encoder, batch)
    hook.remove()
    masked, plain = (x[:70].split([31, 15, 24]) for x in seen)
    for clip, whole in zip(masked, plain, strict=True):
        hidden = (clip == 0).all(0)
        assert hidden.any() and not hidden.all() and not (whole == 0).all(0).any()
        runs = [len(list(group)) for channel, group in groupby(hidden.tolist()) if channel]
        assert min(runs) >= 2
        visible = ~(clip[:, ~hidden] == encoder.mask_vector[~hidden]).all(1)
        assert torch.equal(clip[visible][:, ~hidden], whole[visible][:, ~hidden])
    assert len({tuple((clip == 0).all(0).tolist()) for clip in masked}) > 1  # each clip its own


def test_a_run_of_channels_is_a_twelfth_of_them(small_config):
    config = small_config(hidden_size=48)
    options = {"vocabulary": [BLANK, "a"], "lowercase": False, "dropout": 0.0, "mask_start_probability": 0.0}
    options |= {"mask_span": 10, "freeze_feature_encoder": True, "freeze_encoder": 0.0}
    assert CTCObjective(config, **options).channel_mask_span == 4


def test_all_layers_can_be_weighed(build, batch):
    encoder, objective = build(layers="weighted")
    output = encoder.eval()(batch.waveforms, batch.lengths)
    with torch.no_grad():
        objective.layer_weights.copy_(torch.tensor([0.0, 30.0, 0.0]))
    state = output.packed[1]
    normed = (state - state.mean(1, keepdim=True)) / (state.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = normed @ objective.linear.weight.T + objective.linear.bias
    assert torch.allclose(objective.eval().logits(output), expected, atol=1e-4)
    objective(encoder, batch).terms["ctc"].sum.backward()
    assert objective.layer_weights.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"task\.layers=first must be last or weighted"):
        build(layers="first")


def test_recurrent_layers_hear_the_whole_clip_and_no_other(build, batch):
    encoder, objective = build(recurrent_size=5, layers="weighted")
    output = encoder.eval()(batch.waveforms, batch.lengths)
    found = objective.eval().logits(output)
    assert found.shape == (70, 4)
    changed = [state.clone() for state in output.packed]
    for state in changed:
        state[31 + 14] *= -1.0  # the last frame of the second clip
    differs = (objective.logits(replace(output, packed=changed)) - found).abs().amax(1) > 1e-7
    assert differs[31:46].all() and not differs[:31].any() and not differs[46:].any()
    objective.train()(encoder, batch).terms["ctc"].sum.backward()
    assert all(p.grad.abs().sum() > 0 for p in objective.recurrent.parameters())


def test_with_adapters_the_head_and_they_train(build, batch):
    encoder, objective = build(lora_rank=2, adapter_size=3)
    objective.attach(encoder)
    assert trained(encoder, objective, batch) == {"head"}
    assert all(p.grad is not None for p in objective.adapters.parameters())
