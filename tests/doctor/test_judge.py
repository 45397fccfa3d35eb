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
    ("healthy", "rank", "found"), [(1.14, 1.1, []), (1.14, 1.05, ["collapse"]), (9, 1.1, ["collapse"])]
)
def test_where_healthy_outputs_use_few_directions_a_collapse_is_fewer(healthy, rank, found):
    bands = Bands({"effective_rank": [[healthy, 40.0]] * len(EDGES)})
    judge = Judge(bands=bands, settings={}, max_steps=100, patience=3)
    rows = [{"step": step, **WELL, "effective_rank": rank} for step in (2, 3, 4)]
    assert [finding.name for row in rows for finding in judge.see(row)] == found


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


def test_a_long_run_need_not_be_nearly_over_to_be_called_blank(monkeypatch):
    # Short runs may be blank for half their steps.
    monkeypatch.setitem(BANDS.ranges, "blank_share", [[0.0, 1.0]] * len(EDGES))
    blank = [{"blank_share": 1.0, "first_blank_share": 0.1}] * 5
    assert findings(*blank, max_steps=12_000, begin=1500) == []
    assert [one.name for one in findings(*blank, max_steps=12_000, begin=2000)] == ["blank_plateau"]


def test_guessing_is_a_finding_only_where_healthy_runs_have_left_it():
    guessing = {"accuracy": 0.02}
    assert findings(*[guessing] * 5, max_steps=1000) == []
    assert [one.name for one in findings(*[guessing] * 5, max_steps=300, begin=295)] == ["not_learning"]


def test_a_run_of_a_few_steps_is_not_judged_by_the_end_of_long_ones():
    assert findings(*[{"accuracy": 0.02}] * 5, max_steps=6) == []
    assert findings(*[{"code_usage": 0.01}] * 5, settings={"data.batch_seconds": 1.5}) == []


def gaps(*values, max_steps=300, begin=200):
    found = findings(*[{"energy_gap": value} for value in values], max_steps=max_steps, begin=begin)
    return [(one.name, one.step) for one in found]


def test_a_gap_that_closes_late_is_a_finding():
    assert gaps(0.3, 0.2, 0.0, 0.001, 0.0) == [("pairs_alike", 204)]
    assert gaps(3.0, 2.0, 0.1, -0.1, 0.1) == [("pairs_alike", 204)]  # of logits, which are larger
    assert gaps(0.3, 0.2, 0.0, 0.001, 0.0, begin=2) == []  # early, gaps come and go
    assert gaps(0.3, 0.2, 0.0, 0.1, 0.0, 0.0, 0.1) == []
    assert gaps(*[-0.001] * 4) == [("pairs_alike", 202)]  # it never opened
    assert gaps(*[0.0] * 9) == []  # batches of one clip


def test_gaps_of_healthy_runs_are_no_finding():
    wav2vec2 = (0.0, 0.0, 0.001, 0.016, 0.027, 0.044, 0.052, 0.082, 0.098, 0.057, 0.079, 0.093, 0.118)
    hubert = (-0.008, 0.0004, 0.0047, 0.031, 0.36, 0.59, 1.1, 2.8, 0.96, 3.0, 1.7, 0.96, 1.2)
    for curve in (wav2vec2, hubert):
        assert gaps(*curve, max_steps=13, begin=1) == []
        assert gaps(*curve, begin=288) == []


def test_rows_without_the_figure_neither_open_nor_close_a_finding():
    well, bad, without = ({"energy_gap": 0.3}, {"energy_gap": 0.0}, {"energy_gap": "absent"})
    rows = [well, *[bad, without] * 3, *[without] * 4, *[bad] * 3]
    assert [one.name for one in findings(*rows, max_steps=300, begin=200)] == ["pairs_alike"]


FINETUNING = {"task.name": "ctc", "trainer.best": "cer"}
# (loss, CER) on valid of a fine-tuning on ten minutes of Mboshi without dropout or masks, every 200 steps.
BY_HEART = ((2.79, 0.72), (3.29, 0.668), (4.83, 0.693), (5.68, 0.698), (6.15, 0.694))


@pytest.mark.parametrize(
    ("validations", "settings", "found"),
    [
        (BY_HEART, FINETUNING, [("learned_by_heart", 500)]),
        (BY_HEART[:4], FINETUNING, []),
        ([(loss, 0.7 - loss / 100) for loss, _ in BY_HEART], FINETUNING, []),  # readings get better all the same
        ([(2.5 + cer, cer) for _, cer in BY_HEART], FINETUNING, []),  # no better, but no worse either
        (BY_HEART, {"trainer.best": "cer"}, []),  # a pretraining, whose targets may grow
        ([(loss, -cer) for loss, cer in BY_HEART], {**FINETUNING, "trainer.best": "-cer"}, [("learned_by_heart", 500)]),
    ],
)
def test_a_fine_tuning_that_gets_worse_on_valid(validations, settings, found):
    judge = Judge(bands=BANDS, settings=settings, max_steps=1000, patience=3)
    opened = []
    for step, (loss, cer) in enumerate(validations, 1):
        opened += judge.see({"step": 100 * step, **WELL})
        opened += judge.see({"step": 100 * step, "valid_loss": loss, "valid_cer": cer})
    assert [(one.name, one.step) for one in opened] == found


def test_a_run_that_went_back_is_judged_anew():
    bad, back = {"code_usage": 0.01}, {"loss": "absent", "event": "rolled_back", "rate_scale": 0.5}
    assert len(findings(*[bad] * 5, back, *[bad] * 3)) == 2
    assert len(findings(*[bad] * 2, back, *[bad] * 2)) == 0


def test_an_objective_without_a_diversity_weight_is_told_something_else():
    bad = [{"code_usage": 0.01}] * 3
    hubert = {"objective.name": "hubert", "objective.labels": None, "objective.num_clusters": 100}
    assert "diversity_weight" not in findings(*bad, settings=hubert)[0].mend
    assert "objective.num_clusters" in findings(*bad, settings=hubert)[0].mend
    assert findings(*bad)[0].mend == "objective.diversity_weight=0.1"  # another toolkit's log has no settings


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        ({"loss": None}, "the loss of this row is not finite"),
        ({"loss": float("nan")}, "the loss of this row is not finite"),
        ({"grad_norm": None}, "the gradient of this row is not finite"),
        ({"loss": None, "grad_norm": None}, "the loss and the gradient of this row are not finite"),
        ({"loss": None, "skipped_steps": 1.0}, "100% of the steps had a gradient that is not finite and were skipped"),
    ],
)
def test_what_is_not_finite_is_said_as_it_is(change, evidence):
    [found] = findings(*[change] * 4)
    assert (found.name, found.evidence) == ("non_finite", evidence)


def test_every_rule_is_tried_above():
    tried = {
        "silent_data repeated_clips shuffled_labels temperature half_precision non_finite rate_too_high frozen_part "
        "diversity_off "
        "codebook_collapse collapse pairs_alike blank_plateau not_learning loader_starved learned_by_heart memory_full"
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
