"""The one loop: accumulation, resuming, checkpoints, metrics, bad gradients."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from speechssl.data.loader import BatchLoader
from speechssl.data.text import BLANK
from speechssl.doctor.doctor import Doctor
from speechssl.doctor.rules import NUMBERS, Rule
from speechssl.errors import Interrupted, UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.manifest import Manifest
from speechssl.models.encoder import Encoder
from speechssl.objectives.wav2vec2 import Wav2Vec2Objective
from speechssl.training import files
from speechssl.training.checkpoint import load_checkpoint, model_config
from speechssl.training.distributed import TrainingModel
from speechssl.training.optim import build_optimizer
from speechssl.training.run import make_deterministic
from speechssl.training.trainer import Trainer, TrainerOptions
from speechssl.types import LossOutput, Term

OPTIONS = {
    "max_steps": 12,
    "accumulate": 1,
    "clip_norm": 5.0,
    "log_every": 3,
    "valid_every": 4,
    "checkpoint_every": 5,
    "keep_last": 2,
    "best": "loss_contrastive",
    "max_bad_steps": 3,
    "seed": 0,
    "device": "cpu",
    "precision": "fp32",
    "resume": "auto",
}
SCHEDULE = {"warmup": 0.25, "hold": 0.0, "decay": "linear", "floor": 0.0}
WALL_CLOCK = ("audio_seconds_per_second", "loader_share", "memory_gib", "memory_share")
SECONDS = (0.5, 0.6, 0.4, 0.8, 0.7, 0.9, 0.5, 1.2)


class Slope(nn.Module):
    """The loss is a weight times what it is told, so that every figure can be had by hand."""

    def __init__(self, slopes=()):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0]]))
        self.slopes = list(slopes)

    def begin_step(self, step, max_steps):
        self.slope = self.slopes[step - 1] if step <= len(self.slopes) else 1.0

    def counts(self, batch, frame_lengths):
        return {"slope": 4, "constant": 1}

    def forward(self, encoder, batch, generator):
        terms = {
            "slope": Term(self.slope * self.weight.sum(), 4, weight=10.0),
            "constant": Term(torch.tensor(0.5, requires_grad=True), 1),
        }
        return LossOutput(terms, {"accuracy": (torch.tensor(3), 4)})


@pytest.fixture
def build(tmp_path, write_corpus, small_config, wav2vec2_options):
    """`build(run, objective=…, weights=…, **options)`: a trainer of a small model on tones, with all randomness on."""
    manifests = Manifest(write_corpus("train", seconds=SECONDS)), Manifest(write_corpus("valid", seconds=(0.5, 0.7)))

    def make(run="run", *, objective=None, weights=0, encoder_changes=None, valid=True, doctor=None, **changes):
        torch.manual_seed(weights)
        encoder = Encoder(small_config(**{"dropout": 0.1, "layer_drop": 0.3} | (encoder_changes or {})))
        options = wav2vec2_options(feature_dropout=0.1)
        objective = objective or Wav2Vec2Objective(encoder.config, **options)
        shared = {"sample_rate": 16_000, "normalize": False, "min_samples": 400}
        loader = BatchLoader(manifests[0], **shared, batch_seconds=1.5, seed=0, max_clip_s=0.6)
        modules = nn.ModuleDict({"encoder": encoder, "objective": objective})
        return Trainer(
            encoder=encoder,
            objective=objective,
            loader=loader,
            valid_loader=BatchLoader(manifests[1], **shared, batch_seconds=1.5, seed=0, shuffle=False)
            if valid
            else None,
            optimizer=build_optimizer(
                modules.named_parameters(), lr=3e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01
            ),
            schedule=SCHEDULE,
            run_dir=tmp_path / run,
            run_config=f"run: {run}\n",
            config=model_config(sample_rate=16_000, normalize=False, encoder=encoder.config, objective=options),
            options=TrainerOptions(**OPTIONS | changes),
            doctor=doctor,
        )

    return make


def rows(trainer):
    path = trainer.run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figures(trainer):
    """Rows without events and without the clock."""
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows(trainer) if "event" not in row]


def after_step(trainer, step, action):
    """Have `action` happen within `step`, when its weights have changed and nothing has been written."""
    run_step = trainer.run_step

    def run(stream):
        run_step(stream)
        if trainer.step == step:
            action()

    trainer.run_step = run


class Killed(BaseException):
    """Nothing is saved on its way out."""


def die():
    raise Killed


def send(number):
    return lambda: os.kill(os.getpid(), number)


terminate = send(signal.SIGTERM)


def assert_same_run(ours, theirs):
    """Rows, weights, optimiser and state are equal bit by bit, and so is what `best` is."""
    assert figures(ours) == figures(theirs)
    ours, theirs = (t.run_dir / "checkpoints" for t in (ours, theirs))
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(folder / "last" / name) for folder in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert (ours / "last/trainer.json").read_text() == (theirs / "last/trainer.json").read_text()
    assert (ours / "best").readlink() == (theirs / "best").readlink()


# The gradient of several batches


class Recorder(torch.optim.SGD):
    """Keeps the gradients and changes nothing."""

    def step(self):
        self.gradients = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


def objectives(encoder, wav2vec2_options):
    """Objectives whose terms are sums over what a batch has: the diversity term's statistic is each batch's own."""
    yield Wav2Vec2Objective(encoder.config, **wav2vec2_options(diversity_weight=0.0))
    yield CTCObjective(
        encoder.config,
        vocabulary=[BLANK, "a", "b"],
        lowercase=False,
        dropout=0.0,
        mask_start_probability=0.05,
        mask_span=5,
        freeze_feature_encoder=False,
        freeze_encoder=0.0,
    )


@pytest.mark.parametrize("kind", [0, 1], ids=["wav2vec2", "ctc"])
def test_accumulated_uneven_batches_give_the_gradient_of_one_large_batch(
    build, make_batch, wav2vec2_options, kind, small_config
):
    lengths = [16_000, 12_000, 7_000, 5_000, 4_000, 3_000]
    targets = [torch.tensor([1, 2] * n) for n in (1, 3, 2, 1, 2, 1)]
    whole = make_batch(lengths, targets=targets)

    def part(*clips):
        piece = make_batch([lengths[i] for i in clips], targets=[targets[i] for i in clips])
        piece.waveforms = whole.waveforms[list(clips), : max(lengths[i] for i in clips)]
        piece.seeds = [whole.seeds[i] for i in clips]
        return piece

    gradients = []
    for batches in ([whole], [part(0), part(1, 2, 3, 4), part(5)]):
        torch.manual_seed(0)
        encoder = Encoder(small_config())
        objective = list(objectives(encoder, wav2vec2_options))[kind]
        trainer = build(objective=objective, accumulate=len(batches), clip_norm=0.0)
        trainer.encoder = encoder
        trainer.model = trainer.replica = TrainingModel(encoder, objective)
        trainer.optimizer = Recorder(trainer.model.parameters(), lr=1.0)
        trainer.base_lrs = [1.0]
        trainer.step = 1
        trainer.run_step(iter(batches))
        gradients.append(trainer.optimizer.gradients)
    assert len(gradients[0]) > 20
    for one, several in zip(*gradients, strict=True):
        torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-5 * one.abs().max().item())


# Stopping and going on


@pytest.mark.parametrize(
    ("stop", "step", "resumed_from"), [(terminate, 7, 7), (die, 8, 5), (die, 11, 10), (terminate, 1, 1)]
)
def test_a_run_that_stops_and_goes_on_is_the_same_bit_by_bit(build, stop, step, resumed_from):
    whole = build("whole")
    whole.fit()

    first = build("parts")
    after_step(first, step, stop)
    with pytest.raises((Interrupted, Killed)):
        first.fit()
    second = build("parts", weights=1)  # whose own weights must not matter
    second.fit()

    assert [row for row in rows(second) if "event" in row] == [
        {"step": resumed_from, "event": "resumed", "resumed_from": resumed_from}
    ]
    assert_same_run(second, whole)


@pytest.mark.parametrize("moment", ["row", "best"])
def test_a_kill_around_a_validation_loses_neither_its_row_nor_best(build, monkeypatch, moment):
    """Between the row and the checkpoint, and between the checkpoint and the move of `best`."""
    whole = build("whole")
    whole.fit()
    first = build("parts")
    with monkeypatch.context() as patch:
        if moment == "row":
            save = first.save
            patch.setattr(first, "save", lambda: die() if first.step == 4 else save())
        else:
            link, fatal = files.link, ("best", "step_4")
            patch.setattr(files, "link", lambda path, to: die() if (path.name, to) == fatal else link(path, to))
        with pytest.raises(Killed):
            first.fit()
    second = build("parts")
    second.fit()
    assert_same_run(second, whole)


def test_a_signal_during_validation_leaves_it_to_the_resumed_run(build):
    whole = build("whole")
    whole.fit()
    first = build("parts")
    once = first.valid_loader.once

    def stopped():
        for batch in once():
            terminate()
            yield batch
            yield batch

    first.valid_loader.once = stopped
    with pytest.raises(Interrupted, match=r"is saved at step 4 of 12"):
        first.fit()
    assert [row["step"] for row in rows(first)] == [1, 3]
    second = build("parts")
    second.fit()
    assert_same_run(second, whole)


def test_a_users_error_in_mid_run_loses_nothing(build, caplog):
    caplog.set_level("INFO")
    whole = build("whole")
    whole.fit()
    first = build("parts")
    stream = first.loader.stream

    def broken():
        for number, batch in enumerate(stream()):
            if number == 7:
                raise UserError("too many clips are broken")
            yield batch

    first.loader.stream = broken
    with pytest.raises(UserError, match="too many"):
        first.fit()
    assert load_checkpoint(first.run_dir).config["step"] == 7
    assert "saved at step 7; the same command goes on from there" in caplog.text
    second = build("parts")
    second.fit()
    assert_same_run(second, whole)


def test_an_error_within_an_update_saves_nothing(build):
    trainer = build()
    real, calls = trainer.optimizer.step, []

    def fail():
        calls.append(1)
        real()
        if len(calls) == 7:
            raise RuntimeError("half an update")

    trainer.optimizer.step = fail
    with pytest.raises(RuntimeError, match="half"):
        trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 5


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_rows(build):
    first = build()
    after_step(first, 4, die)
    with pytest.raises(Killed):
        first.fit()
    assert len(rows(first)) == 2
    second = build()
    second.fit()
    assert [row["step"] for row in rows(second)] == [1, 3, 4, 6, 8, 9, 12, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_says_where(build, number):
    before = signal.getsignal(number)
    trainer = build()
    after_step(trainer, 2, send(number))
    with pytest.raises(Interrupted, match=r"run was interrupted and is saved at step 2 of 12$"):
        trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 2
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once_but_a_schedulers_second_signal_does_not(build):
    def both(first, second):
        return lambda: (send(first)(), send(second)())

    trainer = build("at_once")
    after_step(trainer, 2, both(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert not (trainer.run_dir / "checkpoints").exists()
    trainer = build("saved")
    after_step(trainer, 2, both(signal.SIGUSR1, signal.SIGTERM))
    with pytest.raises(Interrupted):
        trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 2


def test_a_signal_in_the_last_step_is_too_late(build):
    trainer = build(valid=False)
    after_step(trainer, 12, terminate)
    trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 12


def test_a_second_run_on_the_same_folder_is_refused_by_name_of_the_first(build):
    trainer = build()
    reader, writer = os.pipe()

    def second():
        if os.fork() == 0:  # fcntl's locks are between processes
            try:
                build().fit()
            except UserError as error:
                os.write(writer, str(error).encode())
            os._exit(0)
        os.wait()

    after_step(trainer, 2, second)
    trainer.fit()
    said = os.read(reader, 10_000).decode()
    assert f"{trainer.run_dir} is in use by process {os.getpid()} on " in said
    assert "pytest" in said
    assert "choose another run_dir" in said
    assert not (trainer.run_dir / ".lock").exists()
    build(resume="must").fit()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("operation", ["write_tensors", "write_text", "sync", "rename"])
def test_a_full_disk_stops_with_one_sentence_and_the_last_checkpoint(build, monkeypatch, operation, number):
    trainer = build("parts", valid=False, max_steps=7, checkpoint_every=3)
    real = getattr(files, operation)

    def full(path, *args):
        if trainer.step == 6:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(files, operation, full)
        said = rf"not be written at step 6: {os.strerror(number)} \(.*\); the checkpoint of step 3 is whole; make room"
        with pytest.raises(Interrupted, match=said):
            trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 3
    build("parts", valid=False, max_steps=7, checkpoint_every=3).fit()
    whole = build("whole", valid=False, max_steps=7, checkpoint_every=3)
    whole.fit()
    assert figures(trainer) == figures(whole)


def test_an_event_that_a_full_disk_does_not_take_stops_with_one_sentence_too(build, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    trainer = build()
    monkeypatch.setattr(files, "append_text", full)
    with pytest.raises(Interrupted, match=r"not be written at step 0: No space left .*; there is no checkpoint"):
        trainer.note({"event": "finding"})


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_a_finished_run_is_left_as_it_is(build, caplog):
    caplog.set_level("INFO")
    trainer = build(max_steps=2)
    trainer.fit()
    before = contents(trainer.run_dir)
    again = build(max_steps=2)
    again.run_config = "other: true\n"
    again.fit()
    assert contents(trainer.run_dir) == before
    assert "is finished at step 2; nothing to do" in caplog.text


def test_what_may_not_be_resumed_is_left_as_it_is(build):
    trainer = build(max_steps=2)
    trainer.fit()
    before = contents(trainer.run_dir)
    with pytest.raises(UserError, match=r"holds a run already.*trainer\.resume=auto"):
        build(resume="never").fit()
    with pytest.raises(UserError, match=r"of another model: encoder\.hidden_size is 32 here and 16 there"):
        build(encoder_changes={"hidden_size": 32}).fit()
    assert contents(trainer.run_dir) == before


def test_must_resume_needs_something_to_resume(build):
    with pytest.raises(UserError, match=r"no checkpoint to resume from"):
        build(resume="must").fit()


def test_more_steps_go_on_from_the_end(build):
    build(max_steps=2).fit()
    trainer = build(max_steps=4, resume="must")
    trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 4


def test_a_checkpoint_that_last_never_pointed_at_is_written_anew(build):
    """A crash between the rename of a checkpoint and the move of `last` leaves one that nobody vouches for."""
    first = build()
    after_step(first, 5, terminate)
    with pytest.raises(Interrupted):
        first.fit()
    stray = first.run_dir / "checkpoints" / "step_10"
    stray.mkdir()
    build().fit()
    assert load_checkpoint(stray).config["step"] == 10


# What a run leaves


def test_checkpoints_are_kept_as_asked_and_best_is_the_best(build):
    trainer = build(max_steps=16, checkpoint_every=2, keep_last=2)
    trainer.fit()
    checkpoints = trainer.run_dir / "checkpoints"
    values = {row["step"]: row["valid_loss_contrastive"] for row in rows(trainer) if "valid_loss" in row}
    assert sorted(values) == [4, 8, 12, 16]
    best = f"step_{min(values, key=values.get)}"
    assert (checkpoints / "best").readlink() == Path(best)
    assert (checkpoints / "last").readlink() == Path("step_16")
    kept = {path.name for path in checkpoints.iterdir() if not path.is_symlink()}
    assert kept == {"step_14", "step_16", best}


def test_best_can_be_the_highest(build):
    trainer = build(max_steps=8, valid_every=2, best="-accuracy")
    trainer.fit()
    values = {row["step"]: row["valid_accuracy"] for row in rows(trainer) if "valid_loss" in row}
    assert (trainer.run_dir / "checkpoints" / "best").readlink() == Path(f"step_{max(values, key=values.get)}")


def test_a_figure_that_validation_does_not_give_is_one_sentence(build):
    with pytest.raises(UserError, match=r"no valid_wer to choose the best .* but .*valid_loss.*trainer\.best"):
        build(best="wer").fit()


def test_validation_is_no_part_of_training(build):
    """The same weights and rows with and without it."""
    with_it, without = build("with"), build("without", valid=False)
    with_it.fit()
    without.fit()
    assert [row for row in figures(with_it) if "loss" in row] == figures(without)
    ours, theirs = (t.model.state_dict() for t in (with_it, without))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_rows_have_what_the_contract_asks(build):
    trainer = build()
    trainer.fit()
    training = [row for row in rows(trainer) if "loss" in row]
    assert [row["step"] for row in training] == [1, 3, 6, 9, 12]
    for row in training:
        assert row["loss_contrastive"] > 0
        assert 0 <= row["accuracy"] <= 1
        assert 0 < row["chance"] <= 1
        assert 2 <= row["code_perplexity"] <= 10
        assert row["grad_norm"] > 0
        assert row["audio_seconds_per_second"] > 0
        parts = (row["loss_contrastive"], 0.1 * row["loss_diversity"], 10.0 * row["loss_feature_penalty"])
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert training[0]["lr"] == pytest.approx(3e-3 / 3)  # the first of three steps of warm-up
    assert training[-1]["lr"] == pytest.approx(0)
    validation = [row for row in rows(trainer) if "loss" not in row]
    assert [row["step"] for row in validation] == [4, 8, 12]
    for row in validation:
        assert all(key == "step" or key.startswith("valid_") for key in row)
        assert {"valid_loss", "valid_loss_contrastive", "valid_accuracy", "valid_chance"} <= row.keys()
    assert (trainer.run_dir / "config.yaml").read_text() == "run: run\n"


def test_rows_are_means_of_sums_over_counts(build):
    """Slope: sum 2 x 1, count 4, weight 10; constant: 0.5. The weight moves by the rate, 3e-3 of Adam, at each step."""
    trainer = build(objective=Slope(), valid=False, max_steps=3, log_every=3)
    trainer.fit()
    first, second = rows(trainer)
    assert (first["loss_slope"], first["loss_constant"], first["loss"]) == (0.5, 0.5, 5.5)
    assert first["accuracy"] == 0.75
    assert first["grad_norm"] == pytest.approx(10 / 4)
    assert second["step"] == 3
    assert 0.49 < second["loss_slope"] < 0.5
    assert second["loss"] == pytest.approx(10 * second["loss_slope"] + 0.5)


def test_the_gradient_is_clipped(build):
    """Adam hides the size of a gradient, plain descent does not: 1 x 0.5 in the end, of 2.5."""
    trainer = build(objective=Slope(), valid=False, clip_norm=0.5)
    trainer.optimizer = torch.optim.SGD(trainer.objective.parameters(), lr=3.0)
    trainer.base_lrs = [3.0]
    trainer.step = 1
    trainer.run_step(trainer.loader.stream())
    # lr 3 x 1/3 of warm-up at the first step
    assert trainer.objective.weight.item() == pytest.approx(2.0 - 0.5, abs=1e-4)
    assert trainer.averages.means()["grad_norm"] == pytest.approx(2.5)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(build, caplog):
    trainer = build(objective=Slope([1.0, float("nan"), float("inf"), 1.0]), valid=False, max_steps=5, log_every=1)
    weights = []
    run_step = trainer.run_step

    def run(stream):
        run_step(stream)
        weights.append(trainer.objective.weight.item())

    trainer.run_step = run
    trainer.fit()
    assert weights[0] == weights[1] == weights[2] != weights[3]
    assert [row["skipped_steps"] for row in rows(trainer)] == [0, 1, 1, 0, 0]
    assert rows(trainer)[1]["loss"] is None
    assert "step 3 skipped: its loss or gradient is not finite (2 in a row)" in caplog.text


def test_a_loss_that_is_not_finite_skips_the_step_though_its_gradient_is(build):
    class Endless(Slope):
        def forward(self, encoder, batch, generator):
            output = super().forward(encoder, batch, generator)
            if self.slope == 0.5:
                output.terms["constant"].sum = output.terms["constant"].sum + torch.inf
            return output

    trainer = build(objective=Endless([1.0, 0.5, 1.0]), valid=False, max_steps=3, log_every=3)
    trainer.fit()
    assert [row["skipped_steps"] for row in rows(trainer)] == [0, 0.5]
    assert rows(trainer)[1]["loss_constant"] == 0.5  # of the step that was not skipped


class Stumbling(Slope):
    """Not finite from step 7 on, so many times in all."""

    def __init__(self, times):
        super().__init__()
        self.left = times

    def begin_step(self, step, max_steps):
        self.slope = 1.0
        if step >= 7 and self.training and self.left:
            self.left -= 1
            self.slope = float("nan")


def test_a_run_that_diverges_goes_back_with_half_the_rate(build, caplog):
    trainer = build(objective=Stumbling(3), valid=False, log_every=1)
    trainer.fit()
    [event] = [row for row in rows(trainer) if "event" in row]
    assert event == {"step": 5, "event": "rolled_back", "rolled_back_from": 9, "rate_scale": 0.5}
    assert [row["step"] for row in rows(trainer) if "event" not in row] == list(range(1, 13))
    rates = {row["step"]: row["lr"] for row in rows(trainer) if "lr" in row}
    assert rates[5] == pytest.approx(3e-3 * 7 / 9)  # warmed up after 3 of 12 steps, then down to 0
    assert rates[6] == pytest.approx(3e-3 * 6 / 9 / 2)
    assert "3 steps in a row, up to step 9" in caplog.text
    assert "going on from step 5 with the rate times 0.5" in caplog.text
    assert sum(row.get("skipped_steps", 0) for row in rows(trainer)) == 0


def test_a_lower_rate_stays_lower_when_the_run_is_resumed(build):
    whole = build("whole", objective=Stumbling(3), valid=False, log_every=1)
    whole.fit()
    first = build("parts", objective=Stumbling(3), valid=False, log_every=1)
    after_step(first, 6, lambda: first.num_rollbacks and die())
    with pytest.raises(Killed):
        first.fit()
    second = build("parts", objective=Stumbling(0), valid=False, log_every=1)
    second.fit()
    assert figures(second) == figures(whole)
    assert torch.equal(second.objective.weight, whole.objective.weight)


def test_a_run_that_keeps_diverging_ends_and_says_why(build):
    trainer = build(objective=Stumbling(99), valid=False, max_rollbacks=2)
    with pytest.raises(
        UserError, match=r"stops after 2 times .*: 3 steps in a row, up to step 9,.* not finite.*optim\.lr"
    ):
        trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 5


def test_without_a_checkpoint_the_run_goes_on_from_where_it_is(build):
    trainer = build(objective=Slope([1.0] + [float("nan")] * 3), valid=False, max_steps=5, log_every=1)
    trainer.fit()
    assert [row["step"] for row in rows(trainer)] == [1, 2, 3, 4, 5]
    assert rows(trainer)[3]["event"] == "rolled_back"
    assert rows(trainer)[4]["lr"] < rows(trainer)[2]["lr"]


@pytest.fixture
def too_fast(monkeypatch):
    """`too_fast(limit)`: a rate above it is a finding that sends a run back."""

    def set_limit(limit):
        def look(case):
            return "fast" if case.get("lr") > limit else None

        rule = Rule("rate_too_high", NUMBERS, look, "the rate is too high", lambda case: "a lower one")
        monkeypatch.setattr("speechssl.doctor.judge.RULES", (rule,))

    return set_limit


def watched(build, run="run", **changes):
    doctor = Doctor(act="rollback", patience=3)
    return build(run, doctor=doctor, valid=False, log_every=1, checkpoint_every=1000, **changes)


def test_the_doctor_judges_validations_by_themselves(build, monkeypatch):
    rule = Rule("seen", NUMBERS, lambda case: f"{case.get('step')}", "cause", lambda case: "mend", figure="valid_loss")
    monkeypatch.setattr("speechssl.doctor.judge.RULES", (rule,))
    trainer = build(doctor=Doctor(act="warn", patience=2), log_every=1, valid_every=3)
    trainer.fit()
    assert [(row["step"], row["evidence"]) for row in rows(trainer) if row.get("event") == "finding"] == [(6, "6")]


def test_the_doctor_goes_back_to_the_beginning_before_the_first_checkpoint(build, too_fast):
    too_fast(1.6e-3)  # steps 2, 3 and 4 of 12, which have 2e-3, 3e-3 and 2.7e-3, and none at half the rate
    trainer = watched(build)
    trainer.fit()
    _, back, found, *steps = rows(trainer)
    assert back == {"step": 0, "event": "rolled_back", "rolled_back_from": 4, "rate_scale": 0.5}
    assert (found["finding"], found["step"], found["found_at"]) == ("rate_too_high", 0, 4)
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert max(row["lr"] for row in steps) == pytest.approx(1.5e-3)
    plain = build("plain", valid=False, log_every=1)
    plain.fit()
    assert steps[0]["loss"] == rows(plain)[0]["loss"]  # from the first weights


def test_a_rate_that_is_still_too_high_is_found_again(build, too_fast):
    too_fast(0.8e-3)
    trainer = watched(build)
    trainer.fit()
    assert [row["rate_scale"] for row in rows(trainer) if row.get("event") == "rolled_back"] == [0.5, 0.25]
    assert [row["found_at"] for row in rows(trainer) if row.get("event") == "finding"] == [3, 4]
    too_fast(1e-6)
    with pytest.raises(UserError, match=r"stops after 3 times .*rate_too_high.*lower optim\.lr"):
        watched(build, "ending").fit()


def test_a_run_that_went_back_to_the_beginning_can_be_resumed_there(build, too_fast):
    too_fast(1.6e-3)
    whole = watched(build, "whole")
    whole.fit()
    first = watched(build, "parts")
    after_step(first, 3, lambda: first.num_rollbacks and die())
    with pytest.raises(Killed):
        first.fit()
    second = watched(build, "parts")
    second.fit()
    watch = ("input_level", "repeat_share")
    assert [[row[name] for name in ("loss", "lr", *watch)] for row in figures(second)] == [
        [row[name] for name in ("loss", "lr", *watch)] for row in figures(whole)
    ]
    assert [row["found_at"] for row in rows(second) if row.get("event") == "finding"] == [4]


def test_only_a_run_that_may_go_back_saves_its_beginning(build):
    trainer = build(max_steps=3, keep_last=9, valid=False)
    trainer.fit()
    assert [path.name for path in (trainer.run_dir / "checkpoints").glob("step_*")] == ["step_3"]


def test_weights_that_are_not_finite_are_never_saved(build):
    trainer = build(objective=Slope(), valid=False, max_rollbacks=1)

    def spoil():
        trainer.objective.weight.data.fill_(float("inf"))
        trainer.objective.weight.requires_grad_(False)  # so that no gradient shows it

    after_step(trainer, 9, spoil)
    with pytest.raises(UserError, match=r"objective\.weight is not finite after step 10"):
        trainer.fit()
    assert load_checkpoint(trainer.run_dir).config["step"] == 5


def test_choices_differ_with_the_seed(build):
    runs = [build(f"{seed}", seed=seed, valid=False, max_steps=4, log_every=1) for seed in (0, 1)]
    for trainer in runs:
        trainer.fit()
    assert figures(runs[0]) != figures(runs[1])


def test_deterministic_algorithms_change_no_bit_on_a_cpu(build, monkeypatch):
    build("plain", max_steps=4).fit()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    make_deterministic()
    try:
        build("deterministic", max_steps=4).fit()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_run(build("deterministic"), build("plain"))


def test_bf16_trains(build):
    trainer = build(precision="bf16", max_steps=2)
    trainer.fit()
    assert all(row["grad_norm"] > 0 for row in rows(trainer) if "loss" in row)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


# Early stopping and the average of the best


class Valley(Slope):
    """Validation gives what it is told, whatever the weights."""

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def forward(self, encoder, batch, generator):
        output = super().forward(encoder, batch, generator)
        if not self.training and batch.utterances[0].id == "1":
            output.metrics["value"] = (self.values.pop(0), 1)
        return output


def test_a_run_ends_when_patience_does_and_stays_ended(build):
    trainer = build(objective=Valley([5.0, 3.0, 4.0, 3.5, 1.0]), best="value", patience=2, max_steps=100, valid_every=2)
    trainer.fit()
    assert trainer.step == 8
    checkpoints = trainer.run_dir / "checkpoints"
    assert (checkpoints / "best").readlink() == Path("step_4")
    assert (checkpoints / "last").readlink() == Path("step_8")
    again = build(objective=Valley([0.0]), best="value", patience=2, max_steps=100, valid_every=2)
    again.fit()
    assert again.step == 8 and len(rows(again)) == len(rows(trainer))


@pytest.mark.parametrize(("average", "best"), [(0.5, "average"), (2.5, "step_8")])
def test_the_average_of_the_best_is_best_where_it_is_better(build, average, best):
    values = [5.0, 3.0, 4.0, 2.0, average]
    trainer = build(objective=Valley(values), best="value", average_best=2, max_steps=8, valid_every=2)
    trainer.fit()
    checkpoints = trainer.run_dir / "checkpoints"
    assert (checkpoints / "best").readlink() == Path(best)
    weights = [load_file(checkpoints / name / "model.safetensors") for name in ("step_4", "step_8")]
    assert torch.equal(
        load_checkpoint(checkpoints / "last").tensors["objective.weight"], weights[1]["objective.weight"]
    )
    if best == "average":
        found = load_checkpoint(trainer.run_dir, prefer="best").tensors
        for name, tensor in found.items():
            assert torch.allclose(tensor, (weights[0][name] + weights[1][name]) / 2)
    [row] = [row for row in rows(trainer) if "averaged" in row]
    assert (row["averaged"], row["valid_value"]) == ([4, 8], average)
