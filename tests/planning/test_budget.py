"""How many layers run again, by hand for a machine whose values take a byte each and nothing else counts."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from speechssl.errors import UserError
from speechssl.planning import cost
from speechssl.planning.budget import layers_to_recompute
from speechssl.planning.machine import Machine

VALUES_ALONE = Machine("test", "fp32", (), (0.0, 1.0, 0.0), 0.0, "by hand")
CTC = {"name": "ctc", "freeze_feature_encoder": True}


@pytest.fixture
def model(small_config):
    """Four layers of 32 and 64 channels; 10 s at 16 kHz are 499 frames, which round up to 512 rows."""
    return {"encoder": asdict(small_config(num_layers=4, hidden_size=32, feed_forward_size=64)), "sample_rate": 16_000}


def layers(model, values, **options):
    given = {"clip_seconds": [10.0], "parameters": 0, "memory_gib": values / 2**30, **options}
    return layers_to_recompute(VALUES_ALONE, model, CTC, **given)


def test_as_few_layers_as_it_takes(model):
    # A layer keeps 11 values of its 32 channels and 2 of its 64, or its input's 32.
    kept, inputs = 512 * (11 * 32 + 2 * 64), 512 * 32
    assert layers(model, 4 * kept) == 0
    # One that runs again makes all of its values once more: nothing is saved before the second.
    assert layers(model, 4 * kept - 1) == 2
    assert layers(model, 3 * kept + 2 * inputs) == 2
    assert layers(model, kept + 4 * inputs) == 4
    with pytest.raises(UserError, match=r"trainer.memory_gib=.* is too little.*data.batch_seconds"):
        layers(model, kept + 4 * inputs - 1)


def test_parameters_count_and_so_does_what_is_pretrained(model):
    machine = Machine("test", "fp32", (), (16.0, 1.0, 0.0), 0.0, "by hand")
    kept = 4 * 512 * (11 * 32 + 2 * 64)
    options = {"clip_seconds": [10.0], "parameters": 1000}
    assert layers_to_recompute(machine, model, CTC, memory_gib=(kept + 16_000) / 2**30, **options) == 0
    assert layers_to_recompute(machine, model, CTC, memory_gib=(kept + 15_999) / 2**30, **options) > 0
    hubert = {"name": "hubert", "num_clusters": 10, "mask_start_probability": 0.065, "mask_span": 10}
    hubert |= {"final_size": 16, "logits": "cosine", "unmasked_weight": 0.0, "feature_gradient_scale": 1.0}
    assert cost.activations(model, hubert, [10.0]) > kept
