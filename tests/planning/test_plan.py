"""The planner: counts against known models and torch's counter, fits against made-up machines, plans for budgets."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl import cli
from speechssl.config import compose, plain
from speechssl.planning import choose, cost, machine

# Overrides of steps whose work differs in kind.
SHAPES = (
    ("model=tiny", "batch=4x5"), ("model=tiny", "batch=16x2.5"), ("model=tiny", "batch=2x15"),
    ("model=tiny", "batch=6x5", "feature_encoder=fbank40"), ("model=tiny", "batch=6x5", "objective=best_rq"),
    ("model=small", "batch=4x5"), ("model=small", "batch=uneven"), ("model=base", "batch=2x5"),
)  # fmt: skip
CLIPS = {
    "4x5": [5] * 4,
    "16x2.5": [2.5] * 16,
    "2x15": [15] * 2,
    "6x5": [5] * 6,
    "2x5": [5] * 2,
    "uneven": [1, 3, 5, 8, 12, 15],
}
TRUTH = machine.Machine("cpu", machine.CPU_SECONDS, machine.CPU_BYTES, 16.0, "made up")


def settings(*overrides):
    return plain(compose("benchmark", overrides))


def work(*overrides, clips=None):
    composed = settings(*overrides)
    return cost.of_step(composed["model"], composed["objective"], clips or CLIPS[composed["batch"]])


@pytest.mark.parametrize(("model", "millions"), [("small", 6.76), ("base", 95.04), ("large", 317.4)])
def test_parameters_are_those_of_the_published_models(model, millions):
    assert work(f"model={model}").parameters == pytest.approx(1e6 * millions, rel=0.01)


def test_work_grows_as_the_kinds_say():
    one, two = (work("model=small", clips=[10.0] * n) for n in (1, 2))
    assert two.products == pytest.approx(2 * one.products, rel=0.05)
    assert two.attention == 2 * one.attention
    assert work("model=small", clips=[20.0]).attention == pytest.approx(4 * one.attention, rel=0.01)
    assert (
        work("model=tiny", "model.pretrain.feature_gradient_scale=0.0").convolutions < work("model=tiny").convolutions
    )


@pytest.mark.parametrize("overrides", [("model=tiny", "batch=2x2"), ("model=tiny", "batch=[1,3]", "objective=best_rq")])
def test_operations_are_those_that_torch_counts(overrides):
    from speechssl.benchmarks import meters
    from speechssl.benchmarks.worker import OURS, Worker

    composed = settings(*overrides, "trainer.device=cpu")
    side = Worker(OURS, composed).side
    counted = meters.count_flops(lambda: side.step(0))
    clips = {"2x2": [2, 2], "[1,3]": [1, 3]}[composed["batch"]]
    assert cost.of_step(composed["model"], composed["objective"], clips).operations == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("speed", [0.2, 1.0, 7.0])
def test_a_fit_predicts_configs_that_it_has_not_seen(speed):
    """A machine that is faster and of other proportions, measured with an error of 3 %."""
    random = np.random.default_rng(0)
    proportions = np.array([1.4, 0.8, 1.5, 0.7, 1.2, 1.0, 2.0])
    truth = machine.Machine(
        "x", tuple(np.array(machine.CPU_SECONDS) * proportions / speed), machine.CPU_BYTES, 16.0, ""
    )
    works = [work(*overrides) for overrides in SHAPES]
    noise = 1 + 0.03 * random.standard_normal((2, len(works)))
    seconds = [truth.step_seconds(one) for one in works] * noise[0]
    peaks = [truth.peak_bytes(one) for one in works] * noise[1]
    found = machine.fit("x", works, seconds, peaks, 16.0)
    for unseen in (
        work("model=base", clips=[3, 6, 11]),
        work("model=small", "model.encoder.num_layers=9", clips=[8] * 3),
    ):
        assert found.step_seconds(unseen) == pytest.approx(truth.step_seconds(unseen), rel=0.15)
        assert found.peak_bytes(unseen) == pytest.approx(truth.peak_bytes(unseen), rel=0.15)


def test_a_plan_fits_the_budget_and_says_what_limits():
    def best(**budget):
        return choose.choose(
            TRUTH, **{"hours": 10, "days": 1, "devices": 0, "memory_gib": 16, **budget}, models=models
        )[0]

    models = list(choose.LEAST_HOURS_SEEN)
    day, week = best(), best(days=60)
    assert day.days <= 1.0
    assert day.memory_gib <= 16 * choose.FILL
    assert day.hours_seen == pytest.approx(day.steps * day.batch_seconds * day.accumulate / 3600)
    assert models.index(week.model) >= models.index(day.model)
    assert best(days=0.02).model == "tiny"
    assert "audio" in best(hours=0.1).limit
    assert choose.choose(TRUTH, hours=10, days=1, devices=0, memory_gib=0.2, models=models) == []
    assert {plan.model for plan in choose.choose(TRUTH, hours=10, days=1, devices=0, memory_gib=2, models=models)} <= {
        "tiny",
        "small",
    }


def test_the_command_prints_commands_that_the_other_verbs_take(tmp_path, capsys):
    assert cli.main(["plan", "hours=40", "days=2", "gpu=a100", "labels_hours=1", f"out={tmp_path / 'plan.sh'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        _, verb, *overrides = line.split()
        compose(verb, overrides)
    assert [line.split()[1] for line in lines] == ["pretrain", "finetune"]
    assert (tmp_path / "plan.sh").read_text().endswith("\n".join(lines) + "\n")


def test_the_time_of_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.save(TRUTH, machine.cache_path())
    assert machine.load(machine.cache_path()) == TRUTH
    assert cli.main(["plan", "what=time", "model=tiny", "steps=1000", "batch_seconds=20"]) == 0
    assert "trainer.max_steps=1000" in capsys.readouterr().out
    assert cli.main(["plan", "what=time"]) == 2
    assert cli.main(["plan", "hours=4"]) == 2
    assert cli.main(["plan", "hours=4", "days=1", "gpu=abacus"]) == 2
