"""Kaldi data folders: wav.scp, and beside it segments, text, utt2spk, reco2file_and_channel where they are there.

A line of wav.scp that is a shell command (it ends in `|`) is never run. Where the command only decodes a file
(`flac -c -d -s FILE |`, `sph2pipe -f wav -p FILE |`, `cat FILE |`), that file is read instead; any other is left out
and named.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

_EXPECTED = "wav.scp, or folders with one each"
# Programs that decode a file to stdout, and their options that change nothing but the container.
_DECODERS = {
    "flac": {"-c", "-d", "-s", "-dc", "-cd", "-cds", "-dcs", "--decode", "--stdout", "--silent"},
    "sph2pipe": {"-f", "wav", "-p"},
    "cat": set(),
}
# Names of data folders by the manifest that they make, where the user does not choose.
_NAMES = {"train": ("train",), "valid": ("dev", "valid"), "test": ("test", "eval")}


def prepare(
    root: str | Path,
    job: Preparation,
    *,
    train: Sequence[str] = (),
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
) -> dict[str, int]:
    """Writes {train,valid,test}.jsonl.

    Args:
        root: a data folder, or the folder of several.
        job: measures, and writes the manifests into its folder.
        train, valid, test: data folders below the root that make each manifest; if all are empty, those whose names
            begin with train, with dev or valid, with test or eval.

    Returns:
        Clips of each manifest, and `left_out`.

    Raises:
        UserError: there is no data folder, or a line of one cannot be understood.
    """
    root = splits.folder(root, expected=_EXPECTED)
    chosen = {"train": train, "valid": valid, "test": test}
    if not any(chosen.values()):
        chosen = {"train": ["."]} if (root / "wav.scp").is_file() else _by_name(root)
    parts = {}
    for name, folders in chosen.items():
        for folder in folders:
            if not (root / folder / "wav.scp").is_file():
                raise UserError(f"{root / folder}: has no wav.scp; set corpus.{name} to data folders below {root}.")
        parts[name] = job.measure(row for folder in folders for row in _rows(root / folder, job))
    return job.write({"train": [], **parts})


def _by_name(root: Path) -> dict[str, list[str]]:
    found = sorted(path.parent.name for path in root.glob("*/wav.scp"))
    chosen = {part: [name for name in found if name.startswith(begins)] for part, begins in _NAMES.items()}
    if not chosen["train"]:
        here = ", ".join(found) or "none"
        raise UserError(f"{root}: has no train*/wav.scp; set corpus.train to data folders below it ({here}).")
    return chosen


def _rows(folder: Path, job: Preparation) -> Iterator[splits.Row]:
    table = {name: dict(_table(folder / name)) for name in ("text", "utt2spk", "reco2file_and_channel")}
    recordings = {}
    for name, value in _table(folder / "wav.scp"):
        try:
            recordings[name] = _audio_path(folder, value)
        except UserError as error:
            job.leave_out(name, f"{folder / 'wav.scp'}: {name} {error}")
    if not (folder / "segments").is_file():
        clips = ((name, {"audio_filepath": path}) for name, path in recordings.items())
    else:
        clips = _segments(folder / "segments", recordings, table["reco2file_and_channel"], job)
    for name, row in clips:
        yield {**row, "id": name, "text": table["text"].get(name), "speaker": table["utt2spk"].get(name)}


def _segments(
    path: Path, recordings: dict[str, str], channels: dict[str, str], job: Preparation
) -> Iterator[tuple[str, splits.Row]]:
    """(utterance, row) of every line `UTTERANCE RECORDING BEGIN END`, END -1 for the end of the recording."""
    for name, value in _table(path):
        fields = value.split()
        if len(fields) != 3:
            job.leave_out(name, f"{path}: {name} has {len(fields) + 1} columns, not 4 (utterance recording begin end).")
            continue
        recording, begin, end = fields
        if recording not in recordings:
            job.leave_out(name, f"{path}: {name} is of {recording}, which wav.scp does not have or which was left out.")
            continue
        try:
            begin_s, end_s = (splits.seconds(text, where=f"{path}: {name}") for text in (begin, end))
        except UserError as error:
            job.leave_out(name, str(error))
            continue
        row = {"audio_filepath": recordings[recording], "offset": begin_s}
        if end_s != -1:
            row["duration"] = end_s - begin_s
        channel = channels.get(recording, "").split()[-1:]
        if channel in (["A"], ["B"]):
            row["channel"] = "AB".index(channel[0])
        yield name, row


def _table(path: Path) -> Iterator[tuple[str, str]]:
    """(first column, rest) of every line; nothing of a file that is not there."""
    if path.is_file():
        for _, line in splits.read_lines(path):
            name, _, value = line.strip().replace("\t", " ", 1).partition(" ")
            yield name, value.strip()


def _audio_path(folder: Path, value: str) -> str:
    """The file that an entry of wav.scp stands for; a UserError says why it is none."""
    name = value
    if value.endswith("|"):
        try:
            program, *arguments = shlex.split(value[:-1])
        except ValueError:
            program, arguments = "", []
        options = _DECODERS.get(Path(program).name)
        files = [argument for argument in arguments if argument not in (options or ())]
        if options is None or len(files) != 1 or files[0].startswith("-"):
            raise UserError(f"is a shell command, which is not run ({value}); write its output to a file.")
        name = files[0]
    elif name.rpartition(":")[2].isdigit() and ".ark:" in name:
        raise UserError(f"is a part of an archive ({value}); write it to a file.")
    # Kaldi takes paths from where its scripts were run, most often some folders above the data folder.
    places = [folder / name, *(parent / name for parent in list(folder.absolute().parents)[:4])]
    return str(next((path for path in places if path.is_file()), places[0]))
