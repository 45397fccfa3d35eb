"""The whole encoder against transformers' with the same weights; parameter counts; what its config refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model

from speechssl.config import compose, plain
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import build_objective

LENGTHS = [16_000, 9_999, 9_999, 400, 20_500]
ORDERS = [("group", False), ("layer", True), ("group", True), ("layer", False)]


def reference_config(config, **options):
    """transformers' config of the same shape, without any dropout."""
    return Wav2Vec2Config(
        conv_dim=config.conv_channels,
        conv_kernel=config.conv_kernels,
        conv_stride=config.conv_strides,
        conv_bias=config.conv_bias,
        feat_extract_norm=config.conv_norm,
        do_stable_layer_norm=config.pre_norm,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feed_forward_size,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        **options,
    )


@pytest.fixture
def pair(small_config, transformers_weights):
    """`pair(norm, pre_norm)`: our encoder and transformers' with the same random weights."""

    def make(norm, pre_norm):
        config = small_config(conv_norm=norm, conv_bias=norm == "layer", pre_norm=pre_norm)
        torch.manual_seed(0)
        theirs = Wav2Vec2Model(reference_config(config)).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # so that no gain is 1 and no bias 0
        ours = nn.ModuleDict({"encoder": Encoder(config)}).eval()
        ours.load_state_dict(transformers_weights(theirs.state_dict()))
        return ours["encoder"], theirs

    return make


@pytest.mark.parametrize(("norm", "pre_norm"), ORDERS)
def test_every_hidden_state_is_that_of_transformers(pair, make_batch, norm, pre_norm):
    ours, theirs = pair(norm, pre_norm)
    batch = make_batch(LENGTHS)
    with torch.no_grad():
        output = ours(batch.waveforms, batch.lengths)
        for i, length in enumerate(LENGTHS):
            expected = theirs(batch.waveforms[i : i + 1, :length], output_hidden_states=True)
            states = [*expected.hidden_states[:-1], expected.last_hidden_state]
            assert len(output.packed) == len(states)
            for packed, state in zip(output.packed, states, strict=True):
                torch.testing.assert_close(packed.split(output.frame_lengths)[i], state[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("norm", "pre_norm"), ORDERS)
def test_a_clip_is_the_same_alone_and_in_a_batch(small_config, make_batch, norm, pre_norm):
    torch.manual_seed(0)
    encoder = Encoder(small_config(conv_norm=norm, pre_norm=pre_norm)).eval()
    batch = make_batch(LENGTHS, padding=float("nan"))
    with torch.no_grad():
        output = encoder(batch.waveforms, batch.lengths)
        for i, length in enumerate(LENGTHS):
            alone = encoder(batch.waveforms[i : i + 1, :length], torch.tensor([length]))
            for together, state in zip(output.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(together[i, : state.shape[1]], state[0], rtol=1e-5, atol=1e-5)


def test_output_is_padded_with_zeros_on_demand(small_config, make_batch):
    encoder = Encoder(small_config(num_layers=3)).eval()
    batch = make_batch([16_000, 400])
    output = encoder(batch.waveforms, batch.lengths)
    assert output.lengths.tolist() == output.frame_lengths == [49, 1]
    assert [x.shape for x in output.hidden_states] == [(2, 49, 16)] * 4
    assert torch.equal(output.frames, output.hidden_states[-1])
    assert output.frames[1, 0].any()
    assert not output.frames[1, 1:].any()


def test_a_masked_frame_hides_its_audio(small_config, make_batch):
    encoder = Encoder(small_config()).eval()
    normed = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    other = normed.clone()
    mask = torch.zeros(30, dtype=torch.bool)
    mask[5:15] = True
    other[mask] = 7.0
    hidden = encoder.contextualize(normed, [20, 10], mask=mask).packed[-1]
    assert torch.equal(hidden, encoder.contextualize(other, [20, 10], mask=mask).packed[-1])
    assert not torch.equal(hidden, encoder.contextualize(normed, [20, 10]).packed[-1])


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("model", "millions"), [("small", 6.76), ("base", 95.04), ("large", 317)])
def test_parameter_counts_are_those_of_the_paper_and_of_transformers(model, millions):
    config = compose("pretrain", [f"model={model}", "data.train=x", "run_dir=x"])
    options = plain(config.objective)
    del options["_target_"], options["best"]
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder)))
        ours = nn.ModuleDict({"encoder": encoder, "objective": build_objective(options, encoder.config)})
        theirs = Wav2Vec2ForPreTraining(
            reference_config(
                encoder.config,
                codevector_dim=options["code_size"],
                proj_codevector_dim=options["final_size"],
                num_codevectors_per_group=options["num_codewords"],
                num_codevector_groups=options["num_groups"],
            )
        )
    assert num_parameters(ours) == num_parameters(theirs)
    assert num_parameters(ours) / 1e6 == pytest.approx(millions, abs=0.5 if millions > 100 else 0.005)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conv_channels": (8,) * 6}, "equally long lists"),
        ({"conv_norm": "batch"}, "'group' or 'layer'"),
        ({"num_heads": 3}, "not a multiple of num_heads, 3"),
        ({"position_groups": 5}, "not a multiple of position_groups, 5"),
        ({"hourglass": 2, "causal": True}, "hourglass is 2, which is for Transformers"),
    ],
)
def test_shapes_that_cannot_be_are_one_sentence(small_config, changes, reason):
    with pytest.raises(UserError, match=reason):
        small_config(**changes)


def test_a_config_survives_plain_data(small_config):
    config = small_config(dropout=0.25)
    assert EncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match=r"unknown keys \['colour'\]"):
        EncoderConfig.from_dict({**config.to_dict(), "colour": "red"})
    values = config.to_dict()
    del values["hidden_size"]
    with pytest.raises(UserError, match=r"lacks \['hidden_size'\]"):
        EncoderConfig.from_dict(values)
