"""Common Voice: read sentences in many languages by volunteers (Ardila et al. 2020; commonvoice.mozilla.org, CC0).

Layout: LANGUAGE/clips/NAME.mp3 and LANGUAGE/{train,dev,test,other,validated}.tsv with the columns client_id, path,
sentence and others, which are not quoted. Speakers are known by client_id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.data.text import normalize
from speechssl.errors import UserError

_EXPECTED = "train.tsv and clips/, one language of Common Voice"
# Columns that are kept, by our name.
_COLUMNS = {"speaker": "client_id", "lang": "locale", "accent": "accents", "age": "age", "gender": "gender"}


def prepare(
    root: str | Path,
    job: Preparation,
    *,
    train: Sequence[str] = ("train",),
    valid: Sequence[str] = ("dev",),
    test: Sequence[str] = ("test",),
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl.

    Args:
        root: folder of one language.
        job: measures, and writes the manifests into its folder.
        train, valid, test: names of the tables (without .tsv) that make each manifest; may be empty.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: a table is not there, or lacks a column.
    """
    root = splits.find_root(root, holds=("clips",), expected=_EXPECTED)
    parts = {}
    for part, tables in {"train": train, "valid": valid, "test": test}.items():
        for table in tables:
            if not (root / f"{table}.tsv").is_file():
                here = ", ".join(sorted(path.stem for path in root.glob("*.tsv")))
                raise UserError(f"{root}: has no {table}.tsv; set corpus.{part} to some of [{here}] or to [].")
        parts[part] = job.measure(row for table in tables for row in _rows(root / f"{table}.tsv", job))
    return job.write(parts)


def _rows(table: Path, job: Preparation) -> Iterator[splits.Row]:
    lines = splits.read_lines(table)
    header = next(lines, (0, ""))[1].split("\t")
    if not {"path", "sentence"} <= set(header):
        raise UserError(f"{table}: has no columns `path` and `sentence`; use a table of Common Voice.")
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            where = f"{table}:{number}"
            job.leave_out(where, f"{where}: has {len(fields)} columns, the first line has {len(header)}.")
            continue
        values = dict(zip(header, fields, strict=True))
        name = values["path"] if "." in values["path"] else f"{values['path']}.mp3"  # early releases leave it out
        yield {
            "audio_filepath": str(table.parent / "clips" / name),
            "text": normalize(values["sentence"]),
            **{ours: values[theirs] for ours, theirs in _COLUMNS.items() if values.get(theirs)},
            "id": name,
        }
