"""Pretext tasks label what they did; several objectives add up."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from speechssl.config import OF_TRAINING, compose, plain
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.views import change_speed, reorder
from speechssl.objectives.multi import MultiObjective
from speechssl.objectives.pretext import ORDERS, SPEEDS, PretextObjective


def test_labels_are_what_was_done_to_each_clip(small_config, make_batch):
    torch.manual_seed(0)
    objective = PretextObjective(small_config(), sample_rate=16_000, feature_gradient_scale=1.0)
    batch = make_batch([12_000, 9_000, 6_000, 450])
    altered, done = objective.transform(batch)
    for i, n in enumerate([12_000, 9_000, 6_000]):
        order, backward, speed = (int(done[name][i]) for name in ("order", "direction", "speed"))
        expected = reorder(batch.waveforms[i, :n], list(ORDERS[order]), 80)
        expected = change_speed(expected.flip(0) if backward else expected, SPEEDS[speed])
        assert torch.equal(altered.waveforms[i, : altered.lengths[i]], expected)
    assert altered.lengths[3] >= 400
    many = make_batch([1_000] * 60)
    _, done = objective.transform(many)
    assert [len(set(done[name].tolist())) for name in ("order", "direction", "speed")] == [6, 2, 3]


def test_parts_are_weighted_and_named(small_config, make_batch):
    config = compose(
        "pretrain",
        [
            "model=tiny",
            "objective=multi",
            "objective.parts=[pretext,best_rq]",
            "objective.weights=[0.5,2]",
            "objective.settings=['best_rq.num_codewords=64']",
            "data.train=x",
            "run_dir=x",
        ],
    )
    values = {key: value for key, value in plain(config.objective).items() if key not in ("name", *OF_TRAINING)}
    values = MultiObjective.complete(values, config)
    assert values["settings"]["best_rq"]["sample_rate"] == 16_000
    assert values["settings"]["best_rq"]["num_codewords"] == 64
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder))).eval()
    objective = MultiObjective(encoder.config, **values).eval()
    batch = make_batch([9_000, 6_000])
    found = objective(encoder, batch)
    assert {name: term.weight for name, term in found.terms.items()} == {
        "pretext_order": 0.5,
        "pretext_direction": 0.5,
        "pretext_speed": 0.5,
        "best_rq_masked": 2.0,
    }
    alone = objective.parts["best_rq"](encoder, batch).terms["masked"]
    torch.testing.assert_close(found.terms["best_rq_masked"].sum, alone.sum)
    assert {"best_rq_accuracy", "best_rq_chance", "energy_gap"} <= found.metrics.keys()
    # Those without a part's name are the first's alone, and not of whichever has one.
    bare = {name for name in found.metrics if not name.startswith(("pretext_", "best_rq_"))}
    assert bare == set(objective.parts["pretext"](encoder, batch).metrics)
    assert not objective.has_frame_labels


@pytest.mark.parametrize(
    ("settings", "reason"),
    [("apc.x=1", "'apc', which is not among"), ("best_rq.words=3", "'words', but the settings of best_rq are")],
)
def test_settings_of_no_part_are_one_sentence(settings, reason):
    config = compose("pretrain", ["model=tiny", "objective=multi", "data.train=x", "run_dir=x"])
    values = {"parts": ["best_rq"], "weights": [1.0], "settings": [settings]}
    with pytest.raises(UserError, match=reason):
        MultiObjective.complete(values, config)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [(["gpt"], "the objectives are apc"), (["apc"], "an encoder of its own"), (["multi"], "the objectives are apc")],
)
def test_parts_that_cannot_be_are_one_sentence(parts, reason):
    with pytest.raises(UserError, match=reason):
        MultiObjective.complete({"parts": parts, "weights": [1.0], "settings": []}, OmegaConf.create({"model": {}}))
