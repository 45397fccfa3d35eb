"""What every corpus shares: finding files, measuring them, splits that anyone gets again, manifests.

A row is a line of a manifest as a dict. Splits depend on names and seeds alone, never on the order of a
folder.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl import audio, manifest
from speechssl.data.text import normalize
from speechssl.errors import UserError

Row = dict[str, Any]

# What the standard convolution stack needs for one frame: 400 samples at 16 kHz.
SHORTEST_S = 400 / audio.SAMPLE_RATE

log = logging.getLogger("speechssl")


def find_root(root: str | Path, *, holds: Sequence[str], inside: Sequence[str] = (), expected: str) -> Path:
    """`root`, or the folder in it among `inside`, that holds one of the folders `holds`.

    Raises:
        UserError: there is none; says what was `expected` there.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set corpus.root to the folder with {expected}.")
    for folder in (root, *(root / name for name in inside)):
        if any((folder / name).is_dir() for name in holds):
            return folder
    raise UserError(f"{root}: is not the folder of this corpus; set corpus.root to the one with {expected}.")


def audio_files(folder: Path) -> Iterator[Path]:
    """Every audio file under `folder`, by name; hidden files and folders are not looked at."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in audio.EXTENSIONS and not hidden and path.is_file():
            yield path


def measure(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """Adds each row's `duration`, and leaves out, by name in the log, clips that no model can use.

    Args:
        rows: with `audio_filepath` (absolute) and `id`. A `text` that is a Path is read from there; an empty
            transcript is none.

    Returns:
        The rows that can be used, and how many could not.
    """
    usable: dict[str, Row] = {}
    num_left_out = 0
    for row in rows:
        try:
            usable[row["id"]] = _complete(row, same_id=usable.get(row["id"]))
        except UserError as error:
            log.warning("left out: %s", error)
            num_left_out += 1
    if num_left_out:
        log.warning("left out %d of %d audio files", num_left_out, num_left_out + len(usable))
    return list(usable.values()), num_left_out


def split(rows: Iterable[Row], *, shares: Mapping[str, float], key: str = "id") -> dict[str, list[Row]]:
    """Splits by a hash of row[key], so that a clip stays where it is when others are added.

    Args:
        rows: any; rows alike in `key` stay together. `id` stands in for a key that a row lacks.
        shares: part of the rows, from 0 to 1, for each split beside `train`. A share above 0 gives one row at
            least, where there are rows enough.

    Returns:
        The rows of `train` and of each of `shares`.
    """
    train = [(_position(row.get(key, row["id"])), row) for row in rows]
    splits: dict[str, list[Row]] = {}
    low = 0.0
    for name, share in shares.items():
        high = low + share
        if share > 0 and len(train) > 1:
            high = max(high, min(position for position, _ in train) + 1e-12)
        splits[name] = [row for position, row in train if position < high]
        train = [(position, row) for position, row in train if position >= high]
        low = low + share
    return {"train": [row for _, row in train], **splits}


def take_minutes(rows: Iterable[Row], *, minutes: float, seed: int) -> list[Row]:
    """A random few of the transcribed rows that last `minutes` together (the last may reach beyond).

    Fewer minutes of the same rows and seed are a part of more.
    """
    rows = [row for row in rows if "text" in row]
    order = sorted(rows, key=lambda row: row["id"])
    random.Random(seed).shuffle(order)
    taken, total_s = set(), 0.0
    for row in order:
        if total_s >= 60 * minutes:
            break
        taken.add(row["id"])
        total_s += row["duration"]
    if total_s < 60 * minutes:
        log.warning("asked for %g min of transcripts, there are %.1f min", minutes, total_s / 60)
    return [row for row in rows if row["id"] in taken]


def take_one_each(rows: Iterable[Row], *, keys: tuple[str, ...], seed: int) -> list[Row]:
    """One random row for each combination of values of `keys`."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    generator = random.Random(seed)
    return [generator.choice(groups[values]) for values in sorted(groups)]


def write_splits(out: str | Path, splits: Mapping[str, list[Row]]) -> dict[str, int]:
    """Writes out/NAME.jsonl for every split that has a row, and logs a line for each.

    Returns:
        Clips of each manifest written.

    Raises:
        UserError: `train` has no row.
    """
    if not splits["train"]:
        raise UserError(f"no usable audio file is left for {out}/train.jsonl; look at what was left out above.")
    for name, rows in splits.items():
        path = Path(out) / f"{name}.jsonl"
        if not rows:
            path.unlink(missing_ok=True)  # else a former run's would stand beside the new ones
            continue
        manifest.write(path, rows)
        hours = sum(row["duration"] for row in rows) / 3600
        num_speakers = len({row["speaker"] for row in rows if "speaker" in row})
        log.info("wrote %s: %d clips, %.2f h, %d speakers", path, len(rows), hours, num_speakers)
    return {name: len(rows) for name, rows in splits.items() if rows}


def _complete(row: Row, *, same_id: Row | None) -> Row:
    """The row with its `duration` and, from its file, its `text`; a UserError says why it cannot be used."""
    path, rest = row["audio_filepath"], {key: row[key] for key in row if key != "audio_filepath"}
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r}: its name is not UTF-8; rename it.") from None
    if same_id is not None:
        raise UserError(f"{path}: has the name of {same_id['audio_filepath']}; remove one of them.")
    duration_s = audio.info(path).duration_s
    if duration_s < SHORTEST_S:
        raise UserError(f"{path}: lasts {duration_s:.4f} s, less than one frame of {SHORTEST_S} s.")
    if isinstance(rest.get("text"), Path):
        rest["text"] = _read_transcript(rest["text"])
    if not rest.get("text"):
        rest.pop("text", None)
    return {"audio_filepath": path, "duration": round(duration_s, 6), **rest}


def _read_transcript(path: Path) -> str:
    try:
        return normalize(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; save the transcript as UTF-8.") from None


def _position(name: str) -> float:
    """A number from 0 to 1 that is the same for the same name everywhere."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
