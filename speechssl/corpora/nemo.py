"""NeMo manifests: JSON Lines with `audio_filepath`, `duration`, and `offset`, `text`, `speaker` where they have them.

They are this toolkit's own format already; preparing them looks into every file, makes relative paths absolute, and
leaves out by name what cannot be used, so that a run has nothing to complain of. Other columns are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError
from speechssl.manifest import is_url

_EXPECTED = "train.json or train.jsonl, a NeMo manifest"
_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}


def prepare(
    root: str | Path, job: Preparation, *, train: str | None = None, valid: str | None = None, test: str | None = None
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl.

    Args:
        root: folder of the manifests; audio paths are relative to it.
        job: measures, and writes the manifests into its folder.
        train, valid, test: names of the manifests in the root; if all are None, train, valid (or validation, dev, val)
            and test, .json or .jsonl.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: there is no manifest for training, or a line of one is not JSON.
    """
    root = splits.folder(root, expected=_EXPECTED)
    chosen = {"train": train, "valid": valid, "test": test}
    if not any(chosen.values()):
        files = {
            part: [root / f"{n}.{end}" for n in names for end in ("jsonl", "json")] for part, names in _NAMES.items()
        }
        chosen = {part: next((path.name for path in paths if path.is_file()), None) for part, paths in files.items()}
    if not chosen["train"]:
        raise UserError(f"{root}: has no train.json or train.jsonl; set corpus.train to the name of a manifest in it.")
    parts = {part: job.measure(_rows(root / name, job)) for part, name in chosen.items() if name}
    return job.write(parts)


def _rows(path: Path, job: Preparation) -> Iterator[splits.Row]:
    for number, line in splits.read_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            name = row["audio_filepath"]
            if not isinstance(name, str) or not name:
                raise TypeError
        except (ValueError, RecursionError, KeyError, TypeError):
            job.leave_out(where, f"{where}: is no JSON object with `audio_filepath`.")
            continue
        try:
            for key in {"offset", "duration"} & row.keys():
                row[key] = splits.seconds(str(row[key]), where=f"{where}: `{key}`")
        except UserError as error:
            job.leave_out(where, str(error))
            continue
        row = {key: value for key, value in row.items() if value is not None}
        offset_s = row.get("offset", 0.0)
        row.setdefault("id", f"{name}@{offset_s:g}" if offset_s else name)
        for key in {"id", "speaker", "text"} & row.keys():
            row[key] = str(row[key])
        yield {**row, "audio_filepath": name if is_url(name) else str(path.parent / name)}
