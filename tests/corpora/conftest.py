"""Small trees of audio written on the spot, and a few real recordings where the archives are there."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.manifest import Manifest
from speechssl.types import Utterance

ARCHIVES = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def write_clip() -> Callable[..., Path]:
    """write_clip(path, seconds=0.5, rate=16000, text="", suffix=".txt"): noise and a transcript."""

    def write(path: Path, *, seconds: float = 0.5, rate: int = 16_000, text: str = "", suffix: str = ".txt") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate))
        soundfile.write(path, samples, rate, **options)
        if text:
            path.with_name(path.stem + suffix).write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_manifest() -> Callable[[Path], dict[str, Utterance]]:
    """read_manifest(path): its clips by id, every audio file looked for."""

    def read(path: Path) -> dict[str, Utterance]:
        clips = Manifest(path)
        clips.check_files()
        return {clip.id: clip for clip in clips}

    return read


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., Path]:
    """unpack(name, wanted): the members for which wanted(name) is true, of an archive of real speech."""

    def unpacked(name: str, wanted: Callable[[str], bool]) -> Path:
        archive = ARCHIVES / name
        if not archive.is_file():
            pytest.skip(f"real speech is tested only where ../shared/data/{name} is beside the checkout")
        with tarfile.open(archive) as file:
            members = [member for member in file if wanted(member.name)]
            file.extractall(tmp_path / "real", members=members, filter="data")
        return tmp_path / "real"

    return unpacked
