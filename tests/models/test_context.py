"""Positions, attention within clips, and LayerDrop."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from speechssl.errors import UserError
from speechssl.models.context import ContextNetwork, PositionalConvolution, SelfAttention

LENGTHS = [40, 33, 33, 1, 64, 7]  # equal neighbours, multiples of the grain and not, a single frame


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def network(**changes):
    torch.manual_seed(0)
    options = {
        "hidden_size": 16,
        "num_layers": 3,
        "num_heads": 2,
        "feed_forward_size": 32,
        "position_kernel": 8,
        "position_groups": 4,
        "pre_norm": False,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "layer_drop": 0.0,
        "norm_eps": 1e-5,
    }
    return ContextNetwork(**options | changes)


@pytest.mark.parametrize("kernel", [8, 9, 128])
def test_positions_are_those_of_one_convolution_a_clip(kernel):
    torch.manual_seed(0)
    ours = PositionalConvolution(16, kernel, 4).double()
    with torch.no_grad():
        ours.weight_g.mul_(1.5)  # else the norm cancels
        ours.bias.normal_()
    x = noise(sum(LENGTHS), 16).double()
    norm = ours.weight_v.square().sum((0, 1), keepdim=True).sqrt()
    weight = ours.weight_v * ours.weight_g / norm
    clips = []
    for clip in x.split(LENGTHS):
        y = F.conv1d(clip.T[None], weight, ours.bias, padding=kernel // 2, groups=4)[0].T
        clips.append(F.gelu(y[: len(clip)]))
    torch.testing.assert_close(ours(x, LENGTHS), torch.cat(clips), rtol=1e-9, atol=1e-9)


def test_attention_is_softmax_of_scaled_products_within_each_clip():
    torch.manual_seed(0)
    ours = SelfAttention(16, 2, dropout=0.0).double()
    x = noise(sum(LENGTHS), 16).double()
    clips = []
    for clip in x.split(LENGTHS):
        query, key, value = F.linear(clip, ours.qkv.weight, ours.qkv.bias).split(16, dim=-1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = query[:, head] @ key[:, head].T / 8**0.5
            heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ value[:, head])
        clips.append(ours.out(torch.cat(heads, -1)))
    torch.testing.assert_close(ours(x, LENGTHS), torch.cat(clips), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hourglass", [1, 3])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_clip_is_the_same_alone_and_in_a_batch(pre_norm, hourglass):
    ours, x = network(pre_norm=pre_norm, hourglass=hourglass).eval(), noise(sum(LENGTHS), 16)
    together = ours(x, LENGTHS)
    for i, clip in enumerate(x.split(LENGTHS)):
        for state, alone in zip(together, ours(clip, [len(clip)]), strict=True):
            torch.testing.assert_close(state.split(LENGTHS)[i], alone, rtol=1e-5, atol=1e-5)


def test_the_middle_of_an_hourglass_sees_means_and_gives_back_what_it_changes():
    ours = network(num_layers=4, hourglass=3).double().eval()
    x = noise(8, 16).double()
    first, second, third, last = ours.layers
    states = ours(x, [8])
    before = first(states[0], [8])
    means = torch.stack([before[:3].mean(0), before[3:6].mean(0), before[6:].mean(0)])
    once = second(means, [3])
    twice = third(once, [3])
    wide = [0, 0, 0, 1, 1, 1, 2, 2]
    expected = [before, before + (once - means)[wide], before + (twice - means)[wide]]
    expected.append(last(expected[-1], [8]))
    torch.testing.assert_close(states[1:], expected, rtol=1e-9, atol=1e-9)


def dropped_layers(ours, seed):
    """Which layers gave out what they were given."""
    x = noise(9, 16)
    states = ours(x, [9], generator=torch.Generator().manual_seed(seed))
    return [torch.equal(before, after) for before, after in pairwise(states)]


def test_layer_drop_obeys_its_generator():
    ours = network(num_layers=12, layer_drop=0.5).train()
    draws = []
    for seed in range(20):
        torch.manual_seed(seed + 100)
        draws.append(dropped_layers(ours, seed))
        assert dropped_layers(ours, seed) == draws[-1]  # whatever the global generator has done since
    assert len({tuple(draw) for draw in draws}) == 20
    share = sum(map(sum, draws)) / (20 * 12)
    assert share == pytest.approx(0.5, abs=3 * 0.5 / 240**0.5)  # three standard deviations


def test_layer_drop_is_for_training_alone():
    ours = network(layer_drop=0.9)
    assert not any(dropped_layers(ours.eval(), 0))
    assert not any(dropped_layers(network(layer_drop=0.0).train(), 0))


def test_the_last_layers_begin_anew():
    ours = network(pre_norm=True)
    before = {name: value.clone() for name, value in ours.named_parameters()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    torch.manual_seed(1)
    ours.reset_last_layers(1)
    last = len(ours.layers) - 1
    for name, value in ours.named_parameters():
        if name.startswith((f"layers.{last}.", "norm.")):
            if name.endswith("bias") or "norm" in name:
                torch.testing.assert_close(value, before[name])  # zeros and ones again
            else:
                assert abs(value.mean().item()) < 0.01
                assert value.std().item() == pytest.approx(0.02, rel=0.2)
        else:
            torch.testing.assert_close(value, before[name] + 1.0)
    with pytest.raises(UserError, match="reset_layers is 9, but the encoder has"):
        ours.reset_last_layers(9)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_compiled_rows_are_the_same_and_compiled_once_for_all_lengths(pre_norm, monkeypatch):
    """Without the compiler's last stage, which takes a minute: what is captured, and when, does not depend on it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model, compiled = network(pre_norm=pre_norm), network(pre_norm=pre_norm)
    for layer in compiled.layers:
        layer.compile_rows()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([40, 24], [100, 20, 8], [64, 64, 63, 1]):
            x = noise(sum(lengths), 16)
            found, expected = compiled(x, lengths)[-1], model(x, lengths)[-1]
            torch.testing.assert_close(found, expected)
            gradients = (
                torch.autograd.grad(y.square().sum(), network.parameters(), allow_unused=True)
                for y, network in ((found, compiled), (expected, model))
            )
            torch.testing.assert_close(*gradients)
