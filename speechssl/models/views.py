"""Altered waveforms: crops, noise, overlapping speech, removed bands, reversal, speed. Random choices take a generator.

A batch goes in and a list of clips comes out, each [n], so that nothing behind a clip's end is ever read.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.models.spectrum import LOW_HZ
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, to_device


def clips_of(batch: Batch) -> list[Tensor]:
    """The waveform [n] of each clip."""
    return [waveform[:n] for waveform, n in zip(batch.waveforms, batch.lengths.tolist(), strict=True)]


def with_clips(batch: Batch, clips: list[Tensor]) -> Batch:
    """The batch with other waveforms; of seeds and utterances only those of the first clips are kept."""
    return replace(
        batch,
        waveforms=pad_sequence(clips, batch_first=True),
        lengths=torch.tensor([len(clip) for clip in clips]),
    )


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number between the two."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def crop(clip: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """[n] -> [min(n, length)] from a random place."""
    spare = len(clip) - length
    start = 0 if spare <= 0 else int(torch.randint(spare + 1, (), generator=generator))
    return clip[start : start + length]


def add_noise(clip: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """[n] with white noise at a ratio of powers."""
    noise = to_device(torch.randn(len(clip), generator=generator), clip.device)
    return mix(clip, noise, snr_db)


def mix(clip: Tensor, other: Tensor, snr_db: float) -> Tensor:
    """[n] with another waveform on top, so much quieter in power; the shorter one is filled with silence."""
    other = F.pad(other[: len(clip)], (0, max(len(clip) - len(other), 0)))
    ratio = clip.square().mean() / other.square().mean().clamp_min(1e-12)
    return clip + (ratio / 10 ** (snr_db / 10)).sqrt() * other


def remove_band(clip: Tensor, low: int, high: int, num_bins: int, sample_rate: int) -> Tensor:
    """[n] without the frequencies of the mel bands from `low` to below `high` of so many."""
    if high <= low:
        return clip
    top = 1127.0 * torch.log(torch.tensor(1 + sample_rate / 2 / 700.0)).item()
    bottom = 1127.0 * torch.log(torch.tensor(1 + LOW_HZ / 700.0)).item()
    mels = bottom + (top - bottom) / (num_bins + 1) * torch.tensor([low, high + 1.0])
    edges = 700.0 * ((mels / 1127.0).exp() - 1)
    spectrum = torch.fft.rfft(clip.float())
    hertz = torch.arange(len(spectrum), device=clip.device) * sample_rate / len(clip)
    keep = (hertz < edges[0].item()) | (hertz > edges[1].item())
    return torch.fft.irfft(spectrum * keep, n=len(clip))


def change_speed(clip: Tensor, factor: float) -> Tensor:
    """[n] -> [n / factor], played faster, by linear interpolation."""
    length = max(round(len(clip) / factor), 1)
    return F.interpolate(clip[None, None], size=length, mode="linear", align_corners=True)[0, 0]


def reorder(clip: Tensor, order: list[int], fade: int) -> Tensor:
    """[n] with equal parts in another order, each faded in and out so that a seam is no clue."""
    size = len(clip) // len(order)
    parts = clip[: size * len(order)].view(len(order), size)
    fade = min(fade, size // 2)
    ramp = torch.ones(size, device=clip.device)
    ramp[:fade] = torch.arange(fade, device=clip.device) / max(fade, 1)
    faded = parts * ramp * ramp.flip(0)
    return torch.cat([faded[number] for number in order])


def two_views(batch: Batch, length: int, noise_snr_db: tuple[float, float]) -> Batch:
    """2 B clips: a crop of each clip with noise and another loudness, then another crop of each."""
    views = []
    for number in range(2):
        for clip, seed in zip(clips_of(batch), batch.seeds, strict=True):
            generator = make_generator(seed, "view", number)
            view = crop(clip, length, generator)
            view = add_noise(view, uniform(*noise_snr_db, generator), generator)
            views.append(view * 10 ** (uniform(-6.0, 6.0, generator) / 20))
    return with_clips(batch, views)
