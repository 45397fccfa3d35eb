"""Any folder of recordings, however deep, in any format that is read (WAV, FLAC, Ogg, Opus, MP3, AIFF).

NAME.txt beside NAME.wav, in UTF-8, is its transcript; a recording without one serves for pretraining. Where
each speaker has a folder, `speaker_level` says which level of folders that is. Validation and test are
chosen by a hash of the path below the root, so that a clip stays in its split when recordings are added, and the
segments of a recording stay together.

Files that cannot be used (empty, broken, truncated, shorter than one frame) are left out and named in the
log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError


def prepare(
    root: str | Path,
    job: Preparation,
    *,
    valid_share: float = 0.05,
    test_share: float = 0.1,
    speaker_level: int = 0,
) -> dict[str, int]:
    """Writes out/{train,valid,test}.jsonl with absolute paths; `id` is the path below the root.

    Args:
        root: folder of audio files.
        job: measures, and writes the manifests into its folder.
        valid_share: part of the clips for validation, 0 to 1; one at least, unless 0.
        test_share: part of the clips for the test, likewise.
        speaker_level: which folder below the root names the speaker, 1 for the first; 0 for none.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: no such folder, no usable audio file in it, or shares that leave nothing for training.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set corpus.root to a folder with audio files.")
    if min(valid_share, test_share) < 0 or valid_share + test_share >= 1:
        raise UserError(
            f"corpus.valid_share={valid_share} and corpus.test_share={test_share} leave nothing to train on; "
            "neither may be below 0, and their sum must be below 1."
        )
    rows = job.measure(_rows(root, speaker_level=speaker_level))
    if not rows:
        raise UserError(
            f"{root}: has no usable audio file ({job.num_left_out} left out); set corpus.root to recordings."
        )
    parts = splits.split(rows, shares={"test": test_share, "valid": valid_share}, key="recording")  # of segments
    return job.write(parts)


def _rows(root: Path, *, speaker_level: int) -> Iterator[splits.Row]:
    for path in splits.audio_files(root):
        inner = path.relative_to(root)
        row = {"audio_filepath": str(path), "id": inner.as_posix()}
        transcript = path.with_suffix(".txt")
        if transcript.is_file():
            row["text"] = transcript
        if speaker_level:
            row["speaker"] = _speaker(inner, level=speaker_level)
        yield row


def _speaker(inner: Path, *, level: int) -> str:
    folders = inner.parts[:-1]
    if not 1 <= level <= len(folders):
        raise UserError(
            f"corpus.speaker_level={level}, but {inner} lies {len(folders)} folders below the root; "
            "lower the level or move the file."
        )
    return folders[level - 1]
