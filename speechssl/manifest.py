"""Manifests: JSON Lines, one clip a line, as NeMo writes them.

Keys: `audio_filepath` and `duration` (seconds); optional `offset` (seconds), `text`, `speaker`, `lang`, `id`.
A relative path is relative to the manifest's folder; a URL (`s3://…`) is taken as it stands. `bytes`: [first,
number] says that the audio file is a part of a larger file, a tar shard: such a manifest is the index of its
shards. `channel` (0 is the first) chooses one of several; without it, their mean is read. Other keys are kept.

Every line is checked when a manifest is opened, so that a mistake in line 1,900,000 shows before training and
not after a day of it. Only byte offsets and durations stay in memory; a line is parsed again when its clip is
asked for.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from speechssl.errors import UserError
from speechssl.types import Utterance

_BOM = b"\xef\xbb\xbf"
_LONGEST_S = 1e9  # a number beyond is a mistake, and may fit no float
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

# Where a manifest has more clips, so many of them, evenly spread, have their audio files looked for before a run:
# looking for millions takes longer than starting. One that is missing all the same is skipped by name when it is read.
MOST_FILES_CHECKED = 50_000


class Manifest(Sequence[Utterance]):
    """The clips of a manifest, in its order. Pickles as a path and arrays.

    Attributes:
        path: the manifest.
        durations_s: float32 [number of clips], seconds.
        shards: int32 [number of clips], a number for each file that clips are parts of; None where none is.

    Raises:
        UserError: no such file, no clip in it, or a line that is not a clip; names FILE:LINE and the key.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        offsets, durations, hashes, shards = array("q"), array("f"), array("q"), array("i")
        numbers: dict[str, int] = {}
        for line_number, offset, line in self._lines():
            row = _parse(line, where=f"{self.path}:{line_number}")
            offsets.append(offset)
            durations.append(row["duration"])
            hashes.append(hash(_id(row)))
            if "bytes" in row:
                shards.append(numbers.setdefault(row["audio_filepath"], len(numbers)))
        if not offsets:
            raise UserError(f"{self.path}: has no clip; write one JSON object a line.")
        if 0 < len(shards) < len(offsets):
            raise UserError(f"{self.path}: has `bytes` in some lines only; keep shards and files in manifests apart.")
        self.durations_s = np.asarray(durations, dtype=np.float32)
        self.shards = np.asarray(shards, dtype=np.int32) if shards else None
        self._offsets = np.append(np.asarray(offsets, dtype=np.int64), self.path.stat().st_size)
        if len(np.unique(np.asarray(hashes))) < len(hashes):
            self._refuse_repeated_ids()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Utterance:
        """The clip at `index`, its line parsed anew."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} clips, not {index + 1}")
        index %= len(self)
        start, end = self._offsets[index : index + 2].tolist()
        # Read at a place of its own, so that workers can share the open file.
        line = os.pread(self._file.fileno(), end - start, start)
        line = line[: line.find(b"\n") + 1 or None]
        row = _parse(line, where=f"{self.path}, clip {index + 1} (was the file changed while in use?)")
        return self._utterance(row)

    def __iter__(self) -> Iterator[Utterance]:
        for line_number, _, line in self._lines():
            yield self._utterance(_parse(line, where=f"{self.path}:{line_number}"))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb", buffering=0)

    def check_files(self, most: int = MOST_FILES_CHECKED) -> None:
        """Looks for the audio files of so many clips, evenly spread; for all of them in a smaller manifest.

        Raises:
            UserError: one is missing; names the first, with FILE:LINE.
        """
        before = None
        for index in np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)).tolist():
            path = self[index].audio_path
            if path != before and isinstance(path, Path) and not path.is_file():
                line_number = next(n for n, offset, _ in self._lines() if offset == self._offsets[index])
                raise UserError(
                    f"{self.path}:{line_number}: there is no audio file {path}; correct "
                    "`audio_filepath`, which is relative to the manifest's folder."
                )
            before = path

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
            audio_path=self._audio_path(row["audio_filepath"]),
            duration_s=float(row["duration"]),
            offset_s=float(row.get("offset") or 0),
            text=row.get("text"),
            speaker=None if speaker is None else str(speaker),
            byte_range=tuple(row["bytes"]) if "bytes" in row else None,
            channel=row.get("channel"),
            fields=row,
        )

    def _audio_path(self, name: str) -> Path | str:
        return name if is_url(name) else self.path.parent / name

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


class ManifestSet(Sequence[Utterance]):
    """Several manifests one after the other, as one.

    Attributes:
        manifests: the manifests.
        path: their paths, as text.
        durations_s: float32 [number of clips], seconds.
        sizes: clips of each manifest.
        shards: as a manifest's, where one of them is of shards; a clip with a file of its own is a shard by itself.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.manifests = list(manifests)
        self.path = ", ".join(str(manifest.path) for manifest in manifests)
        self.durations_s = np.concatenate([manifest.durations_s for manifest in manifests])
        self.sizes = [len(manifest) for manifest in manifests]
        self._ends = np.cumsum(self.sizes)
        self.shards = None
        if any(manifest.shards is not None for manifest in manifests):
            numbers = [np.arange(len(m), dtype=np.int32) if m.shards is None else m.shards for m in manifests]
            self.shards = np.concatenate(numbers)  # only told apart within a manifest

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Utterance:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.manifests[which][index - int(self._ends[which]) + self.sizes[which]]

    def __iter__(self) -> Iterator[Utterance]:
        for manifest in self.manifests:
            yield from manifest

    def check_files(self) -> None:
        """As each manifest's."""
        for manifest in self.manifests:
            manifest.check_files()


def is_url(name: str) -> bool:
    """Whether a name of a file is a URL, such as s3://bucket/a.tar."""
    return bool(_URL.match(name))


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
    """The clip's `id`, else its path as written, with the offset or the first byte where there is one."""
    name = row.get("id")
    if name is not None:
        return str(name)
    offset = row.get("offset") or row.get("bytes", (0,))[0]
    return f"{row['audio_filepath']}@{offset}" if offset else row["audio_filepath"]


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    """The line's object, its known keys checked; any fault is a UserError that begins with `where`."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
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
    if not row["audio_filepath"] or "\0" in row["audio_filepath"]:
        raise UserError(
            f"{where}: `audio_filepath` is {row['audio_filepath']!r}, which no file is called; write the path of an "
            "audio file."
        )
    if not 0 < row["duration"] < _LONGEST_S:
        raise UserError(f"{where}: `duration` is {row['duration']}; write the seconds of audio, more than 0.")
    if not 0 <= (row.get("offset") or 0) < _LONGEST_S:
        raise UserError(f"{where}: `offset` is {row['offset']}; write the seconds to skip, 0 or more.")
    if "bytes" in row and not _is_byte_range(row["bytes"]):
        raise UserError(f"{where}: `bytes` is {json.dumps(row['bytes'])[:80]}; write [first, number] of the bytes.")
    return row


def _is_byte_range(value: Any) -> bool:
    if type(value) is not list or len(value) != 2 or any(type(number) is not int for number in value):
        return False
    return value[0] >= 0 and value[1] > 0


_KINDS = (
    ("audio_filepath", (str,), "a path in quotes"),
    ("duration", (float, int), "seconds, as a number without quotes"),
    ("offset", (float, int), "seconds, as a number without quotes"),
    ("text", (str,), "the transcript in quotes"),
    ("speaker", (str, int), "a name in quotes"),
    ("id", (str, int), "a name in quotes"),
    ("channel", (int,), "the number of a channel, 0 for the first"),
)
