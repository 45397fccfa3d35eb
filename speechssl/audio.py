"""Reads one clip: any rate, channel count and format of libsndfile -> mono float32 at the model's rate.

libsndfile (through soundfile) decodes WAV, FLAC, Ogg Vorbis, Opus, MP3 and AIFF without FFmpeg.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from speechssl.soundfiles import TOLERANCE_S, AudioError, Location, open_audio, truncated

SAMPLE_RATE = 16_000
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif"})

# What says something about a voice: seconds at least, and more than the last bits of 16.
VOICE_S, SILENCE = 0.08, 2**-13
NO_VOICE = "is silence, in which there is no voice"
# A float file beyond this many times full scale holds integers, or nothing that a microphone heard.
LOUDEST = 100.0
_FLOATS = ("FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III")
# Channels whose mean keeps less than this share of their energy are the same sound in opposite phase.
_CANCELLED = 1e-3
# What is read at once, as a header may promise anything: 4 GiB.
MAX_VALUES = 2**30
# A rate that has less in common with the target needs a filter of more than this many taps times phases.
_LARGEST_FILTER = 4_000_000


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds, at its own rate.

    Attributes:
        sample_rate: samples a second.
        num_channels: channels.
        num_samples: samples of one channel.
        format: its container, as libsndfile calls it (WAV, FLAC, OGG, MP3).
    """

    sample_rate: int
    num_channels: int
    num_samples: int
    format: str

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.num_samples / self.sample_rate


def load(
    path: Location,
    *,
    sample_rate: int = SAMPLE_RATE,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    byte_range: tuple[int, int] | None = None,
    channel: int | None = None,
    data: bytes | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Reads a clip, and no more of the file than the clip.

    Args:
        path: audio file, or a URL as text.
        sample_rate: rate of the result, samples a second; sinc interpolation with a Hann window.
        offset_s: where the clip begins, seconds.
        duration_s: seconds to read; to the end of the file if None.
        byte_range: (first, number) of the bytes of `path` that are the audio file; all of them if None.
        channel: the channel to read, 0 is the first; the mean over all if None.
        data: the bytes of the audio file, where they have been fetched already.
        into: float32 [at least N]: memory for the result, used where the file is mono and at that rate.

    Returns:
        float32 [N], full scale at 1.

    Raises:
        AudioError: the file is missing, empty, broken or truncated, ends before the clip, or holds NaN.
    """
    with open_audio(path, byte_range=byte_range, data=data) as file:
        start = round(offset_s * file.samplerate)
        left = file.frames - start
        wanted = left if duration_s is None else round(duration_s * file.samplerate)
        if start < 0 or min(left, wanted) <= 0 or wanted - left > TOLERANCE_S * file.samplerate:
            end = "the end" if duration_s is None else f"{offset_s + duration_s:.3f} s"
            raise AudioError(
                f"{path}: no audio from {offset_s:.3f} s to {end}, the file lasts "
                f"{file.frames / file.samplerate:.3f} s; correct the manifest's offset and duration."
            )
        if channel is not None and not 0 <= channel < file.channels:
            raise AudioError(f"{path}: has {file.channels} channels, none of number {channel}; correct the manifest.")
        number = min(left, wanted)
        if into is not None and file.channels == 1 and file.samplerate == sample_rate and number <= len(into):
            return into[: len(read_frames(file, path, start=start, num_samples=number, into=into[:number].numpy()))]
        samples = read_frames(file, path, start=start, num_samples=number)
        if channel is not None:
            samples = np.ascontiguousarray(samples[:, channel : channel + 1])
    return resample(torch.from_numpy(to_mono(samples)), source_rate=file.samplerate, target_rate=sample_rate)


def info(path: Location, *, byte_range: tuple[int, int] | None = None) -> AudioInfo:
    """Rate, channels and length of a file, from its header and a look at its end; decodes nothing else.

    Raises:
        AudioError: the file is missing, empty, broken or truncated.
    """
    with open_audio(path, byte_range=byte_range) as file:
        tail = min(file.frames, round(TOLERANCE_S * file.samplerate))
        read_frames(file, path, start=file.frames - tail, num_samples=tail)
        return AudioInfo(
            sample_rate=file.samplerate,
            num_channels=file.channels,
            num_samples=file.frames,
            format=file.format,
        )


def read_frames(
    file: soundfile.SoundFile, path: Location, *, start: int, num_samples: int, into: np.ndarray | None = None
) -> np.ndarray:
    """float32 [num_samples, channels] of an open file; fewer by the tolerance at most.

    Of a mono file they may be read into an array [num_samples], whose part that was filled is the result.

    Raises:
        AudioError: the file ends before, breaks off, or holds what is no sound.
    """
    if num_samples * file.channels > MAX_VALUES:
        raise AudioError(
            f"{path}: has {num_samples / file.samplerate / 3600:.1f} hours of {file.channels} channels, too many for "
            "memory at once; cut it into shorter files, or give each clip's offset and duration."
        )
    try:
        if start > 0:
            file.seek(start)
        samples = _read(file, num_samples, into)
    except soundfile.SoundFileError:
        raise truncated(path) from None
    if num_samples - len(samples) >= max(1, TOLERANCE_S * file.samplerate):
        raise truncated(path)
    if file.subtype in _FLOATS:
        # The least and the greatest sample are NaN where one is.
        peak = max(abs(samples.max(initial=0.0)), abs(samples.min(initial=0.0)))
        if not np.isfinite(peak):
            raise AudioError(f"{path}: holds NaN or infinite samples; export it again or leave it out.")
        if peak > LOUDEST:
            raise AudioError(f"{path}: has samples of {peak:.3g} where full scale is 1; export it again as 16-bit WAV.")
    return samples


def _read(file: soundfile.SoundFile, num_samples: int, into: np.ndarray | None) -> np.ndarray:
    """float32 [N, channels], or [N] in `into`: up to `num_samples` from where the file stands."""
    if file.subtype != "PCM_16" or file.format not in ("WAV", "WAVEX"):
        return file.read(num_samples, dtype="float32", always_2d=into is None, out=into)
    # To the bit what libsndfile makes of them, which takes three times as long.
    samples = file.read(num_samples, dtype="int16", always_2d=into is None)
    out = None if into is None else into[: len(samples)]
    return np.multiply(samples, np.float32(2**-15), out=out, dtype=np.float32)


def to_mono(samples: np.ndarray) -> np.ndarray:
    """[N, channels] -> [N]: the mean over channels, or the first where they would cancel each other."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    mono = samples.mean(axis=1)
    if np.square(mono).mean() < _CANCELLED * np.square(samples).mean():
        return np.ascontiguousarray(samples[:, 0])
    return mono


def voiceless(waveform: Tensor, sample_rate: int) -> str | None:
    """Why a clip [N] says nothing about a voice, in words, or None."""
    if len(waveform) < VOICE_S * sample_rate:
        return f"lasts {len(waveform) / sample_rate:.3f} s, and a voice takes at least {VOICE_S} s, better 3 s"
    if waveform.amax() - waveform.amin() < SILENCE:
        return NO_VOICE
    return None


def resample(waveform: Tensor, *, source_rate: int, target_rate: int) -> Tensor:
    """Float [N] at another rate (samples a second): sinc interpolation with a Hann window.

    Rates with hardly a common divisor, such as 44,101 and 16,000, go through librosa (soxr): the filter for each
    of their phases would take gigabytes.
    """
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    if (source_rate // divisor) * (target_rate // divisor) > _LARGEST_FILTER:
        import librosa

        resampled = librosa.resample(waveform.numpy(), orig_sr=source_rate, target_sr=target_rate, res_type="soxr_hq")
        return torch.from_numpy(resampled)
    return _resampler(source_rate, target_rate)(waveform)


def normalize_waveform(waveform: Tensor) -> Tensor:
    """Float [N] at zero mean and unit variance, as encoders like LARGE want each clip; silence stays 0.

    The epsilon is that of transformers' feature extractor, so that public weights get what they are used to.
    """
    centred = waveform - waveform.mean()
    return centred / (centred.square().mean() + 1e-7).sqrt()


@lru_cache(maxsize=32)
def _resampler(source_rate: int, target_rate: int) -> nn.Module:
    """Kept, because its filter takes longer to compute than to apply."""
    from torchaudio.transforms import Resample  # not needed for audio that is at the model's rate already

    return Resample(source_rate, target_rate)
