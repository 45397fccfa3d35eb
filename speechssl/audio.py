"""Reads one clip: any rate, channel count and format of libsndfile -> mono float32 at the model's rate.

libsndfile (through soundfile) decodes WAV, FLAC, Ogg Vorbis, Opus, MP3 and AIFF without FFmpeg. It opens a
cut-off file without complaint and calls it shorter; a cut-off recording under a whole transcript would spoil
training unseen, so this is checked here: by what the header promises (WAV, AIFF), by the last page (Ogg), by
reading (FLAC, MP3).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from speechssl.errors import UserError

SAMPLE_RATE = 16_000
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif"})

# A file, or a line of a manifest, may be off by this much: encoders pad, writers round.
TOLERANCE_S = 0.05
# What writers put as a size when they write to a pipe and cannot go back: it promises nothing.
_UNKNOWN_SIZE = 0x7FFF_0000
_PROMISED_SIZE = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_MEND = "copy it again or leave it out."
_OGG_PAGE_MAX = 27 + 255 + 255 * 255


class AudioError(UserError):
    """An audio file that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds, at its own rate.

    Attributes:
        sample_rate: samples a second.
        num_channels: channels.
        num_samples: samples of one channel.
    """

    sample_rate: int
    num_channels: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.num_samples / self.sample_rate


def load(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = SAMPLE_RATE,
    offset_s: float = 0.0,
    duration_s: float | None = None,
) -> Tensor:
    """Reads a clip, and no more of the file than the clip.

    Args:
        path: audio file.
        sample_rate: rate of the result, samples a second; sinc interpolation with a Hann window.
        offset_s: where the clip begins, seconds.
        duration_s: seconds to read; to the end of the file if None.

    Returns:
        float32 [N], the mean over channels, full scale at 1.

    Raises:
        AudioError: the file is missing, empty, broken or truncated, ends before the clip, or holds NaN.
    """
    with _open(path) as file:
        start = round(offset_s * file.samplerate)
        left = file.frames - start
        wanted = left if duration_s is None else round(duration_s * file.samplerate)
        if start < 0 or min(left, wanted) <= 0 or wanted - left > TOLERANCE_S * file.samplerate:
            end = "the end" if duration_s is None else f"{offset_s + duration_s:.3f} s"
            raise AudioError(
                f"{path}: no audio from {offset_s:.3f} s to {end}, the file lasts "
                f"{file.frames / file.samplerate:.3f} s; correct the manifest's offset and duration."
            )
        samples = _read(file, path, start=start, num_samples=min(left, wanted))
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples; export it again or leave it out.")
    waveform = torch.from_numpy(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1))
    return resample(waveform, source_rate=file.samplerate, target_rate=sample_rate)


def info(path: str | os.PathLike[str]) -> AudioInfo:
    """Rate, channels and length of a file, from its header and a look at its end; decodes nothing else.

    Raises:
        AudioError: the file is missing, empty, broken or truncated.
    """
    with _open(path) as file:
        tail = min(file.frames, round(TOLERANCE_S * file.samplerate))
        _read(file, path, start=file.frames - tail, num_samples=tail)
        return AudioInfo(sample_rate=file.samplerate, num_channels=file.channels, num_samples=file.frames)


def resample(waveform: Tensor, *, source_rate: int, target_rate: int) -> Tensor:
    """Float [N] at another rate (samples a second): sinc interpolation with a Hann window."""
    return waveform if source_rate == target_rate else _resampler(source_rate, target_rate)(waveform)


def normalize_waveform(waveform: Tensor) -> Tensor:
    """Float [N] at zero mean and unit variance, as encoders like LARGE want each clip; silence stays 0.

    The epsilon is that of transformers' feature extractor, so that public weights get what they are used to.
    """
    centred = waveform - waveform.mean()
    return centred / (centred.square().mean() + 1e-7).sqrt()


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise AudioError(f"{path}: no such audio file; correct the path ({error.strerror}).") from None
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not an audio file.")
    if size == 0:
        raise AudioError(f"{path}: is empty (0 bytes); {_MEND}")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a .raw file, which has no header
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioError(f"{path}: is broken or not audio ({reason}); {_MEND}") from None
    if _is_cut(file, path):
        file.close()
        raise _truncated(path)
    if file.frames == 0:
        file.close()
        raise AudioError(f"{path}: is empty (no samples); {_MEND}")
    return file


def _read(
    file: soundfile.SoundFile, path: str | os.PathLike[str], *, start: int, num_samples: int
) -> np.ndarray:
    """float32 [num_samples, channels]; fewer by the tolerance at most."""
    try:
        if start > 0:
            file.seek(start)
        samples = file.read(num_samples, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        raise _truncated(path) from None
    if num_samples - len(samples) >= max(1, TOLERANCE_S * file.samplerate):
        raise _truncated(path)
    return samples


def _truncated(path: str | os.PathLike[str]) -> AudioError:
    return AudioError(f"{path}: is truncated (less audio than its header promises); {_MEND}")


def _is_cut(file: soundfile.SoundFile, path: Path) -> bool:
    """Whether a file ends before its header or its last page says. FLAC and MP3 show it only when read."""
    if file.format == "OGG":
        return _last_page_is_cut(path)
    sizes = _PROMISED_SIZE.search(file.extra_info)
    if sizes is None:
        return False
    promised, present = map(int, sizes.groups())
    missing_s = (promised - present) / max(present, 1) * file.frames / file.samplerate
    return promised < _UNKNOWN_SIZE and (file.frames == 0 or missing_s > TOLERANCE_S)


def _last_page_is_cut(path: Path) -> bool:
    """Whether the last page of an Ogg file is incomplete (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _OGG_PAGE_MAX))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return True
    num_segments = page[26]
    return len(page) < 27 + num_segments + sum(page[27 : 27 + num_segments])


@lru_cache(maxsize=32)
def _resampler(source_rate: int, target_rate: int) -> nn.Module:
    """Kept, because its filter takes longer to compute than to apply."""
    from torchaudio.transforms import Resample  # not needed for audio that is at the model's rate already

    return Resample(source_rate, target_rate)
