"""Trackers get each row's figures; one that is absent or unknown is a user's error with its mend."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from speechssl.errors import UserError
from speechssl.training.trackers import Trackers


@pytest.fixture
def calls(monkeypatch):
    """What a package of wandb's interface was called with."""
    found = []
    package = SimpleNamespace(
        init=lambda **options: found.append(("init", options)),
        log=lambda figures, step: found.append(("log", figures, step)),
        finish=lambda: found.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    return found


def test_a_row_is_handed_on(calls, tmp_path):
    trackers = Trackers(["wandb"], tmp_path / "first")
    trackers.write({"step": 3, "loss": 2.0, "event": "text"})
    trackers.close()
    assert calls == [("init", {"project": "speechssl", "name": "first"}), ("log", {"loss": 2.0}, 3), ("finish",)]


def test_what_cannot_be_used_is_said(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="wandb and trackio"):
        Trackers(["mlflow"], tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="pip install trackio"):
        Trackers(["trackio"], tmp_path)
