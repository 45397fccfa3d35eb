"""Files that outlive a crash: the only place where a checkpoint touches the disk.

Each function is one operation that a machine can fail in: `tools/faults.py` makes every one of them fail in turn.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

CHECKSUMS = "checksums.json"


def write_text(path: Path, text: str) -> None:
    """A text file, not yet synced."""
    path.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Text at the end of a file, which is made where it is not there; not yet synced."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, readable by people; NaN and infinity, which JSON has not, are a ValueError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, not yet synced."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder its name; a file of that name is replaced, in one step."""
    source.replace(target)


def symlink(path: Path, target: str) -> None:
    """A symbolic link at `path`."""
    path.symlink_to(target)


def remove(path: Path) -> None:
    """Delete a folder with what is in it, a file or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """The new text, or the old one: never half of either."""
    temporary = path.with_name(f".tmp_{path.name}")
    write_text(temporary, text)
    sync(temporary)
    rename(temporary, path)
    sync(path.parent)


def link(path: Path, target: str) -> None:
    """Point the symbolic link `path` at `target` beside it, in one step."""
    temporary = path.with_name(f".tmp_{path.name}")
    remove(temporary)
    symlink(temporary, target)
    rename(temporary, path)
    sync(path.parent)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by name, but of the list of checksums itself."""
    return {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
