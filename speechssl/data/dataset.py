"""A manifest's clips as waveforms, cropped and seeded; a clip that cannot be read is an answer, not a crash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechssl import audio
from speechssl.manifest import Manifest
from speechssl.rng import derive_seed, generator
from speechssl.types import Utterance


@dataclass
class Example:
    """One clip: waveform float32 [N], its seed in this epoch, what it is, and its labels int64 [L] if wanted."""

    waveform: Tensor
    seed: int
    utterance: Utterance
    target: Tensor | None


@dataclass
class BrokenClip:
    """A clip that could not be read, and the sentence that says why."""

    utterance: Utterance
    reason: str


class ClipDataset(Dataset):
    """Clips of a manifest by (epoch, index).

    Args:
        manifest: the clips.
        sample_rate: of the model; other rates are resampled.
        normalize: zero mean and unit variance for each clip (LARGE).
        seed: of the run; crops and all later random choices follow from (seed, epoch, clip id).
        max_clip_s: longer clips are cropped at random to this many seconds, reading no more; None keeps them whole.
        encode: gives a clip's labels, or None where the objective needs none.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        sample_rate: int,
        normalize: bool,
        seed: int,
        max_clip_s: float | None = None,
        encode: Callable[[Utterance], Tensor] | None = None,
    ):
        self.manifest, self.sample_rate, self.normalize, self.seed = manifest, sample_rate, normalize, seed
        self.max_clip_s, self.encode = max_clip_s, encode

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> Example | BrokenClip:
        epoch, index = key
        utterance = self.manifest[index]
        seed = derive_seed(self.seed, epoch, utterance.id)
        offset_s, duration_s = self._crop(utterance, seed)
        try:
            waveform = audio.load(
                utterance.audio_path, sample_rate=self.sample_rate, offset_s=offset_s, duration_s=duration_s
            )
        except audio.AudioError as error:
            return BrokenClip(utterance, str(error))
        if self.normalize:
            waveform = audio.normalize_waveform(waveform)
        return Example(waveform, seed, utterance, self.encode(utterance) if self.encode else None)

    def _crop(self, utterance: Utterance, seed: int) -> tuple[float, float]:
        spare_s = utterance.duration_s - (self.max_clip_s or utterance.duration_s)
        if spare_s <= 0:
            return utterance.offset_s, utterance.duration_s
        start = torch.rand((), generator=generator(seed, "crop")).item()
        return utterance.offset_s + start * spare_s, self.max_clip_s
