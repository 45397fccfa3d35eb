"""What corpora share: finding files and lines, and splits that anyone gets again.

A row is a line of a manifest as a dict. Splits depend on names and seeds alone, never on the order of a
folder.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl import audio
from speechssl.errors import UserError

Row = dict[str, Any]

log = logging.getLogger("speechssl")


def folder(root: str | Path, *, expected: str) -> Path:
    """`root`, absolute.

    Raises:
        UserError: there is no such folder; says what was `expected` there.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set corpus.root to the folder with {expected}.")
    return root


def find_root(root: str | Path, *, holds: Sequence[str], inside: Sequence[str] = (), expected: str) -> Path:
    """`root`, or the folder in it among `inside`, that holds one of the folders `holds`.

    Raises:
        UserError: there is none; says what was `expected` there.
    """
    root = folder(root, expected=expected)
    for place in (root, *(root / name for name in inside)):
        if any((place / name).is_dir() for name in holds):
            return place
    raise UserError(f"{root}: is not the folder of this corpus; set corpus.root to the one with {expected}.")


def audio_files(folder: Path) -> Iterator[Path]:
    """Every audio file under `folder`, by name, and links that lead nowhere; hidden ones are not looked at."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in audio.EXTENSIONS and not hidden and not path.is_dir():
            yield path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line of a UTF-8 text file that is not blank.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path.") from None


def seconds(text: str, *, where: str) -> float:
    """A number of seconds.

    Raises:
        UserError: it is none; the message begins with `where`.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {text!r} is no number of seconds.")
    return value


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


def _position(name: str) -> float:
    """A number from 0 to 1 that is the same for the same name everywhere."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
