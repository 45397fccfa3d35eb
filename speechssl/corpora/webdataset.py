"""Tar shards in webdataset's layout that exist already: an index of them, so that they can be trained from.

Members that share a name up to its first dot are one sample: an audio file, and NAME.txt (transcript) or NAME.json (an
object with `text`, `speaker` and others) beside it. Nothing is unpacked: names of members are names and no paths, so
absolute ones and those with `..` do no harm. Compressed tars cannot be read from the middle and are refused.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from speechssl import audio
from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.data.text import normalize
from speechssl.errors import UserError

_EXPECTED = "tar shards, NAME.tar"
# A sample's transcript or JSON is not read where it is larger.
_MAX_TEXT_BYTES = 2**20


def prepare(
    root: str | Path,
    job: Preparation,
    *,
    train: Sequence[str] = ("**/*.tar",),
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl, the index of the shards.

    Args:
        root: folder of the shards.
        job: measures, and writes the manifests into its folder.
        train, valid, test: patterns of the shards that make each manifest, relative to the root.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: there is no shard, or one cannot be read as an uncompressed tar.
    """
    root = splits.folder(root, expected=_EXPECTED)
    parts, taken = {}, set()
    for part, patterns in {"test": test, "valid": valid, "train": train}.items():
        paths = sorted({path for pattern in patterns for path in root.glob(pattern)} - taken)
        if patterns and not paths:
            raise UserError(
                f"{root}: has no file {' or '.join(patterns)}; set corpus.root to the folder with {_EXPECTED}."
            )
        taken |= set(paths)
        parts[part] = job.measure(row for path in paths for row in _rows(path, job))
    return job.write({"train": parts.pop("train"), **parts})


def _rows(path: Path, job: Preparation) -> Iterator[splits.Row]:
    """The samples of a shard; their members follow each other."""
    key, members = None, {}
    for name, first, data, size in _members(path):
        stem, _, suffix = PurePosixPath(name).name.partition(".")
        this = f"{PurePosixPath(name).parent}/{stem}".removeprefix("./")
        if this != key:
            yield from _sample(path, key, members, job)
            key, members = this, {}
        members[f".{suffix.lower()}"] = (first, size, data)
    yield from _sample(path, key, members, job)


def _members(path: Path) -> Iterator[tuple[str, int, bytes | None, int]]:
    """(name, first byte, content unless it is audio, size) of every file in a tar."""
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if member.issparse():
                    raise UserError(f"{path}: its {member.name} is a sparse file; pack the shard again without them.")
                is_text = PurePosixPath(member.name).suffix.lower() in (".txt", ".json")
                content = tar.extractfile(member).read(_MAX_TEXT_BYTES + 1) if is_text else None
                yield member.name, member.offset_data, content, member.size
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: cannot be read as an uncompressed tar ({error}); unpack or copy it again.") from None


def _sample(path: Path, key: str | None, members: dict[str, Any], job: Preparation) -> Iterator[splits.Row]:
    sounds = [suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in audio.EXTENSIONS]
    if not sounds:
        return
    name = f"{path.stem}/{key}"
    first, size, _ = members[sounds[0]]
    try:
        labels = _labels(members)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        job.leave_out(name, f"{path}: {key} has a transcript or JSON that cannot be read ({error}).")
        return
    if size == 0:
        job.leave_out(name, f"{path}: {key} is empty (0 bytes).")
        return
    yield {"audio_filepath": str(path), "bytes": [first, size], "id": name, **labels}


def _labels(members: dict[str, Any]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    if any(len(data or b"") > _MAX_TEXT_BYTES for _, _, data in members.values()):
        raise ValueError(f"more than {_MAX_TEXT_BYTES >> 20} MiB of text")
    if ".json" in members:
        content = json.loads(members[".json"][2].decode())
        if not isinstance(content, dict):
            raise ValueError("no object")
        skipped = ("audio_filepath", "duration", "offset", "bytes", "id", "channel")
        labels = {key: value for key, value in content.items() if key not in skipped and value is not None}
    if ".txt" in members:
        labels["text"] = members[".txt"][2].decode()
    for key in {"text", "speaker"} & labels.keys():
        labels[key] = normalize(str(labels[key])) if key == "text" else str(labels[key])
    return labels
