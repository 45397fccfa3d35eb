"""LibriSpeech: about 1,000 hours of read English, 16 kHz (Panayotov et al. 2015; openslr.org/12, CC BY 4.0).

Layout: LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac (or .wav, .opus), the chapter's
transcripts in SPEAKER-CHAPTER.trans.txt. Transcripts stay in capitals, as the corpus has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.corpora import splits
from speechssl.errors import UserError

SUBSETS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)

_EXPECTED = "train-clean-100, dev-clean or other subsets of LibriSpeech in it"


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    train: Sequence[str] = ("train-clean-100",),
    valid: Sequence[str] = ("dev-clean",),
    test: Sequence[str] = ("test-clean",),
) -> dict[str, int]:
    """Writes out/{train,valid,test}.jsonl.

    Args:
        root: the folder LibriSpeech, or the one that it is in.
        out: folder for the manifests.
        train: subsets that make train.jsonl.
        valid: subsets that make valid.jsonl; may be empty.
        test: subsets that make test.jsonl; may be empty.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: a subset is not there.
    """
    folder = splits.find_root(root, holds=SUBSETS, inside=("LibriSpeech",), expected=_EXPECTED)
    parts, left_out = {}, 0
    for name, subsets in {"train": train, "valid": valid, "test": test}.items():
        for subset in subsets:
            if not (folder / subset).is_dir():
                here = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
                raise UserError(f"{folder}: has no subset {subset}; set corpus.{name} to some of [{here}] or to [].")
        parts[name], dropped = splits.measure(row for subset in subsets for row in _rows(folder / subset))
        left_out += dropped
    return {**splits.write_splits(out, parts), "left_out": left_out}


def _rows(subset: Path) -> Iterator[splits.Row]:
    texts = dict(_transcripts(subset))
    for path in splits.audio_files(subset):
        yield {
            "audio_filepath": str(path),
            "text": texts.get(path.stem),
            "speaker": path.stem.partition("-")[0],
            "id": path.stem,
        }


def _transcripts(subset: Path) -> Iterator[tuple[str, str]]:
    """(utterance, transcript) of every line `SPEAKER-CHAPTER-NUMBER TRANSCRIPT`."""
    for path in sorted(subset.rglob("*.trans.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            yield name, text
