"""What a recording says, in the formats that other programs read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from speechssl.decoding.transcript import Word
from speechssl.recognizer import Recognition

# A subtitle ends at a pause, or where it would be longer than two lines or hard to read in time.
PAUSE_S, MAX_LETTERS, MAX_S = 0.8, 84, 7.0


def as_text(path: Path, name: str, recognition: Recognition) -> str:
    """The text alone."""
    return recognition.text + "\n"


def as_json(path: Path, name: str, recognition: Recognition) -> str:
    """A line of JSON with words, their times in seconds and confidences."""
    row = {"audio_filepath": str(path), **asdict(recognition)}
    if not recognition.alternatives:
        del row["alternatives"]
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_srt(path: Path, name: str, recognition: Recognition) -> str:
    """SubRip subtitles."""
    cues = []
    for number, words in enumerate(subtitles(recognition.words), start=1):
        times = f"{_clock(words[0].start_s, ',')} --> {_clock(words[-1].end_s, ',')}"
        cues.append(f"{number}\n{times}\n{_line(words)}\n")
    return "\n".join(cues)


def as_vtt(path: Path, name: str, recognition: Recognition) -> str:
    """WebVTT subtitles (W3C)."""
    cues = ["WEBVTT\n"]
    for words in subtitles(recognition.words):
        text = _line(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_clock(words[0].start_s, '.')} --> {_clock(words[-1].end_s, '.')}\n{text}\n")
    return "\n".join(cues)


def as_ctm(path: Path, name: str, recognition: Recognition) -> str:
    """NIST's CTM: recording, channel, start, duration, word, confidence; a line a word."""
    return "".join(
        f"{name} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.text} {word.confidence:.3f}\n"
        for word in recognition.words
    )


def as_textgrid(path: Path, name: str, recognition: Recognition) -> str:
    """Praat's TextGrid: one tier of words, empty intervals between them."""
    intervals, end = [], 0.0
    for word in recognition.words:
        if word.start_s > end:
            intervals.append((end, word.start_s, ""))
        intervals.append((max(word.start_s, end), max(word.end_s, end), word.text))
        end = intervals[-1][1]
    last = max(end, recognition.duration_s)
    if last > end or not intervals:
        intervals.append((end, last, ""))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {last:.6f}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        f"        xmax = {last:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (start, stop, text) in enumerate(intervals, start=1):
        quoted = text.replace('"', '""')
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {start:.6f}",
            f"            xmax = {stop:.6f}",
            f'            text = "{quoted}"',
        ]
    return "\n".join(lines) + "\n"


# What each format is made by (of a recording's path, its name by `names_of`, and what it says), and the ending of its
# files.
FORMATS: dict[str, tuple[Callable[[Path, str, Recognition], str], str]] = {
    "text": (as_text, ".txt"),
    "json": (as_json, ".json"),
    "srt": (as_srt, ".srt"),
    "vtt": (as_vtt, ".vtt"),
    "ctm": (as_ctm, ".ctm"),
    "textgrid": (as_textgrid, ".TextGrid"),
}
# Those of which many fit into one stream.
LINES = ("text", "json", "ctm")


def names_of(paths: Sequence[Path], folder: Path) -> dict[Path, str]:
    """A name without spaces for each recording below a folder.

    The file's without its suffix or, where two were called alike, its path below the folder, if need be with suffix.
    """
    below = [path.relative_to(folder) for path in paths]
    for forms in ([path.stem for path in below], [path.with_suffix("") for path in below], below):
        names = [str(form).replace(" ", "_") for form in forms]
        if len(set(names)) == len(names):
            break
    return dict(zip(paths, names, strict=True))


def subtitles(words: list[Word]) -> list[list[Word]]:
    """Words in groups short enough to be read."""
    groups: list[list[Word]] = []
    for word in words:
        group = groups[-1] if groups else []
        if (
            not group
            or word.start_s - group[-1].end_s > PAUSE_S
            or len(_line([*group, word])) > MAX_LETTERS
            or word.end_s - group[0].start_s > MAX_S
        ):
            groups.append([word])
        else:
            group.append(word)
    return groups


def _line(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def _clock(seconds: float, point: str) -> str:
    """00:00:00,000."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
