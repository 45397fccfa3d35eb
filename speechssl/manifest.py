"""Manifests: JSON Lines, one clip a line, as NeMo writes them.

Keys: `audio_filepath` and `duration` (seconds); optional `offset` (seconds), `text`, `speaker`, `lang`, `id`.
A relative path is relative to the manifest's folder. Other keys are kept.

Every line is checked when a manifest is opened, so that a mistake in line 1,900,000 shows before training and
not after a day of it. Only byte offsets and durations stay in memory; a line is parsed again when its clip is
asked for.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.errors import UserError
from speechssl.types import Utterance

_BOM = b"\xef\xbb\xbf"


class Manifest(Sequence[Utterance]):
    """The clips of a manifest, in its order. Pickles as a path and two arrays.

    Attributes:
        path: the manifest.
        durations_s: float32 [number of clips], seconds.

    Raises:
        UserError: no such file, no clip in it, or a line that is not a clip; names FILE:LINE and the key.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        offsets, durations, hashes = array("q"), array("f"), array("q")
        for line_number, offset, line in self._lines():
            row = _parse(line, where=f"{self.path}:{line_number}")
            offsets.append(offset)
            durations.append(row["duration"])
            hashes.append(hash(_id(row)))
        if not offsets:
            raise UserError(f"{self.path}: has no clip; write one JSON object a line.")
        self.durations_s = np.asarray(durations, dtype=np.float32)
        self._offsets = np.asarray(offsets, dtype=np.int64)
        if len(np.unique(np.asarray(hashes))) < len(hashes):
            self._refuse_repeated_ids()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Utterance:
        """The clip at `index`, its line parsed anew."""
        # Opened each time: an open file can be neither pickled nor shared by workers.
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        row = _parse(line, where=f"{self.path}, clip {index + 1} (was the file changed while in use?)")
        return self._utterance(row)

    def __iter__(self) -> Iterator[Utterance]:
        for line_number, _, line in self._lines():
            yield self._utterance(_parse(line, where=f"{self.path}:{line_number}"))

    def check_files(self) -> None:
        """Looks for every audio file.

        Raises:
            UserError: one is missing; names the first, with FILE:LINE.
        """
        for line_number, _, line in self._lines():
            row = _parse(line, where=f"{self.path}:{line_number}")
            audio_path = self._audio_path(row)
            if not audio_path.is_file():
                raise UserError(
                    f"{self.path}:{line_number}: there is no audio file {audio_path}; correct "
                    "`audio_filepath`, which is relative to the manifest's folder."
                )

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(line number from 1, byte offset, line) of every line that is not blank."""
        try:
            with self.path.open("rb") as file:
                offset = 0
                for line_number, line in enumerate(file, start=1):
                    begin = len(_BOM) if offset == 0 and line.startswith(_BOM) else 0
                    if not line.isspace():
                        yield line_number, offset + begin, line[begin:]
                    offset += len(line)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"{self.path}: cannot read this manifest ({reason}); correct the path.") from None

    def _utterance(self, row: dict[str, Any]) -> Utterance:
        speaker = row.get("speaker")
        return Utterance(
            id=_id(row),
            audio_path=self._audio_path(row),
            duration_s=float(row["duration"]),
            offset_s=float(row.get("offset") or 0),
            text=row.get("text"),
            speaker=None if speaker is None else str(speaker),
            fields=row,
        )

    def _audio_path(self, row: dict[str, Any]) -> Path:
        return self.path.parent / row["audio_filepath"]

    def _refuse_repeated_ids(self) -> None:
        first_line: dict[str, int] = {}
        for line_number, _, line in self._lines():
            name = _id(json.loads(line))
            if name in first_line:
                raise UserError(
                    f"{self.path}:{line_number}: `id` {name} is that of line {first_line[name]} already "
                    "(without `id`, the audio file and offset serve as one); give each clip its own."
                )
            first_line[name] = line_number


def write(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a manifest whole or not at all: into a neighbour file that then takes its name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _id(row: dict[str, Any]) -> str:
    """The clip's `id`, else its path as written, with the offset where there is one."""
    name = row.get("id")
    if name is not None:
        return str(name)
    offset_s = row.get("offset") or 0
    return f"{row['audio_filepath']}@{offset_s}" if offset_s else row["audio_filepath"]


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    """The line's object, its known keys checked; any fault is a UserError that begins with `where`."""
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); write one object a line, in UTF-8.") from None
    if type(row) is not dict:
        raise UserError(f'{where}: is not a JSON object; write one object a line, as {{"audio_filepath": …}}.')
    for key in ("audio_filepath", "duration"):
        if row.get(key) is None:
            raise UserError(f"{where}: has no `{key}`; every clip needs `audio_filepath` and `duration`.")
    for key, kinds, kind in _KINDS:
        value = row.get(key)
        if value is not None and type(value) not in kinds:
            raise UserError(f"{where}: `{key}` is {json.dumps(value)[:80]}; write {kind}.")
    if not row["audio_filepath"]:
        raise UserError(f"{where}: `audio_filepath` is an empty string; write the path of an audio file.")
    if not 0 < row["duration"] < float("inf"):
        raise UserError(f"{where}: `duration` is {row['duration']}; write the seconds of audio, more than 0.")
    if not 0 <= (row.get("offset") or 0) < float("inf"):
        raise UserError(f"{where}: `offset` is {row['offset']}; write the seconds to skip, 0 or more.")
    return row


_KINDS = (
    ("audio_filepath", (str,), "a path in quotes"),
    ("duration", (float, int), "seconds, as a number without quotes"),
    ("offset", (float, int), "seconds, as a number without quotes"),
    ("text", (str,), "the transcript in quotes"),
    ("speaker", (str, int), "a name in quotes"),
    ("id", (str, int), "a name in quotes"),
)
