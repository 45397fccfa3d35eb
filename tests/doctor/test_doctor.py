"""What the doctor does in a run with what it finds: a warning, an event, a lower rate, a way back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from speechssl.doctor.doctor import Doctor
from speechssl.doctor.healthy import EDGES, Bands
from speechssl.doctor.judge import Judge

FAST = {"loss": 4.0, "update_ratio/context": 1.0, "update_ratio/projection": 1.0}
BANDS = Bands({name: [[1e-4, 1e-2]] * len(EDGES) for name in FAST if name != "loss"})


def judge(act, num_rows=4):
    """A doctor that has seen rows of a rate that is too high: what it answered last, its trainer, the events."""
    events = []
    trainer = SimpleNamespace(
        world=SimpleNamespace(rank=0, agree=lambda value: value),
        note=events.append,
        base_lrs=[1.0, 2.0],
        objective=SimpleNamespace(),
    )
    doctor = Doctor(act=act)
    doctor.trainer = trainer
    doctor.judging = Judge(bands=BANDS, settings={"optim.lr": 1.0}, max_steps=1000, patience=3)
    answers = [doctor.judge({"step": step, **FAST}) for step in range(2, 2 + num_rows)]
    return [answer for answer in answers if answer], trainer, events


@pytest.mark.parametrize("act", ["warn", "adjust", "rollback"])
def test_a_finding_is_said_once_and_kept_as_an_event(act):
    _, _, events = judge(act)
    assert [(event["event"], event["finding"], event["step"]) for event in events] == [("finding", "rate_too_high", 4)]
    assert events[0]["mend"] == "optim.lr=0.01"


def test_a_warning_changes_nothing():
    answers, trainer, _ = judge("warn")
    assert (answers, trainer.base_lrs) == ([], [1.0, 2.0])


def test_adjust_lowers_the_rate_and_says_so():
    answers, trainer, events = judge("adjust")
    assert answers == []
    assert trainer.base_lrs == pytest.approx([0.3, 0.6])
    assert "0.3 times" in events[0]["acted"]


def test_rollback_gives_the_reason_to_go_back_once():
    answers, trainer, _ = judge("rollback", num_rows=8)
    assert len(answers) == 1
    assert "rate_too_high" in answers[0]
    assert trainer.base_lrs == [1.0, 2.0]  # the trainer halves it on its way back


def test_off_measures_nothing(tmp_path):
    doctor = Doctor(act="off")
    assert (doctor.figures(), doctor.judge({"step": 1, "loss": 1.0})) == ({}, None)
