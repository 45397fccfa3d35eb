"""Loss curves that a refactor must not change; `tools/golden.py` says how to write them anew."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "golden.py"))
GOLDEN = json.loads(TOOL["GOLDEN"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TOOL["OBJECTIVES"])
def test_losses_are_what_they_were(name):
    assert TOOL["curve"](name) == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize("name", TOOL["OBJECTIVES"])
def test_the_stored_losses_fall(name):
    assert sum(GOLDEN[name][-5:]) < sum(GOLDEN[name][:5])
