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
# fairseq logs losses in bits, and its wav2vec 2.0 has 2 x 320 codewords and 100 distractors unless its config says
# otherwise.
BITS, CODEWORDS, DISTRACTORS = math.log(2), 640, 100


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
        rows.append({key.replace("eval_", "valid_", 1): value for key, value in row.items()})
    _unfilter(rows)
    _count_wordless(rows)
    ctc = any("valid_wer" in row or "valid_cer" in row for row in rows)
    return Log(path, rows, "ctc" if ctc else None, state.get("max_steps") or _last_step(rows))


def _unfilter(rows: list[Row]) -> None:
    """Losses that are not finite: the Trainer logs 0 for them (logging_nan_inf_filter), beside such a gradient norm."""
    losses = [row["loss"] for row in rows if "loss" in row]
    for row in rows:
        if "loss" in row and not row["loss"] and (row.get("grad_norm", 0.0) is None or not any(losses)):
            row["loss"] = None


def _count_wordless(rows: list[Row]) -> None:
    """`wordless_validations`: how many there have been when none had a word right; an answer that is empty has 1.0."""
    rates: list[float] = []
    for row in rows:
        rates += [row[name] for name in ("valid_wer", "valid_cer") if row.get(name) is not None][:1]
        if "loss" in row and rates:
            row["wordless_validations"] = len(rates) * all(rate == 1.0 for rate in rates)


def _fairseq(path: Path) -> Log:
    """Lines of JSON, as hydra writes them and as `fairseq-train --log-format json` does."""
    text = path.read_text(encoding="utf-8", errors="replace")
    chance = 1 / (1 + _argument(text, "num_negatives", DISTRACTORS) + _argument(text, "cross_sample_negatives", 0))
    rows = []
    for kind, line in re.findall(r"\b(train_inner|valid)(?:\]\[INFO\] - | \| )(\{.*\})", text):
        row = _fairseq_row(json.loads(line), chance)
        step = row.pop("num_updates", None)
        if step is not None:
            prefix = "valid_" if kind == "valid" else ""
            rows.append({"step": int(step), **{prefix + name: value for name, value in row.items()}})
    objective = "wav2vec2" if any("code_perplexity" in row for row in rows) else None
    return Log(path, rows, objective, _argument(text, "max_update", 0) or _last_step(rows))


def _fairseq_row(entry: dict[str, Any], chance: float) -> Row:
    """Our names and nats, and what follows from the figures; `chance` is the accuracy of guessing."""
    row = {}
    for key, value in entry.items():
        name, number = key.removeprefix("valid_"), _number(value)
        is_loss = re.fullmatch(r"(best_|nll_)?loss(_\d+)?", name) and isinstance(number, float)
        row[FAIRSEQ.get(name, name)] = number * BITS if is_loss else number
    if row.get("code_perplexity") is not None:
        row |= {"code_usage": row["code_perplexity"] / CODEWORDS, "chance": chance}
    return row


def _argument(text: str, name: str, default: int) -> int:
    """A setting of fairseq's, from the settings that a log begins with: a dict, or a Namespace in older ones."""
    found = re.search(rf"\b{name}['\"]?[:=] ?(\d+)", text)
    return int(found[1]) if found else default


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
