"""LoRA and bottlenecks: nothing at first, alone in training, and the arithmetic of their papers."""

from __future__ import annotations

import pytest
import torch

from speechssl.heads.adapters import Adapters
from speechssl.models.encoder import Encoder


@pytest.fixture
def encoder(small_config):
    torch.manual_seed(0)
    return Encoder(small_config()).eval()


@pytest.fixture
def clip(make_batch):
    return make_batch([8_000, 5_000])


def frames(encoder, clip):
    return encoder(clip.waveforms, clip.lengths).packed[-1]


@pytest.mark.parametrize("options", [{"lora_rank": 2, "adapter_size": 0}, {"lora_rank": 0, "adapter_size": 3}])
def test_they_begin_as_nothing_and_alone_train(encoder, clip, options):
    before = frames(encoder, clip)
    adapters = Adapters(encoder.config, **options)
    adapters.attach(encoder)
    assert torch.equal(frames(encoder, clip), before)
    assert not any(p.requires_grad for p in encoder.parameters())
    frames(encoder, clip).square().sum().backward()
    ups = [p.grad for name, p in adapters.named_parameters() if name.endswith("up.weight")]
    assert len(ups) == encoder.config.num_layers * (2 if options["lora_rank"] else 1)
    assert all(gradient.abs().sum() > 0 for gradient in ups)


def test_lora_is_a_change_of_the_weights(encoder, clip, small_config):
    adapters = Adapters(encoder.config, lora_rank=2, adapter_size=0)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    merged = Encoder(small_config()).eval()
    merged.load_state_dict(encoder.state_dict())
    adapters.merge(merged)
    before = frames(encoder, clip)
    adapters.attach(encoder)
    assert torch.allclose(frames(encoder, clip), frames(merged, clip), atol=1e-5)
    assert not torch.allclose(before, frames(merged, clip), atol=1e-2)
    change = merged.context.layers[0].attention.qkv.weight - encoder.context.layers[0].attention.qkv.weight
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2


def test_a_bottleneck_adds_to_the_feed_forward(encoder, clip):
    adapters = Adapters(encoder.config, lora_rank=0, adapter_size=3)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer, part, seen = encoder.context.layers[1], adapters.feed[1], []
    layer.feed_out.register_forward_hook(lambda _m, _i, output: seen.append(output))
    adapters.attach(encoder)
    layer.feed_out.register_forward_hook(lambda _m, _i, output: seen.append(output))
    frames(encoder, clip)
    plain, adapted = seen
    hidden = torch.nn.functional.gelu(plain @ part.down.weight.T + part.down.bias)
    assert torch.allclose(adapted, plain + hidden @ part.up.weight.T + part.up.bias, atol=1e-5)
