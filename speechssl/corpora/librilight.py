"""Libri-Light: 60,000 hours of untranscribed audio books, and its limited-supervision splits (Kahn et al. 2020).

arXiv 1912.07875. The untranscribed part is a folder small, medium or large with SPEAKER/BOOK/NAME.flac; recordings are
long, so cut them with `segment=speech`. The limited-supervision part, librispeech_finetuning, has 1h/{0..5}, six
sets of ten minutes, and 9h, each with {clean,other}/SPEAKER/CHAPTER/NAME.flac and transcripts: 1 h is the six
together, 10 h is 1h and 9h.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora import librispeech, splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

_EXPECTED = "1h and 9h (librispeech_finetuning), or small, medium or large in it"
_SUBSETS = ("small", "medium", "large")


def prepare(root: str | Path, job: Preparation, *, ten_minutes: int = 0, valid_share: float = 0.01) -> dict[str, int]:
    """Writes train_10min, train_1h, train_10h and train (the last again), or, of untranscribed audio, train and valid.

    Args:
        root: the folder librispeech_finetuning, or one with small, medium or large in it, or one of these.
        job: measures, and writes the manifests into its folder.
        ten_minutes: which of the six sets of ten minutes is train_10min, 0 to 5.
        valid_share: part of the untranscribed speakers for valid.jsonl.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: neither part is there.
    """
    root = splits.folder(root, expected=_EXPECTED)
    limited = next((f for f in (root, root / "librispeech_finetuning") if (f / "1h").is_dir()), None)
    if limited:
        return job.write(_limited(limited, job, ten_minutes))
    subsets = [root / name for name in _SUBSETS if (root / name).is_dir()]
    subsets = subsets or ([root] if root.name in _SUBSETS else [])
    if not subsets:
        raise UserError(f"{root}: is not the folder of this corpus; set corpus.root to the one with {_EXPECTED}.")
    rows = job.measure(row for subset in subsets for row in _untranscribed(subset))
    return job.write(splits.split(rows, shares={"valid": valid_share}, key="speaker"))


def _limited(folder: Path, job: Preparation, ten_minutes: int) -> dict[str, list[splits.Row]]:
    sets = sorted(path for path in (folder / "1h").iterdir() if path.is_dir())
    names = [path.name for path in sets]
    if str(ten_minutes) not in names:
        raise UserError(
            f"{folder}/1h: has no set {ten_minutes}; set corpus.ten_minutes to one of [{', '.join(names)}]."
        )
    one_hour = {path.name: job.measure(librispeech.rows_of(path)) for path in sets}
    rest = job.measure(librispeech.rows_of(folder / "9h")) if (folder / "9h").is_dir() else []
    hour = [row for rows in one_hour.values() for row in rows]
    return {
        "train": hour + rest,
        "train_10min": one_hour[str(ten_minutes)],
        "train_1h": hour,
        "train_10h": hour + rest if rest else [],
    }


def _untranscribed(subset: Path) -> Iterator[splits.Row]:
    for path in splits.audio_files(subset):
        inner = path.relative_to(subset)
        yield {"audio_filepath": str(path), "speaker": inner.parts[0], "id": f"{subset.name}/{inner.as_posix()}"}
