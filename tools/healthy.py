"""Make speechssl/doctor/healthy/OBJECTIVE.json from folders of runs that went well.

    python tools/healthy.py [--add] RUN [RUN ...]

The ranges of each objective are those of all its runs that are given, and with --add those of the file before; it
names the settings that made them. A run of fewer than 300 steps counts only for figures that do not say how far it has
come.
"""

from __future__ import annotations

import argparse
import json

from speechssl.doctor import healthy, logs

# Figures that the doctor judges or the report draws; how fast or how large the machine is says nothing of health.
KEPT = (
    *("loss_", "accuracy", "code_usage", "code_perplexity", "blank_share", "grad_norm"),
    *("energy_gap", "output_variance", "effective_rank", "target_variance", "update_ratio/"),
)
OF_ANY_LENGTH = ("output_variance", "effective_rank", "target_variance", "update_ratio/")
SETTINGS = (
    *("model.name", "model.encoder.feature_encoder", "model.encoder.conv_norm", "data.train", "data.batch_seconds"),
    *("trainer.max_steps", "trainer.seed", "optim.lr", "init"),
)


def main(folders: list[str], *, add: bool) -> None:
    runs: dict[str, list[logs.Log]] = {}
    for folder in folders:
        log = logs.read(folder)
        runs.setdefault(log.objective, []).append(log)
    healthy.FOLDER.mkdir(exist_ok=True)
    for objective, found in runs.items():
        path = healthy.FOLDER / f"{objective}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if add else {"runs": [], "ranges": {}}
        made = [{key: _short(log.settings.get(key)) for key in SETTINGS if key in log.settings} for log in found]
        content = {
            "made_by": "python tools/healthy.py RUN ...",
            "runs": before["runs"] + made,
            "edges": healthy.EDGES,
            "ranges": _union(before["ranges"], healthy.measure([_rows(log) for log in found])),
        }
        path.write_text(_json(content) + "\n", encoding="utf-8")
        print(f"{path}: {len(content['ranges'])} figures of {len(content['runs'])} runs")


def _rows(log: logs.Log) -> list[healthy.Row]:
    kept = OF_ANY_LENGTH if log.max_steps < healthy.SHORTEST else KEPT
    return [
        {
            "progress": row["step"] / log.max_steps,
            **{key: value for key, value in healthy.derive(row, log.settings).items() if key.startswith(kept)},
        }
        for row in log.rows
        if "loss" in row
    ]


def _union(before: dict, now: dict) -> dict:
    """Ranges that hold both."""
    none = [None] * len(healthy.EDGES)
    return {
        name: [
            [min(a[0], b[0]), max(a[1], b[1])] if a and b else a or b
            for a, b in zip(before.get(name, none), now.get(name, none), strict=True)
        ]
        for name in before.keys() | now.keys()
    }


def _short(value: object) -> object:
    """A path without the folders of the machine it was on."""
    return "/".join(value.split("/")[-2:]) if isinstance(value, str) else value


def _json(content: dict) -> str:
    """Readable, one line a figure."""
    head = {key: value for key, value in content.items() if key != "ranges"}
    rounded = {
        name: [part and [float(f"{bound:.4g}") for bound in part] for part in parts]
        for name, parts in content["ranges"].items()
    }
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(parts)}" for name, parts in sorted(rounded.items()))
    return json.dumps(head).rstrip("\n}") + f',\n  "ranges": {{\n{lines}\n  }}\n}}'


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Healthy curves from run folders.")
    parser.add_argument("--add", action="store_true", help="to the runs that the files have already")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    given = parser.parse_args()
    main(given.runs, add=given.add)
