"""Halves: the speaker tasks of a collection with few clips a speaker, even one, such as a sample of LibriSpeech.

Each clip is cut in the middle: what is learned from its first half is tested on its second. Both halves are one
recording, with one microphone and room, so figures from them flatter whatever hears channels; say so beside them.

The speaker is the file's name up to the first `separator`. {train,valid,test}_all.jsonl are of every speaker, for
identification. A share of the speakers is held out of train, valid and test, and verify.jsonl holds both halves of each
of their clips: for telling voices apart that were never trained on.
"""

from __future__ import annotations

import logging
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

log = logging.getLogger("speechssl")


def prepare(
    root: str | Path, job: Preparation, *, separator: str = "-", piece_s: float = 2.0, unseen_share: float = 0.2
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl, the same of every speaker as NAME_all.jsonl, and verify.jsonl.

    Args:
        root: folder of recordings, named SPEAKER, the separator, and anything.
        job: measures, and writes the manifests into its folder.
        separator: what ends the speaker in a name.
        piece_s: first halves are cut into pieces of about so many seconds; the last one is in valid, the others in
            train. A clip too short for two pieces has a short second one.
        unseen_share: share of the speakers in verify.jsonl alone.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: there are no recordings, or fewer than three speakers.
    """
    folder = splits.folder(root, expected=f"recordings named SPEAKER{separator}anything")
    found = ((path, path.stem.partition(separator)) for path in splits.audio_files(folder))
    named = [(path, parts[0]) for path, parts in found if parts[1]]
    rows = job.measure({"audio_filepath": str(path), "speaker": speaker, "id": path.stem} for path, speaker in named)
    speakers = {row["speaker"] for row in rows}
    if len(speakers) < 3:
        raise UserError(
            f"{folder}: its recordings name {len(speakers)} speakers (NAME{separator}anything), and three are needed; "
            "add others."
        )
    parts = splits.split(rows, shares={"verify": unseen_share}, key="speaker")
    known, unseen = _cut(parts["train"], piece_s), _cut(parts["verify"], piece_s)
    pieces = {**known, **{f"{name}_all": known[name] + unseen[name] for name in known}}
    halves = ((row, row["duration"] / 2) for row in parts["verify"])
    pieces["verify"] = [_piece(row, name, at, half) for row, half in halves for name, at in (("a", 0.0), ("b", half))]
    log.info("halves of a clip share its microphone and room, which helps whatever hears those")
    return job.write(pieces)


def _cut(rows: list[splits.Row], piece_s: float) -> dict[str, list[splits.Row]]:
    """First halves in pieces, the last to valid and the others to train; second halves to test."""
    pieces: dict[str, list[splits.Row]] = {"train": [], "valid": [], "test": []}
    for row in rows:
        half = row["duration"] / 2
        count = max(round(half / piece_s), 2)
        for number in range(count):
            name = "valid" if number == count - 1 else "train"
            pieces[name].append(_piece(row, f"a{number}", number * half / count, half / count))
        pieces["test"].append(_piece(row, "b", half, half))
    return pieces


def _piece(row: splits.Row, name: str, offset_s: float, duration_s: float) -> splits.Row:
    part = {"duration": round(duration_s - 1e-6, 6), "offset": round(offset_s, 6), "id": f"{row['id']}#{name}"}
    return {**row, **part}
