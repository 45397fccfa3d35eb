"""Mboshi, a Bantu language of Congo-Brazzaville: read and elicited sentences (Godard et al. 2018).

arXiv 1710.03501. Layout: {train,dev}/SPEAKER_NAME.wav (or .flac, .opus), its transcript beside it in
SPEAKER_NAME.mb.cleaned. Accents are tones and belong to the text; they are kept, composed (NFC).

The data set has a train and a dev part and no third: dev becomes test.jsonl, and about 100 clips of train,
chosen by a hash of the sentence, become valid.jsonl, so that nothing is tuned on what is reported. A
sentence that was recorded several times is in one of the two only. train_10min.jsonl and train_60min.jsonl
are random parts of train, for learning from few transcripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

VALID_SHARE = 100 / 4308

_EXPECTED = "train and dev in it, each with SPEAKER_NAME.wav (or .flac, .opus) beside SPEAKER_NAME.mb.cleaned"


def prepare(
    root: str | Path, job: Preparation, *, labels_minutes: Sequence[float] = (10, 60), seed: int = 0
) -> dict[str, int]:
    """Writes out/{train,valid,test}.jsonl, and out/train_{N}min.jsonl for each N of `labels_minutes`.

    Args:
        root: folder with `train` and `dev`.
        job: measures, and writes the manifests into its folder.
        labels_minutes: minutes of transcribed speech of each smaller train manifest.
        seed: of the choice of their clips.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: the recordings are not there.
    """
    inside = ("mboshi", "full_corpus_newsplit", "mboshi-french-parallel-corpus/full_corpus_newsplit")
    folder = splits.find_root(root, holds=("train",), inside=inside, expected=_EXPECTED)
    train = job.measure(_rows(folder / "train"))
    test = job.measure(_rows(folder / "dev"))
    if not train:
        raise UserError(f"{folder}/train: no usable recording there; corpus.root is the folder with {_EXPECTED}.")
    parts = splits.split(train, shares={"valid": VALID_SHARE}, key="text")
    parts["test"] = test
    for minutes in labels_minutes:
        few = splits.take_minutes(parts["train"], minutes=minutes, seed=seed)
        parts[f"train_{minutes:g}min"] = few
    return job.write(parts)


def _rows(folder: Path) -> Iterator[splits.Row]:
    for path in splits.audio_files(folder):
        transcript = path.with_name(f"{path.stem}.mb.cleaned")
        yield {
            "audio_filepath": str(path),
            "text": transcript if transcript.is_file() else None,
            "speaker": path.stem.partition("_")[0],
            "lang": "mdw",
            "id": path.stem,
        }
