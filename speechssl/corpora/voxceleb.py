"""VoxCeleb 1 and 2: celebrities' interviews, for telling speakers apart (Nagrani et al. 2017, Chung et al. 2018).

Layout: …/idNNNNN/VIDEO/NAME.wav (or .flac; VoxCeleb 2 comes as .m4a and has to be converted first). With
iden_split.txt beside it, its lines `1|2|3 PATH` are the official train, validation and test of identification, where
every speaker is in all three; without, videos are split by a hash, so that no video is in two splits. For verification,
trials (veri_test.txt, `1 PATH PATH` or `0 PATH PATH` a line) are given: their clips are test, and nobody who is in them
is in train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

_EXPECTED = "idNNNNN/VIDEO/NAME.wav, VoxCeleb's recordings"
_PARTS = {"1": "train", "2": "valid", "3": "test"}


def prepare(
    root: str | Path,
    job: Preparation,
    *,
    valid_share: float = 0.02,
    test_share: float = 0.05,
    trial_list: str | None = None,
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl; `id` is SPEAKER/VIDEO/NAME.wav.

    Args:
        root: folder with the recordings, however deep, and iden_split.txt, if wanted.
        job: measures, and writes the manifests into its folder.
        valid_share, test_share: parts of the videos, where there is no iden_split.txt.
        trial_list: a file below root with trials, for verification.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: there is no such recording, or the trials name a clip that is not there.
    """
    root = splits.folder(root, expected=_EXPECTED)
    rows = job.measure(_rows(root))
    if not rows:
        raise UserError(f"{root}: has no usable recording; set corpus.root to the folder with {_EXPECTED}.")
    if trial_list:
        return job.write(_verification(rows, root / trial_list, valid_share))
    official = root / "iden_split.txt"
    if not official.is_file():
        return job.write(splits.split(rows, shares={"test": test_share, "valid": valid_share}, key="video"))
    part_of = {}
    for number, line in splits.read_lines(official):
        part, _, name = line.strip().partition(" ")
        if part not in _PARTS:
            raise UserError(f"{official}:{number}: begins with {part!r}, not 1, 2 or 3.")
        part_of[name.strip()] = _PARTS[part]
    parts = {part: [] for part in _PARTS.values()}
    for row in rows:
        if row["id"] in part_of:
            parts[part_of[row["id"]]].append(row)
        else:
            job.leave_out(row["id"], f"{row['audio_filepath']}: is not in {official.name}.")
    return job.write(parts)


def _verification(rows: list[splits.Row], trials: Path, valid_share: float) -> dict[str, list[splits.Row]]:
    """The clips of the trials to test; train and valid are of the speakers who are in none."""
    by_id = {row["id"]: row for row in rows}
    tested: dict[str, splits.Row] = {}
    for number, line in splits.read_lines(trials):
        target, *names = line.split()
        if target not in ("0", "1") or len(names) != 2:
            raise UserError(f"{trials}:{number}: is not `1 PATH PATH` or `0 PATH PATH`; use the official list.")
        for name in names:
            if name not in by_id:
                raise UserError(f"{trials}:{number}: there is no clip {name}; get it, or take the line out.")
            tested[name] = by_id[name]
    speakers = {row["speaker"] for row in tested.values()}
    others = [row for row in rows if row["speaker"] not in speakers]
    return {**splits.split(others, shares={"valid": valid_share}, key="video"), "test": list(tested.values())}


def _rows(root: Path) -> Iterator[splits.Row]:
    for path in splits.audio_files(root):
        *_, speaker, video, name = ("", "", *path.relative_to(root).parts)
        if speaker.startswith("id"):
            row = {"audio_filepath": str(path), "speaker": speaker, "video": f"{speaker}/{video}"}
            yield {**row, "id": f"{speaker}/{video}/{name}"}
