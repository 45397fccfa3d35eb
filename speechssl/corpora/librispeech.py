"""LibriSpeech: about 1,000 hours of read English, 16 kHz (Panayotov et al. 2015; openslr.org/12, CC BY 4.0).

Layout: LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac (or .wav, .opus), the chapter's
transcripts in SPEAKER-CHAPTER.trans.txt. Transcripts stay in capitals, as the corpus has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
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
    job: Preparation,
    *,
    train: Sequence[str] = ("train-clean-100",),
    valid: Sequence[str] = ("dev-clean",),
    test: Sequence[str] = ("test-clean",),
) -> dict[str, int]:
    """Writes out/{train,valid,test}.jsonl.

    Args:
        root: the folder LibriSpeech, or the one that it is in.
        job: measures, and writes the manifests into its folder.
        train: subsets that make train.jsonl.
        valid: subsets that make valid.jsonl; may be empty.
        test: subsets that make test.jsonl; may be empty.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: a subset is not there.
    """
    folder = splits.find_root(root, holds=SUBSETS, inside=("LibriSpeech",), expected=_EXPECTED)
    chosen = {"train": train, "valid": valid, "test": test}
    for name, subsets in chosen.items():
        for subset in subsets:
            if not (folder / subset).is_dir():
                here = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
                raise UserError(f"{folder}: has no subset {subset}; set corpus.{name} to some of [{here}] or to [].")
    parts = {
        name: job.measure(row for subset in subsets for row in rows_of(folder / subset))
        for name, subsets in chosen.items()
    }
    return job.write(parts)


def rows_of(subset: Path) -> Iterator[splits.Row]:
    """The clips of a subset, however deep, with the transcripts that lie beside them."""
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
        for _, line in splits.read_lines(path):
            name, _, text = line.strip().partition(" ")
            yield name, text
