"""Rows of metrics.jsonl, without torch: reading them, and the figure of a validation that decides."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a last line that is only half there; none where there is no file."""
    return list(_rows(path)) if path.exists() else []


def cost(row: dict[str, Any], best: str) -> float:
    """The figure of a validation that decides, `best` of TrainerOptions, as lower is better; NaN or none is worst."""
    value = row.get(f"valid_{best.removeprefix('-')}")
    if value is None or math.isnan(value):
        return math.inf
    return -value if best.startswith("-") else value


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number != len(lines) - 1:
                raise UserError(
                    f"{path}:{number + 1} is not JSON ({error}); remove that line to go on with this run"
                ) from error
