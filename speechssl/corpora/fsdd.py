"""Free Spoken Digit Dataset: six speakers say the ten English digits fifty times each, 8 kHz (CC BY-SA 4.0).

Layout: recordings/DIGIT_SPEAKER_INDEX.wav (or .flac, .opus). Indexes 0-4 are the data set's own test split.
It has no validation split: indexes 5 and 6 are held out of its train split for that (120 of 2,700 clips).

train_60.jsonl holds one random clip a speaker and digit, of train: sixty transcripts, for learning from
few. {train,valid,test}_speakers.jsonl are for telling speakers apart whatever they say: trained on one clip a
speaker and digit of the digits 0 to 4, tested on the official test clips of the digits 5 to 9.
"""

from __future__ import annotations

import re
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST = range(5)
VALID = range(5, 7)
KNOWN_DIGITS = "01234"

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)")
_EXPECTED = "recordings/DIGIT_SPEAKER_INDEX.wav (or .flac), as in the Free Spoken Digit Dataset"


def prepare(root: str | Path, job: Preparation, *, seed: int = 0) -> dict[str, int]:
    """Writes out/{train,valid,test,train_60}.jsonl and out/{train,valid,test}_speakers.jsonl.

    Args:
        root: folder with `recordings`.
        job: measures, and writes the manifests into its folder.
        seed: of the choice of train_60 and train_speakers.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: the recordings are not there.
    """
    inside = ("fsdd", "free-spoken-digit-dataset")
    folder = splits.find_root(root, holds=("recordings",), inside=inside, expected=_EXPECTED)
    found = [(path, _NAME.fullmatch(path.stem)) for path in splits.audio_files(folder / "recordings")]
    rows = job.measure(_row(path, name) for path, name in found if name)
    if not rows:
        raise UserError(f"{folder}/recordings: no usable recording there; corpus.root is the folder with {_EXPECTED}.")
    parts = {"train": [], "valid": [], "test": []}
    for row in rows:
        parts[_split(int(row["id"].rpartition("_")[2]))].append(row)
    parts["train_60"] = splits.take_one_each(parts["train"], keys=("speaker", "digit"), seed=seed)
    parts["train_speakers"] = [row for row in parts["train_60"] if row["digit"] in KNOWN_DIGITS]
    parts["valid_speakers"] = [row for row in parts["valid"] if row["digit"] in KNOWN_DIGITS]
    parts["test_speakers"] = [row for row in parts["test"] if row["digit"] not in KNOWN_DIGITS]
    return job.write(parts)


def _row(path: Path, name: re.Match[str]) -> splits.Row:
    return {
        "audio_filepath": str(path),
        "text": WORDS[int(name["digit"])],
        "speaker": name["speaker"],
        "digit": name["digit"],
        "id": path.stem,
    }


def _split(index: int) -> str:
    return "test" if index in TEST else "valid" if index in VALID else "train"
