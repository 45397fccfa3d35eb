"""A manifest's clips as waveforms, cropped, augmented and seeded; one that cannot be read is an answer, not a crash.

A batch is decoded where it is to lie: clips of the model's rate go from libsndfile into the rows of the padded tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechssl import audio
from speechssl.data.augment import Augment
from speechssl.data.collate import BrokenClip, Example, collate
from speechssl.manifest import Manifest, ManifestSet
from speechssl.rng import derive_seed, generator
from speechssl.soundfiles import fetch
from speechssl.types import Batch, Utterance


class ClipDataset(Dataset):
    """Clips of a manifest by (epoch, index).

    Args:
        manifest: the clips.
        sample_rate: of the model; other rates are resampled.
        normalize: zero mean and unit variance for each clip (LARGE).
        seed: of the run; crops and all later random choices follow from (seed, epoch, clip id).
        max_clip_s: longer clips are cropped at random to this many seconds, reading no more; None keeps them whole.
        encode: gives a clip's labels, or None where the objective needs none.
        augment: changes a clip, or None.
        needs_voice: silence counts as a clip that cannot be read.
    """

    def __init__(
        self,
        manifest: Manifest | ManifestSet,
        *,
        sample_rate: int,
        normalize: bool,
        seed: int,
        max_clip_s: float | None = None,
        encode: Callable[[Utterance], Tensor] | None = None,
        augment: Augment | None = None,
        needs_voice: bool = False,
    ):
        self.manifest, self.sample_rate, self.normalize, self.seed = manifest, sample_rate, normalize, seed
        self.max_clip_s, self.encode, self.augment = max_clip_s, encode, augment
        self.needs_voice = needs_voice

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> Example | BrokenClip:
        return self._read(self._plan(key))

    def batch(
        self, keys: list[tuple[int, int]], *, min_samples: int, memory: Tensor | None = None
    ) -> tuple[Batch | None, list[BrokenClip]]:
        """The batch of some clips; see `collate`. It is read into `memory` (float32 [M]) if that is large enough."""
        plans = sorted(map(self._plan, keys), key=lambda plan: -plan.duration_s)
        shape = len(plans), max(plan.num_samples(self.sample_rate) for plan in plans)
        size = math.prod(shape)
        rows = torch.empty(shape) if memory is None or len(memory) < size else memory[:size].view(shape)
        fetched = fetch([(plan.utterance.audio_path, plan.utterance.byte_range) for plan in plans])
        examples = [self._read(*each) for each in zip(plans, rows, fetched, strict=True)]
        return collate(examples, min_samples=min_samples, rows=rows)

    def _plan(self, key: tuple[int, int]) -> _Plan:
        """What is to be read of a clip: of a long one, a random part."""
        epoch, index = key
        utterance = self.manifest[index]
        seed = derive_seed(self.seed, epoch, utterance.id)
        longest_s = self.max_clip_s or utterance.duration_s
        if self.augment:  # the part is to last max_clip_s once it is played faster or slower
            longest_s *= self.augment.speed(seed) if self.max_clip_s else 1.0
        spare_s = utterance.duration_s - longest_s
        if spare_s <= 0:
            return _Plan(utterance, seed, utterance.offset_s, utterance.duration_s)
        start = torch.rand((), generator=generator(seed, "crop")).item()
        return _Plan(utterance, seed, utterance.offset_s + start * spare_s, longest_s)

    def _read(self, plan: _Plan, row: Tensor | None = None, data: bytes | None = None) -> Example | BrokenClip:
        """A clip, in `row` if it has come to lie there; `data` is its file where that has been fetched."""
        utterance = plan.utterance
        try:
            waveform = audio.load(
                utterance.audio_path,
                sample_rate=self.sample_rate,
                offset_s=plan.offset_s,
                duration_s=plan.duration_s,
                byte_range=utterance.byte_range,
                channel=utterance.channel,
                data=data,
                into=row,
            )
            reason = audio.voiceless(waveform, self.sample_rate) if self.needs_voice else None
            if reason:
                return BrokenClip(utterance, f"{utterance.audio_path}: {reason}")
            if self.augment:
                waveform = self.augment(waveform, plan.seed)
        except audio.AudioError as error:
            return BrokenClip(utterance, str(error))
        if self.normalize:
            waveform = audio.normalize_waveform(waveform)
        target = self.encode(utterance) if self.encode else None
        return Example(waveform, plan.seed, utterance, target, start_s=plan.offset_s - utterance.offset_s)


@dataclass(frozen=True)
class _Plan:
    """A clip, its seed, and the part of its file that is to be read."""

    utterance: Utterance
    seed: int
    offset_s: float
    duration_s: float

    def num_samples(self, sample_rate: int) -> int:
        return round(self.duration_s * sample_rate)
