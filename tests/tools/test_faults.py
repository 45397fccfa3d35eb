"""The tool that breaks runs, briefly; docs/robustness.md has the figures of long runs."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "faults.py"))


@pytest.fixture
def folder(tmp_path):
    TOOL["corpus"](tmp_path)
    return tmp_path


def test_every_kind_of_fault_leaves_the_run_as_it_would_have_been(folder):
    found = TOOL["faults"](folder, 18, random.Random(0))
    assert found["different"] == []
    assert found["faults"] >= 18
    assert found["by_kind"].keys() == set(TOOL["KINDS"])


def test_a_killed_process_goes_on_from_a_checkpoint(folder):
    found = TOOL["kills"](folder, 2, random.Random(0), max_steps=30)
    assert found["different"] == []
    assert (found["kills"], found["resumes"]) == (2, 2)
    assert found["resumed_from_at_least"] >= 12
    assert found["most_steps_lost"] <= 2


def test_the_tool_would_notice(folder):
    """A run with another seed differs in all its parts but the names of links."""
    ours, theirs = (
        TOOL["outcome"](folder / name)
        for name, seed in (("a", 0), ("b", 1))
        if not TOOL["launch"](
            TOOL["overrides"](folder, name, "trainer.max_steps=4", "trainer.valid_every=2", f"trainer.seed={seed}"),
            folder / "log",
        ).join()
    )
    assert {"weights", "optimizer", "state", "metrics"} <= set(TOOL["differences"](ours, theirs))
