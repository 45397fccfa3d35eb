"""lhotse cut sets (JSON Lines, .gz or not), read without lhotse.

A cut with one supervision, or none, is a clip; of one with several, each supervision is. Recordings are read from
files; what lhotse would have to fetch, generate or mix is left out and named.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

_EXPECTED = "cut sets such as cuts_train.jsonl.gz"
_NAMES = {"train": ("train",), "valid": ("dev", "valid"), "test": ("test",)}


def prepare(
    root: str | Path, job: Preparation, *, train: str | None = None, valid: str | None = None, test: str | None = None
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl.

    Args:
        root: folder of the cut sets; relative paths in them are relative to it, or to the folders above.
        job: measures, and writes the manifests into its folder.
        train, valid, test: names of the cut sets in the root; if all are None, those with `cuts` and the part in their
            names (dev is valid).

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: there is no cut set for training, or one is not JSON Lines.
    """
    root = splits.folder(root, expected=_EXPECTED)
    chosen = {"train": train, "valid": valid, "test": test}
    if not any(chosen.values()):
        files = sorted(path.name for path in root.glob("*cuts*.jsonl*"))
        chosen = {part: next((f for f in files if any(n in f for n in names)), None) for part, names in _NAMES.items()}
        if len(files) == 1:
            chosen = {"train": files[0]}
    if not chosen["train"]:
        raise UserError(f"{root}: has no cuts_train.jsonl.gz; set corpus.train to the name of a cut set in it.")
    parts = {part: job.measure(_rows(root / name, job)) for part, name in chosen.items() if name}
    return job.write(parts)


def _rows(path: Path, job: Preparation) -> Iterator[splits.Row]:
    for number, cut in _cuts(path):
        name = f"{path}:{number}"
        try:
            yield from _clips(cut, path.parent)
        except UserError as error:
            job.leave_out(name, f"{name}: {error}")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            job.leave_out(name, f"{name}: is no cut as lhotse writes them ({type(error).__name__}: {error}).")


def _cuts(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON Lines ({error}); write it with CutSet.to_file.") from None


def _clips(cut: dict[str, Any], folder: Path) -> Iterator[splits.Row]:
    if cut["type"] not in ("MonoCut", "MultiCut"):
        raise UserError(f"is a {cut['type']}, which only lhotse can mix or pad; save its audio first.")
    if cut["recording"].get("transforms"):
        raise UserError("has transforms, which only lhotse can apply; save its audio first.")
    row = {"audio_filepath": _audio_path(cut["recording"], folder)}
    start_s = float(cut["start"])
    if len(cut["recording"].get("channel_ids") or [0]) > 1 and isinstance(cut["channel"], int):
        row["channel"] = cut["recording"]["channel_ids"].index(cut["channel"])
    supervisions = cut.get("supervisions") or []
    if len(supervisions) < 2:
        labels = _labels(supervisions[0]) if supervisions else {}
        yield {**row, "id": str(cut["id"]), "offset": start_s, "duration": float(cut["duration"]), **labels}
        return
    for supervision in supervisions:  # its times count from the start of the cut
        times = {"offset": start_s + float(supervision["start"]), "duration": float(supervision["duration"])}
        yield {**row, "id": str(supervision["id"]), **times, **_labels(supervision)}


def _labels(supervision: dict[str, Any]) -> dict[str, str]:
    keys = {"text": "text", "speaker": "speaker", "lang": "language"}
    return {ours: str(supervision[theirs]) for ours, theirs in keys.items() if supervision.get(theirs)}


def _audio_path(recording: dict[str, Any], folder: Path) -> str:
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] not in ("file", "url"):
        kinds = ", ".join(sorted({source["type"] for source in sources}))
        raise UserError(f"has {len(sources)} sources of type {kinds}; one file or URL is read.")
    name = sources[0]["source"]
    if sources[0]["type"] == "url":
        return name
    places = [folder / name, *(parent / name for parent in list(folder.absolute().parents)[:4])]
    return str(next((path for path in places if path.is_file()), places[0]))
