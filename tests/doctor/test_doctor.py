"""What the doctor does in a run with what it finds: a warning, an event, a lower rate, a way back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from speechssl.doctor import healthy
from speechssl.doctor.doctor import Doctor
from speechssl.doctor.healthy import EDGES, Bands
from speechssl.doctor.judge import Judge

FAST = {"loss": 4.0, "update_ratio/context": 1.0, "update_ratio/projection": 1.0}
BANDS = Bands({name: [[1e-4, 1e-2]] * len(EDGES) for name in FAST if name != "loss"})


def begin(act):
    """A doctor, its trainer, and the events that it will write."""
    events = []
    trainer = SimpleNamespace(
        world=SimpleNamespace(rank=0, agree=lambda value: value),
        note=events.append,
        base_lrs=[1.0, 2.0],
        objective=SimpleNamespace(),
    )
    doctor = Doctor(act=act)
    doctor.trainer, doctor.first_rate = trainer, 1.0
    doctor.judging = Judge(bands=BANDS, settings={"optim.lr": 1.0}, max_steps=1000, patience=3)
    return doctor, trainer, events


def judge(act, num_rows=4):
    """A doctor that has seen rows of a rate that is too high: what it answered, its trainer, the events."""
    doctor, trainer, events = begin(act)
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


def test_adjust_acts_again_when_it_has_not_helped_but_not_without_end():
    _, trainer, events = judge("adjust", num_rows=30)
    assert [event["step"] for event in events] == [4, 7, 10, 13]
    assert [bool(event["acted"]) for event in events] == [True, True, True, False]
    assert trainer.base_lrs[0] == pytest.approx(0.3**3)
    assert [event["mend"] for event in events] == [f"optim.lr={rate}" for rate in ("0.01", "0.003", "0.0009", "0.0003")]


def test_a_resumed_run_is_as_far_with_its_findings(tmp_path, monkeypatch):
    """Whoever reads the rows and events of a run knows what the run itself knew."""
    doctor, trainer, events = begin("adjust")
    rows = []
    for step in range(2, 9):
        rows.append({"step": step, **FAST})
        doctor.judge(rows[-1])
        rows += events[len([row for row in rows if "event" in row]) :]
    monkeypatch.setattr(healthy, "load", lambda objective: BANDS)
    monkeypatch.setattr("speechssl.doctor.doctor.read_rows", lambda path: rows)
    monkeypatch.setattr("speechssl.doctor.doctor.data_facts", lambda loader: {})
    again, late, _ = begin("adjust")
    late.step, late.monitor, late.loader = 8, SimpleNamespace(path=tmp_path), None
    late.encoder, late.options = SimpleNamespace(context=nn.Identity()), SimpleNamespace(max_steps=1000)
    again.attend(late)
    assert late.base_lrs == pytest.approx(trainer.base_lrs)
    for name in ("bad", "good", "open", "rate_scales"):
        assert getattr(again.judging, name) == getattr(doctor.judging, name)
    assert again.found == doctor.found


def test_after_the_run_went_back_its_findings_are_kept_and_it_is_judged_anew():
    doctor, _, events = begin("rollback")
    back = {"step": 1, "event": "rolled_back", "rolled_back_from": 4, "rate_scale": 0.5}
    for times in (1, 2):
        del events[:]  # their lines go with the rows
        answers = [doctor.judge({"step": step, **FAST}) for step in (2, 3, 4)]
        assert [bool(answer) for answer in answers] == [False, False, True]
        doctor.went_back({**back, "rate_scale": 0.5**times})
        kept = [event for event in events if "found_at" in event]
        assert [(event["step"], event["found_at"], event["finding"]) for event in kept] == [(1, 4, "rate_too_high")]
    assert [event["mend"] for event in doctor.found] == ["optim.lr=0.01", "optim.lr=0.005"]
    # What the report does with the run's lines.
    reader = Judge(bands=BANDS, settings={}, max_steps=1000, patience=3)
    found = [finding for row in [back, *doctor.found] for finding in reader.see(row)]
    assert [(finding.name, finding.step) for finding in found] == [("rate_too_high", 4)] * 2
    assert reader.open == {}


def test_rollback_gives_the_reason_to_go_back_once():
    answers, trainer, _ = judge("rollback", num_rows=8)
    assert len(answers) == 1
    assert "rate_too_high" in answers[0]
    assert trainer.base_lrs == [1.0, 2.0]  # the trainer halves it on its way back


def test_off_measures_nothing(tmp_path):
    doctor = Doctor(act="off")
    assert (doctor.figures(), doctor.judge({"step": 1, "loss": 1.0})) == ({}, None)
