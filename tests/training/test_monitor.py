"""metrics.jsonl: averages, rows, and what a resume removes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from speechssl.errors import UserError
from speechssl.training.monitor import Averages, Monitor, append_row, truncate_rows


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_averages_are_sums_over_counts():
    averages = Averages()
    averages.add("accuracy", torch.tensor(3), 4)
    averages.add("accuracy", torch.tensor(1), 16)
    averages.add("loss", torch.tensor(2.5, requires_grad=True), 1)
    averages.add("never", 0.0, 0)
    assert averages.means() == {"accuracy": pytest.approx(0.2), "loss": 2.5}


def test_averages_survive_plain_data():
    averages = Averages()
    averages.add("loss", torch.tensor(0.1), 3)
    again = Averages(json.loads(json.dumps(averages.state())))
    for x in (averages, again):
        x.add("loss", torch.tensor(0.7), 1)
    assert again.means() == averages.means()


def test_what_is_not_finite_becomes_null(tmp_path):
    append_row(tmp_path / "metrics.jsonl", {"step": 1, "loss": math.nan, "lr": math.inf, "event": "x"})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "lr": None, "event": "x"}]


def test_rows_past_a_checkpoint_go_and_so_does_a_line_that_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 10, 10, 20):
        append_row(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 2')
    truncate_rows(path, last_step=10)
    assert rows(path) == [{"step": 1}, {"step": 10}, {"step": 10}]
    truncate_rows(path, last_step=0)
    assert rows(path) == []
    truncate_rows(tmp_path / "gone.jsonl", last_step=0)
    assert not (tmp_path / "gone.jsonl").exists()


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not JSON .*; remove that line"):
        truncate_rows(path, last_step=3)


def test_a_row_is_on_disk_at_once_and_in_tensorboard(tmp_path):
    monitor = Monitor(tmp_path, max_steps=2, first_step=0)
    monitor.write({"step": 1, "loss": 2.0})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    monitor.close()
    assert any((tmp_path / "tensorboard").iterdir())
