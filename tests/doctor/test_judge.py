"""Rows in, findings out: patience, causes before consequences, and what each disease is told by."""

from __future__ import annotations

import pytest

from speechssl.doctor.healthy import EDGES, Bands, measure
from speechssl.doctor.judge import Judge
from speechssl.doctor.rules import RULES

WELL = {
    "loss": 4.5,
    "loss_contrastive": 4.4,
    "accuracy": 0.05,
    "chance": 0.02,
    "code_usage": 0.3,
    "skipped_steps": 0.0,
    "blank_share": 0.1,
    "input_level": 0.05,
    "output_variance": 0.5,
    "loader_share": 0.02,
    "update_ratio/context": 1e-3,
    "update_ratio/quantizer.codebook": 2e-4,
}
BANDS = Bands(
    {
        "loss_contrastive": [[4.0, 4.8]] * len(EDGES),
        "code_usage": [[0.2, 0.6]] * len(EDGES),
        "blank_share": [[0.0, 0.4]] * len(EDGES),
        "accuracy_over_chance": [[1.0, 1.5]] * 8 + [[2.0, 4.0]] * (len(EDGES) - 8),
        "update_ratio/context": [[1e-4, 2e-3]] * len(EDGES),
        "update_ratio/quantizer.codebook": [[1e-5, 5e-4]] * len(EDGES),
    }
)


def findings(*changes, settings=None, patience=3, max_steps=100, begin=2):
    """Names of the findings of a run whose rows are WELL but for the changes, one row a change."""
    judge = Judge(bands=BANDS, settings=settings or {}, max_steps=max_steps, patience=patience)
    found = []
    for step, change in enumerate(changes, begin):
        row = {"step": step, **WELL, **change}
        found += judge.see({name: value for name, value in row.items() if value != "absent"})
    return found


def test_a_part_that_the_model_has_not_is_not_frozen():
    for parts, found in ((["context", "quantizer.codebook"], ["frozen_part"]), (["context"], [])):
        began = {"loss": "absent", "event": "began", "parts": parts}
        opened = findings(began, *[{"update_ratio/quantizer.codebook": "absent"}] * 3)
        assert [finding.name for finding in opened] == found


@pytest.mark.parametrize(
    ("change", "settings", "name", "mend"),
    [
        ({"input_level": 1e-6, "code_usage": 0.01}, {}, "silent_data", "audio"),
        ({"repeat_share": 0.6}, {}, "repeated_clips", "data.train"),
        ({"listed_twice": 0.99}, {}, "repeated_clips", "data.train"),
        ({"listed_twice": 0.0, "label_length_correlation": 0.03}, {}, "shuffled_labels", "data.train"),
        ({"skipped_steps": 0.5, "loss": None}, {"objective.gumbel_end": 0.0}, "temperature", "objective.gumbel_end"),
        ({"loss_contrastive": 900.0}, {"objective.temperature": 1e-4}, "temperature", "objective.temperature=0.1"),
        ({"skipped_steps": 1.0, "loss": None}, {"trainer.precision": "bf16"}, "half_precision", "fp32"),
        (
            {"skipped_steps": 1.0, "loss": None},
            {"trainer.precision": "fp32", "optim.lr": 0.1},
            "non_finite",
            "optim.lr",
        ),
        (
            {"update_ratio/context": 0.03, "update_ratio/quantizer.codebook": 0.01, "code_usage": 0.01},
            {"optim.lr": 0.015},
            "rate_too_high",
            "optim.lr=0.001",
        ),
        ({"update_ratio/quantizer.codebook": "absent"}, {}, "frozen_part", "requires_grad"),
        (
            {"code_usage": 0.05, "first_code_usage": 0.05},
            {"objective.diversity_weight": 0.0},
            "diversity_off",
            "diversity_weight=0.1",
        ),
        ({"code_usage": 0.05}, {"objective.diversity_weight": 0.1}, "codebook_collapse", "diversity_weight=0.2"),
        ({"output_variance": 1e-5}, {}, "collapse", "optim.warmup"),
        ({"blank_share": 0.999}, {}, "blank_plateau", "task.freeze_encoder"),
        ({"blank_share": 1.0, "first_blank_share": 1.0}, {}, "blank_plateau", "task.freeze_encoder"),
        ({"loader_share": 0.8}, {"data.num_workers": 2}, "loader_starved", "data.num_workers=4"),
        ({"memory_share": 0.97}, {}, "memory_full", "batch_seconds"),
    ],
)
def test_each_disease_is_named_alone_with_its_mend(change, settings, name, mend):
    found = findings(*[change] * 6, settings=settings)
    assert [one.name for one in found] == [name]
    assert found[0].step == 4  # the third row
    assert mend in found[0].mend


def test_guessing_is_a_finding_only_where_healthy_runs_have_left_it():
    guessing = {"accuracy": 0.02}
    assert findings(*[guessing] * 5, max_steps=1000) == []
    assert [one.name for one in findings(*[guessing] * 5, max_steps=300, begin=295)] == ["not_learning"]


def test_a_run_of_a_few_steps_is_not_judged_by_the_end_of_long_ones():
    assert findings(*[{"accuracy": 0.02}] * 5, max_steps=6) == []
    assert findings(*[{"code_usage": 0.01}] * 5, settings={"data.batch_seconds": 1.5}) == []


def test_every_rule_is_tried_above():
    tried = {
        "silent_data repeated_clips shuffled_labels temperature half_precision non_finite rate_too_high frozen_part "
        "diversity_off "
        "codebook_collapse collapse blank_plateau not_learning loader_starved memory_full"
    }
    assert {rule.name for rule in RULES} == set(*map(str.split, tried))


def test_a_healthy_run_has_no_finding():
    assert findings(*[{}] * 20) == []


def test_a_single_odd_row_says_nothing_and_a_finding_is_said_once():
    bad, well = {"code_usage": 0.01}, {}
    assert findings(bad, bad, well, bad, bad, well) == []
    assert len(findings(*[bad] * 5, well, *[bad] * 5)) == 1  # one good row does not close it
    assert len(findings(*[bad] * 5, *[well] * 3, *[bad] * 3)) == 2


def test_nothing_is_judged_by_curves_that_are_not_known():
    judge = Judge(bands=Bands({}), settings={}, max_steps=100, patience=1)
    assert judge.see({"step": 5, **WELL, "code_usage": 1e-9, "update_ratio/context": 1.0}) == []


def test_bands_are_the_extremes_of_healthy_runs_around_a_progress():
    runs = [
        [{"step": 1, "progress": p, "x": v} for p, v in ((0.0, 5.0), (0.05, 3.0), (0.95, 1.0))],
        [{"step": 1, "progress": 0.05, "x": 4.0, "y": float("nan")}],
    ]
    bands = Bands(measure(runs))
    assert bands.at("x", 0.05) == (3.0, 4.0)
    assert bands.at("x", 0.35) is None
    assert bands.ever("x") == (1.0, 5.0)
    assert bands.at("y", 0.05) is None
