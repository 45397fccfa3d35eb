"""Make speechssl/doctor/healthy/OBJECTIVE.json from folders of runs that went well.

    python tools/healthy.py RUN [RUN ...]

The ranges of each objective are those of all its runs that are given; the file names the settings that made them. A run
of fewer than 300 steps counts only for figures that do not say how far it has come.
"""

from __future__ import annotations

import json
import sys

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


def main(folders: list[str]) -> None:
    runs: dict[str, list[logs.Log]] = {}
    for folder in folders:
        log = logs.read(folder)
        runs.setdefault(log.objective, []).append(log)
    healthy.FOLDER.mkdir(exist_ok=True)
    for objective, found in runs.items():
        content = {
            "made_by": "python tools/healthy.py RUN ...",
            "runs": [{key: _short(log.settings.get(key)) for key in SETTINGS if key in log.settings} for log in found],
            "edges": healthy.EDGES,
            "ranges": healthy.measure([_rows(log) for log in found]),
        }
        path = healthy.FOLDER / f"{objective}.json"
        path.write_text(_json(content) + "\n", encoding="utf-8")
        print(f"{path}: {len(content['ranges'])} figures of {len(found)} runs")


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
    main(sys.argv[1:])
