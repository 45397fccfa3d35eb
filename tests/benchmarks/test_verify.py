"""The comparison with transformers finds nothing where there is nothing, and finds what is there."""

from __future__ import annotations

import pytest
import torch

from speechssl.config import compose, plain

pytest.importorskip("transformers")

SHAPE = (
    "model.encoder.conv_channels=[16,16,16,16,16,16,16]",
    "model.encoder.hidden_size=32",
    "model.encoder.num_layers=2",
    "model.encoder.num_heads=2",
    "model.encoder.feed_forward_size=64",
)


def settings(*overrides):
    return plain(compose("benchmark", ["batch=[0.5,0.75,0.75]", *SHAPE, *overrides]))


@pytest.mark.parametrize("model", ["small", "large"])  # group norm, layer norm
@pytest.mark.parametrize("what", ["pretrain", "finetune", "inference"])
def test_both_sides_compute_the_same_on_uneven_clips(what, model):
    from speechssl.benchmarks.verify import compare

    found = compare(settings(f"what={what}", f"model={model}"))
    assert found["relative_difference"] < 1e-5
    # Two runs of equally long clips, and the whole batch.
    assert len(found["differences"]) == (3 if what == "pretrain" else 1)


def test_a_side_that_leaves_something_out_is_found(monkeypatch):
    from speechssl.benchmarks import verify

    build = verify.ours.build

    def without_one_bias(config):
        model = build(config)
        torch.nn.init.ones_(model["objective"].project_target.bias)
        return model

    monkeypatch.setattr(verify.ours, "build", without_one_bias)
    monkeypatch.setattr(verify.huggingface_out, "tensors", lambda _: verify.peer.build(settings()).state_dict())
    with pytest.raises(RuntimeError, match="compute different things"):
        verify.compare(settings())
