"""Changes to a training clip, drawn anew each epoch from the clip's seed: speed, room, noise, gain, codec.

Noise is mixed in at a signal-to-noise ratio (torchaudio's add_noise), a room is a convolution with its impulse response
(torchaudio's fftconvolve; Ko et al. 2017), a codec is Opus or MP3 and back in memory (libsndfile). Recordings of noise
and of rooms come from manifests; without them, noise is made with a random slope of its spectrum, and a room as noise
that decays by 60 dB within its reverberation time. Each effect draws from a generator of its own, so that switching
one on changes no other.
"""

from __future__ import annotations

import io
import math

import soundfile
import torch
from torch import Tensor

from speechssl import audio
from speechssl.errors import UserError
from speechssl.manifest import Manifest
from speechssl.rng import generator

# Of each codec: container, encoding, and the rates that it takes.
CODECS = {
    "opus": ("OGG", "OPUS", (8_000, 12_000, 16_000, 24_000, 48_000)),
    "mp3": ("MP3", "MPEG_LAYER_III", (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
}


class Augment:
    """Each effect happens with its probability.

    Args:
        sample_rate: of the clips, samples a second.
        speed_factors: one of them is how much faster a clip is played, pitch included.
        noise: manifest of noise recordings, or None.
        noise_snr_db: lowest and highest signal-to-noise ratio.
        room: manifest of room impulse responses, or None.
        room_rt60_s: shortest and longest reverberation time of a made room.
        gain_db: lowest and highest gain.
        codecs: of "opus" and "mp3".

    Raises:
        UserError: a manifest cannot be read, or a codec does not exist.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        speed_probability: float,
        speed_factors: list[float],
        room_probability: float,
        room: str | None,
        room_rt60_s: list[float],
        noise_probability: float,
        noise: str | None,
        noise_snr_db: list[float],
        gain_probability: float,
        gain_db: list[float],
        codec_probability: float,
        codecs: list[str],
    ):
        for codec in codecs:
            if codec not in CODECS:
                raise UserError(f"augment.codecs has {codec!r}; there are {' and '.join(CODECS)}")
        if not speed_factors or min(speed_factors) < 0.5 or max(speed_factors) > 2:
            raise UserError(f"augment.speed_factors={speed_factors}: give factors from 0.5 to 2")
        self.sample_rate = sample_rate
        self.speed_probability, self.speed_factors = speed_probability, speed_factors
        self.room_probability, self.room_rt60_s = room_probability, room_rt60_s
        self.noise_probability, self.noise_snr_db = noise_probability, noise_snr_db
        self.gain_probability, self.gain_db = gain_probability, gain_db
        self.codec_probability, self.codecs = codec_probability, codecs
        self.rooms, self.noises = (Manifest(path) if path else None for path in (room, noise))

    @property
    def fastest(self) -> float:
        """By how much a clip may become shorter."""
        return max(self.speed_factors) if self.speed_probability else 1.0

    def speed(self, seed: int) -> float:
        """How much faster the clip with this seed is played."""
        random = generator(seed, "speed")
        if _uniform(random) >= self.speed_probability:
            return 1.0
        return self.speed_factors[int(_uniform(random) * len(self.speed_factors))]

    def __call__(self, waveform: Tensor, seed: int) -> Tensor:
        """A clip, float [N], as it is to be trained on; its length changes with its speed alone."""
        speed = self.speed(seed)
        if speed != 1.0:
            faster = round(self.sample_rate * speed)
            waveform = audio.resample(waveform, source_rate=faster, target_rate=self.sample_rate)
        for name, probability in (
            ("room", self.room_probability),
            ("noise", self.noise_probability),
            ("gain", self.gain_probability),
            ("codec", self.codec_probability),
        ):
            random = generator(seed, name)
            if _uniform(random) < probability:
                waveform = getattr(self, f"_{name}")(waveform, random)
        return waveform

    def _room(self, waveform: Tensor, random: torch.Generator) -> Tensor:
        from torchaudio.functional import fftconvolve

        if self.rooms is None:
            response = room_response(_between(self.room_rt60_s, random), self.sample_rate, random)
        else:
            response = self._recording(self.rooms, random)
        # The direct sound keeps its place and its level.
        direct = int(response.abs().argmax())
        response = response / response[direct].abs().clamp_min(1e-8)
        return fftconvolve(waveform, response)[direct : direct + len(waveform)]

    def _noise(self, waveform: Tensor, random: torch.Generator) -> Tensor:
        from torchaudio.functional import add_noise

        if self.noises is None:
            noise = colored_noise(len(waveform), random)
        else:
            noise = self._recording(self.noises, random, longest=len(waveform))
            noise = noise.repeat(-(-len(waveform) // len(noise)))[: len(waveform)]
        if not waveform.any() or not noise.any():  # a ratio to silence is none
            return waveform
        snr_db = torch.tensor(_between(self.noise_snr_db, random))
        return add_noise(waveform, noise, snr_db)

    def _gain(self, waveform: Tensor, random: torch.Generator) -> Tensor:
        return waveform * 10 ** (_between(self.gain_db, random) / 20)

    def _codec(self, waveform: Tensor, random: torch.Generator) -> Tensor:
        codec = self.codecs[int(_uniform(random) * len(self.codecs))]
        return coded(waveform, codec, sample_rate=self.sample_rate, compression=0.3 + 0.69 * _uniform(random))

    def _recording(self, manifest: Manifest, random: torch.Generator, longest: int | None = None) -> Tensor:
        """A random recording of a manifest, or a random part of `longest` samples of it."""
        utterance = manifest[int(_uniform(random) * len(manifest))]
        offset_s, duration_s = utterance.offset_s, utterance.duration_s
        spare_s = 0.0 if longest is None else duration_s - longest / self.sample_rate
        if spare_s > 0:
            offset_s, duration_s = offset_s + _uniform(random) * spare_s, longest / self.sample_rate
        return audio.load(
            utterance.audio_path,
            sample_rate=self.sample_rate,
            offset_s=offset_s,
            duration_s=duration_s,
            byte_range=utterance.byte_range,
            channel=utterance.channel,
        )


def colored_noise(num_samples: int, random: torch.Generator) -> Tensor:
    """Float [num_samples]: Gaussian noise whose power falls by 0 to 6 dB an octave, at unit level."""
    slope = _uniform(random)
    spectrum = torch.fft.rfft(torch.randn(num_samples, generator=random))
    scale = torch.arange(1, len(spectrum) + 1).float() ** -slope
    noise = torch.fft.irfft(spectrum * scale, n=num_samples)
    return noise / noise.square().mean().sqrt().clamp_min(1e-8)


def room_response(rt60_s: float, sample_rate: int, random: torch.Generator) -> Tensor:
    """Float [N]: a direct sound, and after it noise that decays by 60 dB in `rt60_s` seconds."""
    time_s = torch.arange(max(round(rt60_s * sample_rate), 2)) / sample_rate
    tail = torch.randn(len(time_s), generator=random) * 10 ** (-3 * time_s / rt60_s)
    tail[: round(0.002 * sample_rate)] = 0.0
    # The direct sound against the energy of all that follows, -3 to 12 dB.
    ratio_db = _between([-3.0, 12.0], random)
    response = tail * 10 ** (-ratio_db / 20) / tail.square().sum().sqrt().clamp_min(1e-8)
    response[0] = 1.0
    return response


def coded(waveform: Tensor, codec: str, *, sample_rate: int, compression: float) -> Tensor:
    """A clip, float [N], through a lossy codec and back; `compression` 0 is the best quality, 1 the least."""
    container, encoding, rates = CODECS[codec]
    rate = min((r for r in rates if r >= sample_rate), default=rates[-1])
    peak = max(float(waveform.abs().max()), 1.0)  # codecs clip beyond full scale
    there = audio.resample(waveform / peak, source_rate=sample_rate, target_rate=rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, there.numpy(), rate, format=container, subtype=encoding, compression_level=compression)
    buffer.seek(0)
    samples, _ = soundfile.read(buffer, dtype="float32")
    back = audio.resample(torch.from_numpy(samples), source_rate=rate, target_rate=sample_rate) * peak
    back = back[: len(waveform)]
    return torch.nn.functional.pad(back, (0, len(waveform) - len(back)))


def _uniform(random: torch.Generator) -> float:
    return torch.rand((), generator=random).item()


def _between(bounds: list[float], random: torch.Generator) -> float:
    low, high = bounds
    value = low + (high - low) * _uniform(random)
    assert math.isfinite(value)
    return value
