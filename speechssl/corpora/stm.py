"""Talks with segments in STM files, as TED-LIUM has them (Rousseau et al. 2012, Hernandez et al. 2018).

Layout: {train,dev,test}/stm/NAME.stm, or NAME.stm anywhere below {train,dev,test}, and the talk NAME.sph (or .wav,
.flac, .mp3) beside it or in a folder beside. A line is `FILE CHANNEL SPEAKER BEGIN END [<LABELS>] TRANSCRIPT`; talks
stay as they are, and a clip is a line of the manifest with `offset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl import audio
from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.data.text import normalize
from speechssl.errors import UserError

_EXPECTED = "train/stm/NAME.stm and train/sph/NAME.sph"
_SUFFIXES = audio.EXTENSIONS | {".sph"}
_IGNORED = "ignore_time_segment_in_scoring"
# A space may precede an apostrophe, and pronunciation variants are numbered: `don 't`, `read(2)`.
_APOSTROPHE, _VARIANT = re.compile(r" (?='\w)"), re.compile(r"\(\d+\)")


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
        root: folder of the parts.
        job: measures, and writes the manifests into its folder.
        train, valid, test: folders below the root that make each manifest; may be empty.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: a part is not there, or has no STM file.
    """
    root = splits.folder(root, expected=_EXPECTED)
    parts = {}
    for part, folders in {"train": train, "valid": valid, "test": test}.items():
        tables = [path for folder in folders for path in sorted((root / folder).rglob("*.stm"))]
        if folders and not tables:
            raise UserError(
                f"{root}: has no STM file below {', '.join(folders)}; set corpus.{part} to others or to []."
            )
        parts[part] = job.measure(row for table in tables for row in _rows(table, job))
    return job.write(parts)


def _rows(table: Path, job: Preparation) -> Iterator[splits.Row]:
    for number, line in splits.read_lines(table):
        if line.startswith(";;"):
            continue
        where = f"{table}:{number}"
        try:
            row = _row(table, line, where)
        except UserError as error:
            job.leave_out(where, str(error))
            continue
        if row:
            yield row


def _row(table: Path, line: str, where: str) -> splits.Row | None:
    fields = line.split(maxsplit=5)
    if len(fields) < 5:
        raise UserError(f"{where}: has {len(fields)} columns; file, channel, speaker, begin and end come first.")
    name, channel, speaker, begin, end = fields[:5]
    text = fields[5] if len(fields) > 5 else ""
    text = re.sub(r"^<[^<>]*,[^<>]*>\s*", "", text)
    if _IGNORED in text or speaker == "inter_segment_gap":
        return None
    begin_s, end_s = splits.seconds(begin, where=where), splits.seconds(end, where=where)
    row = {
        "audio_filepath": _talk(table, name),
        "offset": begin_s,
        "duration": end_s - begin_s,
        "text": normalize(_VARIANT.sub("", _APOSTROPHE.sub("", text))),
        "speaker": speaker,
        "id": f"{name}-{begin}-{end}",
    }
    return {**row, "channel": 1} if channel in ("B", "2") else row


def _talk(table: Path, name: str) -> str:
    """The recording, in the STM file's folder or in one beside it."""
    folders = [table.parent, *sorted(path for path in table.parent.parent.iterdir() if path.is_dir())]
    for folder in folders:
        for suffix in sorted(_SUFFIXES):
            if (folder / f"{name}{suffix}").is_file():
                return str(folder / f"{name}{suffix}")
    return str(table.with_name(f"{name}.sph"))
