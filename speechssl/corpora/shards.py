"""Packs clips into tar shards in webdataset's layout, KEY.flac beside KEY.json, with a manifest as their index.

The index (OUT/NAME.jsonl) says for each clip which bytes of which shard are its audio, so any clip can be read without
what lies before it; OUT/NAME-shards/index.json lists the shards as webdataset's `wids` does. A file goes in as it is;
a part of a file is cut out and stored as FLAC at its own rate.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechssl.errors import UserError
from speechssl.soundfiles import open_audio, read_bytes, truncated

Row = dict[str, Any]

# FLAC holds integers: what lies beyond 24 bits of a float file is lost.
_BITS_24 = {"PCM_24", "PCM_32", "FLOAT", "DOUBLE"}
_INTEGERS = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ULAW", "ALAW"}


@dataclass(frozen=True)
class Shard:
    """A shard to write: its tar, the file that notes what is in it, the rows, and the number of its first clip."""

    tar: Path
    note: Path
    rows: list[Row]
    first: int


@dataclass(frozen=True)
class Packed:
    """The rows of the clips in a shard, as the index has them, and (id, reason) of those that could not be packed."""

    rows: list[Row]
    left_out: list[tuple[str, str]]


def plan(out: Path, name: str, rows: list[Row], *, shard_bytes: int) -> list[Shard]:
    """Which rows make which shard, in their order; the same rows give the same plan."""
    folder = out / f"{name}-shards"
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[Row]] = [[]]
    filled = 0
    for row in rows:
        size = _estimated_bytes(row)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(row)
        filled += size
    firsts = np.cumsum([0, *map(len, groups)]).tolist()
    names = [f"{name}-{number:06d}" for number in range(len(groups))]
    return [
        Shard(folder / f"{stem}.tar", folder / f".{stem}.json", group, first)
        for stem, group, first in zip(names, groups, firsts, strict=False)
    ]


def pack(shard: Shard) -> Packed:
    """Writes a shard whole or not at all; one that a former run finished from the same rows is kept."""
    key = hashlib.blake2b(json.dumps(shard.rows, default=str).encode()).hexdigest()
    if shard.tar.is_file() and shard.note.is_file():
        note = json.loads(shard.note.read_text(encoding="utf-8"))
        if note["of"] == key and note["size"] == shard.tar.stat().st_size:
            return Packed(note["rows"], [tuple(pair) for pair in note["left_out"]])
    partial = shard.tar.with_name(f".{shard.tar.name}.partial")
    packed, left_out = [], []
    with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, row in enumerate(shard.rows, start=shard.first):
            try:
                data, suffix = _audio(row)
            except UserError as error:
                left_out.append((row["id"], str(error)))
                continue
            stem = f"{number:09d}"
            kept = {
                key: value for key, value in row.items() if key not in ("audio_filepath", "offset", "bytes", "channel")
            }
            _add(tar, f"{stem}.json", json.dumps(kept, ensure_ascii=False).encode())
            first = _add(tar, f"{stem}.{suffix}", data)
            location = f"{shard.tar.parent.name}/{shard.tar.name}"
            packed.append({"audio_filepath": location, "bytes": [first, len(data)], **kept})
    partial.replace(shard.tar)
    note = {"of": key, "size": shard.tar.stat().st_size, "rows": packed, "left_out": left_out}
    shard.note.write_text(json.dumps(note), encoding="utf-8")
    return Packed(packed, left_out)


def finish(out: Path, name: str, shards: list[Shard]) -> None:
    """Removes notes and shards of a former plan, and writes the list of the shards."""
    folder = out / f"{name}-shards"
    kept = {shard.tar for shard in shards}
    for path in folder.glob("*.tar"):
        if path not in kept and re.fullmatch(rf"{re.escape(name)}-\d{{6}}\.tar", path.name):
            path.unlink()
            path.with_name(f".{path.stem}.json").unlink(missing_ok=True)
    listed = [{"url": shard.tar.name, "nsamples": len(shard.rows)} for shard in shards]
    content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": listed}
    (folder / "index.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member without owner or time, so that equal clips give equal shards; offset of its data."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    first = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return first


def _audio(row: Row) -> tuple[bytes, str]:
    """The bytes of a clip's audio file, and its suffix."""
    path, byte_range = row["audio_filepath"], tuple(row["bytes"]) if "bytes" in row else None
    with open_audio(path, byte_range=byte_range) as file:
        start = round((row.get("offset") or 0.0) * file.samplerate)
        number = min(round(row["duration"] * file.samplerate), file.frames - start)
        if start == 0 and abs(number - file.frames) <= 1 and "channel" not in row:
            suffix = "opus" if file.subtype == "OPUS" else file.format.lower()
            return read_bytes(path, byte_range), suffix
        # Integers are read as such: by way of floats, libsndfile would not give them back bit by bit.
        file.seek(start)
        samples = file.read(number, dtype="int32" if file.subtype in _INTEGERS else "float64", always_2d=True)
        if len(samples) < number:
            raise truncated(path)
        if "channel" in row:
            samples = samples[:, [row["channel"]]]
        stored = io.BytesIO()
        subtype = "PCM_24" if file.subtype in _BITS_24 else "PCM_16"
        try:
            soundfile.write(stored, samples, file.samplerate, format="FLAC", subtype=subtype)
        except soundfile.SoundFileError as error:
            raise UserError(f"{path}: its clip {row['id']} cannot be stored as FLAC ({error}).") from None
        return stored.getvalue(), "flac"


def _estimated_bytes(row: Row) -> int:
    """Of a row's audio within its shard, before it is packed."""
    path = Path(row["audio_filepath"])
    if "bytes" in row:
        return row["bytes"][1]
    if row.get("offset") or not path.is_file():
        return round(row["duration"] * 24_000)  # FLAC of speech
    return path.stat().st_size
