"""What a finished or running run has logged: our metrics.jsonl, Hugging Face's trainer_state.json, fairseq's log.

Foreign figures get our names and units, so that they are judged as ours are; what a log does not say stays unknown.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from speechssl.doctor.healthy import Row
from speechssl.errors import UserError
from speechssl.training.rows import read_rows

# Their name -> ours.
HUGGING_FACE = {"learning_rate": "lr"}
FAIRSEQ = {"gnorm": "grad_norm", "temp": "gumbel_temperature", "loss_0": "loss_contrastive"}
# fairseq logs losses in bits, and its wav2vec 2.0 quantizer has 2 x 320 codewords unless its config says otherwise.
BITS, CODEWORDS = math.log(2), 640


@dataclass
class Log:
    """A run's rows and what is known of it.

    Attributes:
        path: the file that was read.
        rows: figures and events, in the order of the file.
        objective: name of the objective or task, None where unknown.
        max_steps: the run's length; that of the log where unknown.
        settings: the run's config, dotted; empty for another toolkit's.
    """

    path: Path
    rows: list[Row]
    objective: str | None
    max_steps: int
    settings: dict[str, Any] = field(default_factory=dict)


def read(where: str | Path) -> Log:
    """The log of a run folder of ours, a folder or trainer_state.json of Hugging Face's, or fairseq's log file.

    Raises:
        UserError: there is none, or it has no figures.
    """
    where = Path(where)
    if not where.exists():
        raise UserError(f"there is no run at {where}: give run_dir=DIR, a run's folder or another toolkit's log")
    for pattern, reader in (
        ("metrics.jsonl", _ours),
        ("trainer_state.json", _hugging_face),
        ("checkpoint-*/trainer_state.json", _hugging_face),
        ("*.log", _fairseq),
    ):
        found = [where] if where.is_file() and where.match(pattern) else list(where.glob(pattern))
        if found:
            log = reader(max(found, key=lambda path: path.stat().st_mtime))
            if not any("loss" in row for row in log.rows):
                raise UserError(f"{log.path} holds no figures of training yet; look again later, or at another run")
            return log
    raise UserError(f"{where} holds no metrics.jsonl, trainer_state.json or fairseq log; give the folder of a run")


def _ours(path: Path) -> Log:
    config = path.with_name("config.yaml")
    tree = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    settings = dict(_flatten(tree or {}))
    rows = read_rows(path)
    return Log(
        path=path,
        rows=rows,
        objective=settings.get("objective.name") or settings.get("task.name"),
        max_steps=settings.get("trainer.max_steps") or _last_step(rows),
        settings=settings,
    )


def _hugging_face(path: Path) -> Log:
    state = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for entry in state.get("log_history", []):
        row = {HUGGING_FACE.get(key, key): _number(value) for key, value in entry.items()}
        row = {key.replace("eval_", "valid_", 1): value for key, value in row.items()}
        if "loss" in row and row["loss"] is None:
            row["skipped_steps"] = 1.0
        rows.append(row)
    ctc = any("valid_wer" in row or "valid_cer" in row for row in rows)
    return Log(path, rows, "ctc" if ctc else None, state.get("max_steps") or _last_step(rows))


def _fairseq(path: Path) -> Log:
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = []
    for kind, line in re.findall(r"\[(train_inner|valid)\]\[INFO\] - (\{.*\})", text):
        entry = json.loads(line)
        prefix = "valid_" if kind == "valid" else ""
        row = {FAIRSEQ.get(key, key): _number(value) for key, value in entry.items()}
        step = row.get("num_updates") or row.get("valid_num_updates")
        for name in ("loss", "loss_contrastive"):
            if row.get(name) is not None:
                row[name] *= BITS
        if row.get("code_perplexity") is not None:
            row["code_usage"] = row["code_perplexity"] / CODEWORDS
        if step is not None:
            named = {key if key.startswith(prefix) else prefix + key: value for key, value in row.items()}
            rows.append({"step": int(step), **named})
    found = re.search(r"max_update'?\"?: (\d+)", text)
    objective = "wav2vec2" if any("code_perplexity" in row for row in rows) else None
    return Log(path, rows, objective, int(found[1]) if found else _last_step(rows))


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        leaves += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return leaves


def _number(value: Any) -> Any:
    """Numbers also where they are written as text; None for what is not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else None


def _last_step(rows: list[Row]) -> int:
    return int(max((row.get("step", 0) for row in rows), default=0))
