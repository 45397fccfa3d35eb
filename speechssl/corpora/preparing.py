"""What every corpus goes through on its way to manifests: measured, cut into segments, written, packed, reported.

A row is a line of a manifest as a dict. A corpus gives rows with `audio_filepath` (absolute, or a URL) and `id`;
`offset` and `duration` where a row is a part of a file, `bytes` where its file is a part of another. What was measured
is kept in OUT/.measured.jsonl by path, size and time of change: an interrupted preparation goes on where it was, and a
later one measures only what is new.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speechssl import audio, manifest
from speechssl.corpora import segmentation, shards
from speechssl.corpora.report import Report
from speechssl.data.text import normalize
from speechssl.errors import UserError

Row = dict[str, Any]
Place = tuple[str, tuple[int, int] | None]  # a file, and the bytes of it that are the audio
Measured = audio.AudioInfo | str  # or why not
T, R = TypeVar("T"), TypeVar("R")

# What the standard convolution stack needs for one frame: 400 samples at 16 kHz.
SHORTEST_S = 400 / audio.SAMPLE_RATE
MOST_NAMED = 1000  # in the log
_JOURNAL = ".measured.jsonl"
_SAY_EVERY_S = 15.0

log = logging.getLogger("speechssl")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to prepare.

    Attributes:
        num_workers: threads that look into files; None is two for each core.
        segment: what becomes of an untranscribed recording of more than `segment_s`: "none" keeps it whole, "windows"
            cuts it into equal parts, "speech" into the parts in which somebody speaks.
        segment_s: seconds of a segment at most.
        shards: pack the audio into tar shards.
        shard_mib: MiB of a shard, about.
    """

    num_workers: int | None = None
    segment: str = "none"
    segment_s: float = 20.0
    shards: bool = False
    shard_mib: int = 256


class Preparation:
    """One run of `prepare`.

    Args:
        out: folder for the manifests.
        options: see Options.
    """

    def __init__(self, out: str | Path, options: Options | None = None):
        self.out, self.options = Path(out), options or Options()
        self.num_workers = self.options.num_workers or 2 * (os.cpu_count() or 1)
        self.report = Report()
        self.num_left_out = 0

    def measure(self, rows: Iterable[Row]) -> list[Row]:
        """Adds each row's `duration`, and leaves out, by name in the log, clips that no model can use.

        A `text` that is a Path is read from there; an empty transcript is none. Recordings are cut into segments where
        the options say so.
        """
        rows = list(rows)
        places = dict.fromkeys(map(_place, rows))
        measured = self._measured(list(places))
        usable: dict[str, Row] = {}
        num_left_out = 0
        for row in rows:
            try:
                info = measured[_place(row)]
                usable[row["id"]] = complete(row, info, same_id=usable.get(row["id"]))
                self.report.add_audio(info)
            except UserError as error:
                self.leave_out(row["id"], str(error))
                num_left_out += 1
        if num_left_out:
            log.warning("left out %d of %d clips", num_left_out, len(rows))
        return self._segmented(list(usable.values()))

    def leave_out(self, clip: str, reason: str) -> None:
        """Note a clip that cannot be used, in the log and in the report."""
        self.num_left_out += 1
        if self.num_left_out <= MOST_NAMED:
            log.warning("left out: %s", reason)
        elif self.num_left_out == MOST_NAMED + 1:
            log.warning("left out: more, which %s/report.json will name", self.out)
        self.report.leave_out(clip, reason)

    def write(self, parts: Mapping[str, list[Row]]) -> dict[str, int]:
        """Writes OUT/NAME.jsonl for every part that has a row, and OUT/report.json.

        Returns:
            Clips of each manifest written, and `left_out`.

        Raises:
            UserError: `train` has no row.
        """
        if not parts["train"]:
            raise UserError(
                f"no usable audio file is left for {self.out}/train.jsonl; look at what was left out above."
            )
        counts = {}
        for name, rows in parts.items():
            path = self.out / f"{name}.jsonl"
            if not rows:
                path.unlink(missing_ok=True)  # else a former run's would stand beside the new ones
                continue
            if self.options.shards:
                rows = self._packed(name, rows)
            manifest.write(path, rows)
            log.info("wrote %s: %s", path, self.report.add_part(name, rows))
            counts[name] = len(rows)
        self.report.write(self.out)
        return {**counts, "left_out": self.num_left_out}

    def each(self, function: Callable[[T], R], items: list[T], *, what: str) -> Iterator[R]:
        """function(item) in the order of the items, by several threads, with progress on stderr."""
        with _progress(what, len(items)) as advance, ThreadPoolExecutor(self.num_workers) as pool:
            rest, waiting = iter(items), deque()
            try:
                while True:
                    ahead = islice(rest, 16 * self.num_workers - len(waiting))
                    waiting.extend(pool.submit(function, item) for item in ahead)
                    if not waiting:
                        return
                    yield waiting.popleft().result()
                    advance()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _measured(self, places: list[Place]) -> dict[Place, Measured]:
        """What every file holds, or why it cannot be used; from the journal where it has not changed."""
        journal = self.out / _JOURNAL
        known = dict(_read_journal(journal))
        found: dict[Place, Measured] = {}
        states = {place: _state(place[0]) for place in places}
        for place in places:
            if states[place] is not None and (place, states[place]) in known:
                found[place] = known[place, states[place]]
        new = [place for place in places if place not in found]
        if found:
            log.info("measured before: %d of %d files", len(found), len(places))
        if not new:
            return found
        self.out.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            file.write("\n")  # ends a line that a kill cut off
            for place, info in zip(new, self.each(_look, new, what="measuring"), strict=True):
                found[place] = info
                plain = info if isinstance(info, str) else asdict(info)
                file.write(json.dumps([place, states[place], plain]) + "\n")
        return found

    def _segmented(self, rows: list[Row]) -> list[Row]:
        kind, longest_s = self.options.segment, self.options.segment_s
        if kind not in segmentation.KINDS:
            return rows
        cut = segmentation.KINDS[kind]
        long = [row for row in rows if row["duration"] > longest_s and "text" not in row]

        def segments(row: Row) -> list[Row] | UserError:
            try:
                return cut(row, longest_s)
            except UserError as error:
                return error

        parts = dict(zip((row["id"] for row in long), self.each(segments, long, what="segmenting"), strict=True))
        kept = []
        for row in rows:
            part = parts.get(row["id"], [row])
            if isinstance(part, UserError):
                self.leave_out(row["id"], str(part))
                continue
            kept += part
        if long:
            log.info("cut %d recordings into %d segments", len(long), len(kept) - len(rows) + len(long))
        return kept

    def _packed(self, name: str, rows: list[Row]) -> list[Row]:
        plan = shards.plan(self.out, name, rows, shard_bytes=self.options.shard_mib * 2**20)
        packed: list[Row] = []
        for part in self.each(shards.pack, plan, what=f"packing {name}"):
            packed += part.rows
            for row_id, reason in part.left_out:
                self.leave_out(row_id, reason)
        shards.finish(self.out, name, plan)
        return packed


def complete(row: Row, info: Measured, *, same_id: Row | None = None) -> Row:
    """The row with its `duration` and, from its file, its `text`; a UserError says why it cannot be used."""
    path, rest = row["audio_filepath"], {key: row[key] for key in row if key != "audio_filepath"}
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r}: its name is not UTF-8; rename it.") from None
    if same_id is not None:
        raise UserError(f"{path}: has the name of {same_id['audio_filepath']}, {row['id']}; remove one of them.")
    if isinstance(info, str):
        raise UserError(info)
    if "channel" in row and not 0 <= row["channel"] < info.num_channels:
        raise UserError(
            f"{path}: has {info.num_channels} channels, and its clip {row['id']} is of number {row['channel']}."
        )
    offset_s = row.get("offset") or 0.0
    duration_s = row["duration"] if row.get("duration") is not None else info.duration_s - offset_s
    beyond_s = offset_s + duration_s - info.duration_s
    if offset_s < 0 or beyond_s > audio.TOLERANCE_S:
        raise UserError(
            f"{path}: its clip {row['id']} is from {offset_s:.3f} s to {offset_s + duration_s:.3f} s, the file lasts "
            f"{info.duration_s:.3f} s; correct the times."
        )
    duration_s -= max(beyond_s, 0.0)
    if duration_s < SHORTEST_S:
        raise UserError(f"{path}: lasts {duration_s:.4f} s, less than one frame of {SHORTEST_S} s.")
    if isinstance(rest.get("text"), Path):
        rest["text"] = _read_transcript(rest["text"])
    if not rest.get("text"):
        rest.pop("text", None)
    if not offset_s:
        rest.pop("offset", None)
    rest.pop("duration", None)
    return {"audio_filepath": path, "duration": round(duration_s, 6), **rest}


def _place(row: Row) -> Place:
    return row["audio_filepath"], tuple(row["bytes"]) if "bytes" in row else None


def _look(place: Place) -> Measured:
    path, byte_range = place
    try:
        return audio.info(path, byte_range=byte_range)
    except UserError as error:
        return str(error)


def _state(path: str) -> str | None:
    """What changes when a file does; None where that cannot be known."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_journal(path: Path) -> Iterator[tuple[tuple[Place, str], Measured]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            (name, byte_range), state, info = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        place = name, tuple(byte_range) if byte_range else None
        yield (place, state), info if isinstance(info, str) else audio.AudioInfo(**info)


def _read_transcript(path: Path) -> str:
    try:
        return normalize(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; save the transcript as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


class _progress:
    """A bar on a terminal, a line now and then elsewhere; entering gives the function that counts one more."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done, self.said = what, total, 0, time.monotonic()
        self.bar = None

    def __enter__(self) -> Callable[[], None]:
        if sys.stderr.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(self.what, total=self.total)
            self.bar.start()
        return self._advance

    def _advance(self) -> None:
        self.done += 1
        if self.bar:
            self.bar.advance(self.task)
        elif time.monotonic() - self.said > _SAY_EVERY_S:
            self.said = time.monotonic()
            log.info("%s: %d of %d", self.what, self.done, self.total)

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
