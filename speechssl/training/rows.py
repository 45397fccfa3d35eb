"""Reading metrics.jsonl, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a last line that is only half there; none where there is no file."""
    return list(_rows(path)) if path.exists() else []


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
