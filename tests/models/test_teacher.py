"""The teacher follows by an exponential average, whose memory is a share of the run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.errors import UserError
from speechssl.models.teacher import Teacher


def build(**options):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    copy = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    return student, Teacher(copy, **{"memory": (0.1, 0.5), "anneal": 0.5} | options)


def test_weights_are_the_students_at_first_then_its_average():
    student, teacher = build(copied=("2.",))
    teacher.begin_step(1, 100)
    teacher.follow(student)
    first = student[0].weight.detach().clone()
    assert torch.equal(teacher.network[0].weight, first)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.follow(student)  # not again within a step
    assert torch.equal(teacher.network[0].weight, first)
    teacher.begin_step(25, 100)
    # Momentum halfway from 1 - 1/10 to 1 - 1/50.
    assert teacher.momentum == pytest.approx((0.9 + 0.98) / 2)
    teacher.follow(student)
    torch.testing.assert_close(teacher.network[0].weight, first + (1 - teacher.momentum))
    assert torch.equal(teacher.network[2].weight, student[2].weight)
    teacher.begin_step(90, 100)
    assert teacher.momentum == pytest.approx(0.98)


def test_it_never_trains_and_never_drops_out():
    _, teacher = build()
    teacher.train()
    x = torch.ones(3, 2)
    assert torch.equal(teacher(x), teacher(x))
    assert not teacher(x).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert "started" in teacher.state_dict()


def test_memory_must_be_two_numbers():
    with pytest.raises(UserError, match="two numbers above 0"):
        build(memory=(0.1, 0.0))
