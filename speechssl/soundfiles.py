"""Opens an audio file, wherever it lies (a path, a URL, a part of a tar shard), once it is known to be whole.

libsndfile opens a cut-off file without complaint and calls it shorter; a cut-off recording under a whole transcript
would spoil training unseen. So this is checked here: by what the header promises (WAV, AIFF), by the last page (Ogg),
by counting frames (MP3). FLAC shows it only when it is read.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import soundfile

from speechssl.errors import UserError
from speechssl.manifest import is_url
from speechssl.mp3 import Frames

# A file, or a line of a manifest, may be off by this much: encoders pad, writers round.
TOLERANCE_S = 0.05
# Samples a second outside of which a header must be wrong.
RATES = (1_000, 1_000_000)
MEND = "copy it again or leave it out."

# What writers put as a size when they write to a pipe and cannot go back: it promises nothing.
_UNKNOWN_SIZE = 0x7FFF_0000
# What libsndfile calls the length of a file that does not say it.
_UNKNOWN_FRAMES = 2**62
_PROMISED_SIZE = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+)(?: \(should be (\d+)\))?", re.MULTILINE)
_OGG_HEADER = 27
_OGG_PAGE_MAX = _OGG_HEADER + 255 + 255 * 255

Location = str | os.PathLike[str]


class AudioError(UserError):
    """An audio file that cannot be used; the message names it and says why."""


def open_audio(
    path: Location, *, byte_range: tuple[int, int] | None = None, data: bytes | None = None
) -> soundfile.SoundFile:
    """A file to read from, which has samples and is not cut off, as far as that shows without reading it.

    Args:
        path: a path, or a URL as text, for which fsspec needs its driver.
        byte_range: (first, number) of the bytes that are the file, where it lies in a larger one.
        data: these bytes, where they have been fetched already.

    Raises:
        AudioError: there is none, or it cannot be used.
    """
    if data is None and (byte_range is not None or _is_remote(path)):
        data = read_bytes(path, byte_range)
    size = _check_file(path) if data is None else len(data)
    file = _sound_file(path, data)
    try:
        if file.format == "MP3":
            file = _whole_mp3(file, path, data)
        elif _is_cut(file, path, data, size):
            raise truncated(path)
        if file.frames == 0:
            raise AudioError(f"{path}: is empty (no samples); {MEND}")
        if file.frames > _UNKNOWN_FRAMES:
            raise AudioError(f"{path}: does not say how long it is; export it again.")
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise AudioError(f"{path}: says it has {file.samplerate} samples a second; export it again.")
    except AudioError:
        file.close()
        raise
    return file


def truncated(path: Location) -> AudioError:
    """The error of a file that ends too early."""
    return AudioError(f"{path}: is truncated (less audio than its header promises); {MEND}")


def read_bytes(path: Location, byte_range: tuple[int, int] | None = None) -> bytes:
    """The bytes of a file or URL, or a part of them.

    Raises:
        AudioError: it cannot be read, or ends before that part does.
    """
    try:
        if _is_remote(path):
            data = _fetch(path, byte_range)
        else:
            with open(path, "rb") as file:  # noqa: PTH123  (a Path costs as much as the opening)
                first, number = byte_range or (0, -1)
                file.seek(first)
                data = file.read(min(number, os.fstat(file.fileno()).st_size))  # which is what is set aside for it
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise AudioError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if byte_range is not None and len(data) < byte_range[1]:
        raise AudioError(f"{path}: ends within the audio at byte {byte_range[0]}; make or copy the shard again.")
    return data


def fetch(places: Sequence[tuple[Location, tuple[int, int] | None]]) -> list[bytes | None]:
    """The bytes of each place that is a part of something remote, fetched at once; None for every other, and for all
    if one fails, so that reading it by itself says why."""
    remote = [(url, span) for url, span in places if span is not None and _is_remote(url)]
    if len(remote) < 2:
        return [None] * len(places)
    import fsspec

    try:
        files, _ = fsspec.core.url_to_fs(remote[0][0])
        inner = [files._strip_protocol(url) for url, _ in remote]
        ends = [first + number for _, (first, number) in remote]
        found = iter(files.cat_ranges(inner, [first for _, (first, _) in remote], ends, on_error="return"))
    except (ImportError, ValueError, OSError):
        return [None] * len(places)
    data = [next(found) if span is not None and _is_remote(url) else None for url, span in places]
    return [
        item if isinstance(item, bytes) and span is not None and len(item) == span[1] else None
        for item, (_, span) in zip(data, places, strict=True)
    ]


def _is_remote(path: Location) -> bool:
    return isinstance(path, str) and is_url(path)


def _fetch(url: str, byte_range: tuple[int, int] | None) -> bytes:
    import fsspec  # comes with torch; the drivers of protocols do not

    try:
        files, inner = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise AudioError(f"{url}: fsspec has no driver for it ({error}).") from None
    if byte_range is None:
        return files.cat_file(inner)
    return files.cat_file(inner, start=byte_range[0], end=sum(byte_range))


def _check_file(path: Location) -> int:
    """Bytes of a path that is a regular file and has some: opening a pipe would wait forever."""
    try:
        status = os.stat(path)  # noqa: PTH116  (as above)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: no such audio file; correct the path ({reason}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path}: is a folder, not an audio file.")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path}: is a pipe or a device, not an audio file.")
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes); {MEND}")
    return status.st_size


def _sound_file(path: Location, data: bytes | None) -> soundfile.SoundFile:
    try:
        # As bytes: a name need not be UTF-8.
        return soundfile.SoundFile(os.fsencode(path) if data is None else io.BytesIO(data))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a .raw file, which has no header
        reason = getattr(error, "error_string", str(error)).rstrip(".")
    if data is None and not os.access(path, os.R_OK):
        raise AudioError(f"{path}: may not be read; change its permissions or leave it out.")
    raise AudioError(f"{path}: is broken or not audio ({reason}); {MEND}")


def _whole_mp3(file: soundfile.SoundFile, path: Location, data: bytes | None) -> soundfile.SoundFile:
    """The same file, or itself opened such that all of it is read."""
    frames = _frames(path) if data is None else Frames(data)
    if frames.is_as_promised or not frames.number:
        return file
    if frames.promised and frames.number < frames.promised:
        raise truncated(path)
    file.close()
    return soundfile.SoundFile(frames.told(Path(path).read_bytes() if data is None else data))


def _frames(path: Location) -> Frames:
    """The frames of an MP3 file, counted once: a long one is opened for each of its windows."""
    status = Path(path).stat()
    return _frames_then(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _frames_then(path: Location, mtime_ns: int, size: int) -> Frames:
    return Frames(Path(path).read_bytes())


def _is_cut(file: soundfile.SoundFile, path: Location, data: bytes | None, size: int) -> bool:
    """Whether a file ends before its header or its last page says.

    Raises:
        AudioError: there is more audio than would be read.
    """
    if file.format == "OGG":
        head = _part(path, data, 0, _OGG_HEADER)
        tail = _part(path, data, -_OGG_PAGE_MAX, _OGG_PAGE_MAX)
        return _last_page_is_cut(tail, of=head[14:18], path=path)
    sizes = _PROMISED_SIZE.search(file.extra_info)
    if sizes is None:
        return False
    promised, present = int(sizes[1]), int(sizes[2] or sizes[1])
    if promised >= _UNKNOWN_SIZE:
        return False
    if file.format in ("WAV", "WAVEX"):
        second = max(promised / max(file.frames, 1) * file.samplerate, 1)
        if size - promised > TOLERANCE_S * second + 44:
            _check_end_of_data(path, data, size)
    missing_s = (promised - present) / max(present, 1) * file.frames / file.samplerate
    return (file.frames == 0 and promised > 0) or missing_s > TOLERANCE_S


def _check_end_of_data(path: Location, data: bytes | None, size: int) -> None:
    """That what follows the samples of a WAV file is another chunk, and not more samples.

    Raises:
        AudioError: the header gives the samples fewer bytes than there are, so that the rest would not be read.
    """
    head = _part(path, data, 0, 4096)
    at = head.find(b"data", 12)
    if at < 0 or at + 8 > len(head):
        return
    promised = int.from_bytes(head[at + 4 : at + 8], "little")
    end = at + 8 + promised + promised % 2
    chunk = _part(path, data, end, 8)
    is_chunk = all(32 <= byte < 127 for byte in chunk[:4]) and int.from_bytes(chunk[4:], "little") <= size - end
    if not is_chunk and any(_part(path, data, end, 4096)):  # zeros are padding
        raise AudioError(f"{path}: has more audio than its header says; export it again.")


def _part(path: Location, data: bytes | None, first: int, number: int) -> bytes:
    """So many bytes of a file from `first` on, which counts from the end if negative."""
    if data is not None:
        return data[first:][:number]
    with Path(path).open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size + first if first < 0 else first))
        return file.read(number)


def _last_page_is_cut(tail: bytes, *, of: bytes, path: Location) -> bool:
    """Whether the last page of an Ogg file is incomplete or not the last of its stream (RFC 3533, section 6).

    Raises:
        AudioError: it is of another stream than the first page: several follow each other, and one would be read.
    """
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < _OGG_HEADER:
        return True
    if page[14:18] != of:
        raise AudioError(f"{path}: has several streams one after the other; make one file of each.")
    is_last, num_segments = page[5] & 4, page[26]
    return not is_last or len(page) < _OGG_HEADER + num_segments + sum(page[27 : 27 + num_segments])
