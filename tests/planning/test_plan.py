"""The planner: counts against known models and torch's counter, fits against made-up machines, plans for budgets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from speechssl import cli
from speechssl.config import compose, config_dir, plain
from speechssl.errors import UserError
from speechssl.planning import calibrate, choose, cost, machine

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
TRUTH = machine.Machine("cpu", "fp32", machine.CPU_SECONDS, machine.CPU_BYTES, 16.0, "made up")


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


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=tiny", "batch=2x2"),
        ("model=tiny", "batch=[1,3]", "objective=best_rq"),
        ("model=tiny", "batch=2x2", "objective=reconstruction"),
        ("model=tiny", "batch=2x2", "objective=apc"),
        ("model=tiny", "batch=2x2", "objective=data2vec"),
        ("model=tiny", "batch=2x2", "objective=data2vec2"),
        ("model=tiny", "batch=2x2", "objective.num_masks=3", "objective.decoder_layers=4"),
        ("model=tiny", "batch=2x2", "objective=dinosr"),
        ("model=tiny", "batch=2x2", "objective=simclr"),
        ("model=tiny", "batch=2x2", "objective=byol"),
        ("model=tiny", "batch=2x2", "objective=best_rq", "model.encoder.hourglass=3"),
        ("model=tiny", "batch=2x2", "objective=best_rq", "feature_encoder=stack40"),
    ],
    ids=" ".join,
)
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
        "x", "fp32", tuple(np.array(machine.CPU_SECONDS) * proportions / speed), machine.CPU_BYTES, 16.0, ""
    )
    works = [work(*overrides) for overrides in SHAPES]
    noise = 1 + 0.03 * random.standard_normal((2, len(works)))
    seconds = [truth.step_seconds(one) for one in works] * noise[0]
    peaks = [truth.peak_bytes(one) for one in works] * noise[1]
    found = machine.fit("x", "fp32", works, seconds, peaks, 16.0)
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


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        # Forward and backward are 3.5 forward passes of attention; a teacher's pass is one more.
        (("objective=data2vec",), 3.5 + 1),
        (("objective=data2vec", "objective.num_masks=4"), 4 * 3.5 + 1),
        # Of 20 ms frames 0.935^10 = 0.5106 are visible; attention goes with the square.
        (("objective=data2vec2",), 8 * 3.5 * 0.5106**2 + 1),
        (("objective=dinosr",), 3.5 + 1),
        (("objective=apc",), 3.5),
    ],
)
def test_teachers_and_masks_are_passes_of_attention(objective, passes):
    one_pass = work("model=base", clips=[10.0]).attention / 3.5
    assert work("model=base", *objective, clips=[10.0]).attention == pytest.approx(passes * one_pass, rel=1e-3)


def test_views_are_two_crops_a_clip_and_a_teacher_sees_them_too():
    crops = work("model=base", "model.pretrain.feature_gradient_scale=1.0", clips=[1.0] * 4)
    student = work("model=base", "objective=simclr", "model.pretrain.feature_gradient_scale=1.0", clips=[10.0, 5.0])
    both = work("model=base", "objective=byol", "model.pretrain.feature_gradient_scale=1.0", clips=[10.0, 5.0])
    alone = work("model=base", "objective=byol", "objective.teacher=none", clips=[10.0, 5.0])
    assert student.convolutions == crops.convolutions
    assert student.attention == alone.attention == crops.attention
    assert both.attention == pytest.approx(4.5 / 3.5 * crops.attention)
    # BASE's encoder has 94.4 M parameters; a teacher's have no gradient and no moments, a quarter of the bytes.
    assert both.parameters - alone.parameters == pytest.approx(94.4e6 / 4, rel=0.01)


@pytest.mark.parametrize("objective", ["cpc", "wav2vec", "pretext", "multi"])
def test_an_objective_that_is_not_counted_is_refused_with_those_that_are(objective, capsys):
    assert cli.main(["plan", "what=time", "model=tiny", "gpu=a100", f"objective={objective}"]) == 2
    said = capsys.readouterr().err
    assert f"objective={objective}" in said
    assert "data2vec2" in said


def test_every_objective_is_counted_or_refused():
    refused = {"cpc", "wav2vec", "pretext", "multi"}
    for path in (config_dir() / "objective").glob("*.yaml"):
        if path.stem in refused:
            with pytest.raises(UserError, match="cannot count"):
                work("model=tiny", f"objective={path.stem}", clips=[5.0])
        else:
            assert work("model=tiny", f"objective={path.stem}", clips=[5.0]).operations > 0


@pytest.mark.parametrize(
    ("given", "key"), [("hours=0", "hours"), ("hours=-1", "hours"), ("gpus=-1", "gpus"), ("precision=fp8", "precision")]
)
@pytest.mark.parametrize("what", [("what=time", "model=tiny"), ("what=plan", "days=1")])
def test_budgets_out_of_range_are_named(what, given, key, capsys):
    assert cli.main(["plan", *what, "gpu=a100", given]) == 2
    assert f"error: speechssl plan: {key}=" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_said(capsys):
    timed = ["plan", "what=time", "model=base", "gpu=a100", "hours=100"]
    assert cli.main([*timed, "batch_seconds=80"]) == 0
    assert "does not fit" not in capsys.readouterr().err
    assert cli.main([*timed, "batch_seconds=5000"]) == 0
    said = capsys.readouterr().err
    assert "does not fit" in said
    assert "batch_seconds=" in said
    assert cli.main([*timed, "memory_gib=2"]) == 0
    assert "a smaller model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "device", "devices", "precision"),
    [
        (("hours=960", "days=7", "gpus=8", "gpu=a100"), "cuda", 8, "bf16"),
        (("what=time", "model=tiny", "gpus=8", "gpu=a100", "precision=fp32"), "cuda", 8, "fp32"),
        (("what=time", "model=tiny", "gpu=v100"), "cuda", 1, "fp32"),  # Volta has no bf16
        (("what=time", "model=base", "gpus=2", "gpu=h100"), "cuda", 2, "bf16"),
        (("what=time", "model=tiny"), "cpu", 1, "fp32"),
    ],
)
def test_the_command_runs_on_what_its_costs_are_for(given, device, devices, precision, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.save(TRUTH, machine.cache_path("cpu", "fp32"))
    script = tmp_path / "plan.sh"
    assert cli.main(["plan", *given, f"out={script}"]) == 0
    for line in (capsys.readouterr().out.splitlines()[0], script.read_text().splitlines()[-1]):
        _, verb, *overrides = line.split()
        trainer = compose(verb, overrides).trainer
        assert (trainer.device, trainer.devices, trainer.precision) == (device, devices, precision)


def test_fp32_on_a_gpu_takes_longer_and_more_memory():
    one = work("model=base", clips=[10.0] * 8)
    half, single = (machine.gpu("a100", precision) for precision in ("bf16", "fp32"))
    # 312 against 19.5 TFLOP/s.
    assert single.seconds[1] == pytest.approx(16 * half.seconds[1])
    assert single.step_seconds(one) > half.step_seconds(one)
    assert single.peak_bytes(one) > half.peak_bytes(one)
    with pytest.raises(UserError, match="precision=bf16"):
        machine.gpu("t4", "bf16")


@pytest.mark.parametrize(
    ("memory", "precision", "name"),
    [(None, None, "t4"), (None, "bf16", "rtx3090"), (24, None, "rtx3090"), (24, "fp32", "l4"), (32, None, "v100")],
)
def test_the_gpu_of_a_memory_is_the_slowest_of_that_size(memory, precision, name):
    assert machine.gpu_with(memory, precision) == name


@pytest.mark.parametrize(
    ("given", "device", "precision"),
    [
        ((), "cpu", "fp32"),  # though there is a GPU
        (("gpus=1",), "cuda", "fp32"),
        (("precision=bf16",), "cpu", "bf16"),
        (("gpus=1", "precision=bf16"), "cuda", "bf16"),
    ],
)
def test_a_calibration_answers_for_its_device_and_precision_alone(given, device, precision, tmp_path, monkeypatch):
    asked = []

    def measured(*, device, precision):
        asked.append((device, precision))
        return replace(TRUTH, name=device, precision=precision)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(calibrate, "calibrate", measured)
    for others in {("cpu", "fp32"), ("cuda", "fp32"), ("cpu", "bf16"), ("cuda", "bf16")} - {(device, precision)}:
        machine.save(TRUTH, machine.cache_path(*others))
    for _ in range(2):  # kept, the second time
        assert cli.main(["plan", "what=time", "model=tiny", *given]) == 0
    assert asked == [(device, precision)]


def test_the_command_prints_commands_that_the_other_verbs_take(tmp_path, capsys):
    assert cli.main(["plan", "hours=40", "days=2", "gpu=a100", "labels_hours=1", f"out={tmp_path / 'plan.sh'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        _, verb, *overrides = line.split()
        compose(verb, overrides)
    assert [line.split()[1] for line in lines] == ["pretrain", "finetune"]
    assert (tmp_path / "plan.sh").read_text().endswith("\n".join(lines) + "\n")


@pytest.mark.parametrize(("labels_hours", "steps"), [(0.2, 1500), (1, 3000), (4, 6000)])
def test_a_small_plan_is_that_of_the_recipes(labels_hours, steps, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.save(TRUTH, machine.cache_path("cpu", "fp32"))
    assert cli.main(["plan", "hours=4", "days=0.05", f"labels_hours={labels_hours}"]) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    pretrain, finetune = (compose(verb, given) for _, verb, *given in commands)
    assert (pretrain.model.name, pretrain.objective.name) == ("tiny", "hubert")
    assert pretrain.model.encoder.feature_encoder == "stacked"
    assert (finetune.optim.lr, finetune.data.batch_seconds, finetune.trainer.max_steps) == (1e-3, 10, steps)


def test_the_time_of_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.save(TRUTH, machine.cache_path("cpu", "fp32"))
    assert machine.load(machine.cache_path("cpu", "fp32")) == TRUTH
    assert cli.main(["plan", "what=time", "model=tiny", "steps=1000", "batch_seconds=20"]) == 0
    assert "trainer.max_steps=1000" in capsys.readouterr().out
    assert cli.main(["plan", "what=time"]) == 2
    assert cli.main(["plan", "hours=4"]) == 2
    assert cli.main(["plan", "hours=4", "days=1", "gpu=abacus"]) == 2
