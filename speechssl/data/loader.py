"""A manifest to a stream of batches: the checks that can be made before a run, then dataset, sampler and workers."""

from __future__ import annotations

import atexit
import logging
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechssl.data.augment import Augment
from speechssl.data.collate import BrokenClip
from speechssl.data.dataset import ClipDataset
from speechssl.data.sampler import DurationBuckets
from speechssl.errors import UserError
from speechssl.manifest import Manifest, ManifestSet
from speechssl.types import Batch, Utterance

log = logging.getLogger("speechssl")

# Waiting for batches for more than this share of the time, in so many rows of the log on end, is worth a warning. The
# first row has the start of the workers in it.
LATE_SHARE = 0.1
LATE_ROWS = 3
# Batches that each worker reads ahead.
PREFETCH = 4
# Values of a padded batch, as a multiple of its audio; a batch of more is sent by itself.
PADDED = 1.25


class BatchLoader:
    """Batches of a manifest.

    Args:
        manifest: the clips; those that the encoder cannot take are named and refused, or skipped where allowed.
        sample_rate, normalize: what the encoder wants.
        min_samples: the encoder's receptive field.
        batch_seconds: audio seconds in a batch.
        seed: of the run.
        shuffle: False for validation.
        max_clip_s: crop longer clips; where `whole_clips`, they count as unusable.
        whole_clips: labels belong to the whole of a clip (a transcript), so that none may be cropped.
        encode: labels of a clip.
        check: the reason why a clip cannot be used, or None (for example labels longer than frames).
        skip_invalid: leave out clips that fail a check instead of stopping.
        max_broken_share: the run stops when more than this share of the clips read so far could not be read.
        num_workers: processes that read and decode.
        mix_temperature: where the manifest is a ManifestSet, how far small corpora are repeated; 1 takes each clip once
            an epoch.
        shuffle_buffer: of shards, so many clips are shuffled among each other.
        augment: changes the clips, or None.
        needs_voice: silence counts as a clip that cannot be read.
        rank, world_size: of this process among those that share an epoch.

    Attributes:
        position: number of the run's next batch of this rank's turn: what a checkpoint has to keep.
    """

    def __init__(
        self,
        manifest: Manifest | ManifestSet,
        *,
        sample_rate: int,
        normalize: bool,
        min_samples: int,
        batch_seconds: float,
        seed: int,
        shuffle: bool = True,
        max_clip_s: float | None = None,
        whole_clips: bool = False,
        encode: Callable[[Utterance], Tensor] | None = None,
        check: Callable[[Utterance], str | None] | None = None,
        skip_invalid: bool = False,
        max_broken_share: float = 0.1,
        num_workers: int = 0,
        mix_temperature: float = 1.0,
        shuffle_buffer: int = 10_000,
        augment: Augment | None = None,
        needs_voice: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.manifest, self.max_broken_share, self.num_workers = manifest, max_broken_share, num_workers
        self.dataset = ClipDataset(
            manifest,
            sample_rate=sample_rate,
            normalize=normalize,
            seed=seed,
            max_clip_s=max_clip_s,
            encode=encode,
            augment=augment,
            needs_voice=needs_voice,
        )
        longest_s = max_clip_s if whole_clips else None
        self.usable = _usable(manifest, min_samples / sample_rate, longest_s, check, skip_invalid)
        durations_s = manifest.durations_s[self.usable]
        if max_clip_s:
            durations_s = np.minimum(durations_s, max_clip_s)
        ends = np.cumsum(getattr(manifest, "sizes", [len(manifest)]))
        self.sampler = DurationBuckets(
            durations_s,
            batch_seconds=batch_seconds,
            seed=seed,
            shuffle=shuffle,
            sizes=[n for n in np.diff(np.searchsorted(self.usable, [0, *ends])).tolist() if n],
            temperature=mix_temperature,
            shards=None if manifest.shards is None else manifest.shards[self.usable],
            buffer=shuffle_buffer,
        )
        self.rank, self.world_size = rank, world_size
        self.min_samples = min_samples
        self.position = self.num_read = self.num_broken = 0
        self.waited_s, self.num_late = 0.0, 0

    def stream(self) -> Iterator[Batch | None]:
        """This rank's batches without end, from batch `position` of the run on.

        Of several ranks, one gives None for a batch of which nothing could be read, so that their positions stay alike.
        """
        keys = self.sampler.batches(self.position, rank=self.rank, world_size=self.world_size)
        for batch, broken in self._timed(self._load(keys)):
            self.position += self.world_size
            self._account(batch, broken)
            if batch is not None or self.world_size > 1:
                yield batch

    def once(self) -> Iterator[Batch]:
        """The batches of epoch 0, once; of several ranks, one may have a batch less than another."""
        batches = self.sampler.epoch(0)
        numbers = range(self.rank, len(batches), self.world_size)
        for batch, broken in self._load(batches[number].tolist() for number in numbers):
            self._account(batch, broken)
            if batch is not None:
                yield batch

    def waiting_share(self, elapsed_s: float) -> float:
        """Share of the time since the last call, `elapsed_s` ago, that the stream was waited for."""
        share = min(self.waited_s / max(elapsed_s, 1e-9), 1.0)
        self.waited_s = 0.0
        self.num_late = self.num_late + 1 if share > LATE_SHARE else 0
        if self.num_late == LATE_ROWS:
            log.warning(
                "training waits for audio %.0f %% of the time; raise data.num_workers (%d now), or pack the recordings "
                "into shards (speechssl prepare shards=true)",
                100 * share,
                self.num_workers,
            )
        return share

    def _timed(self, loaded: Iterable[tuple[Batch | None, list[BrokenClip]]]) -> Iterator:
        """The same, the time until each comes added to `waited_s`."""
        loaded = iter(loaded)
        while True:
            started = time.perf_counter()
            item = next(loaded)  # without end
            self.waited_s += time.perf_counter() - started
            yield item

    def _load(self, batches: Iterable[list[tuple[int, int]]]) -> Iterator[tuple[Batch | None, list[BrokenClip]]]:
        # The sampler numbers the usable clips; the dataset numbers the manifest's lines.
        keys = ([(epoch, int(self.usable[i])) for epoch, i in batch] for batch in batches)
        slots = _Slots(self.num_workers, self.sampler.batch_seconds * self.dataset.sample_rate)
        loaded = DataLoader(
            _Batches(self.dataset, self.min_samples, slots),
            sampler=enumerate(keys),
            batch_size=None,  # an item is a batch
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH if self.num_workers else None,
            worker_init_fn=_start_worker,
        )
        for number, (sent, broken) in enumerate(loaded):
            yield slots.take(number, sent), broken

    def _account(self, batch: Batch | None, broken: list[BrokenClip]) -> None:
        """Name broken clips; stop when there are too many."""
        self.num_read += len(broken) + (len(batch.seeds) if batch else 0)
        # The first few clips decide nothing: the share is taken of 100 clips at least, or of all where there are fewer.
        allowed = self.max_broken_share * max(self.num_read, min(100, len(self.usable)))
        for clip in broken:
            self.num_broken += 1
            if self.num_broken > allowed:
                raise UserError(
                    f"{self.num_broken} of the {self.num_read} clips read so far are broken, the last because: "
                    f"{clip.reason}; mend or remove them, or raise data.max_broken_share"
                )
            log.warning("clip %s skipped: %s (%d so far)", clip.utterance.id, clip.reason, self.num_broken)


class _Slots:
    """Memory that workers read batches into and the trainer copies them out of; without workers there is none.

    It is mapped once: the system takes longer to find and clear new pages for a batch than a WAV takes to read. Batch n
    lies in slot n modulo their number. When a worker is given batch n, at most PREFETCH a worker are on their way, and
    one has come and is about to be copied; so there is one slot more than that.
    """

    def __init__(self, num_workers: int, batch_samples: float):
        self.slots = None
        if num_workers:
            shape = PREFETCH * num_workers + 1, math.ceil(batch_samples * PADDED)
            storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # as torch's own collate function does
            self.slots = torch.empty(0).set_(storage, 0, shape)

    def memory(self, number: int) -> Tensor | None:
        """float32 [M]: where a batch is to be read into."""
        return None if self.slots is None else self.slots[number % len(self.slots)]

    def send(self, number: int, batch: Batch | None) -> tuple[Batch | None, tuple[int, ...] | None]:
        """A worker's batch as it is to be pickled: its waveforms stay in its slot, and their shape goes instead."""
        if batch is None or self.slots is None:
            return batch, None
        # Each tensor from a worker holds a file open; a process has only so many.
        batch.lengths = batch.lengths.numpy()
        if batch.targets is not None:
            batch.targets = [target.numpy() for target in batch.targets]
        memory, shape = self.memory(number), tuple(batch.waveforms.shape)
        if batch.waveforms.numel() > len(memory):
            return batch, None
        place = memory[: batch.waveforms.numel()].view(shape)
        if place.data_ptr() != batch.waveforms.data_ptr():
            place.copy_(batch.waveforms)
        batch.waveforms = None
        return batch, shape

    def take(self, number: int, sent: tuple[Batch | None, tuple[int, ...] | None]) -> Batch | None:
        """The batch that was sent."""
        batch, shape = sent
        if batch is None or self.slots is None:
            return batch
        batch.lengths = torch.as_tensor(batch.lengths)
        if batch.targets is not None:
            batch.targets = [torch.as_tensor(target) for target in batch.targets]
        if shape is not None:
            batch.waveforms = self.memory(number)[: math.prod(shape)].view(shape).clone()
        return batch


class _Batches(Dataset):
    """Batches by their number and the keys of their clips."""

    def __init__(self, clips: ClipDataset, min_samples: int, slots: _Slots):
        self.clips, self.min_samples, self.slots = clips, min_samples, slots

    def __getitem__(self, item: tuple[int, list[tuple[int, int]]]) -> tuple[tuple, list[BrokenClip]]:
        number, keys = item
        batch, broken = self.clips.batch(keys, min_samples=self.min_samples, memory=self.slots.memory(number))
        return self.slots.send(number, batch), broken


def _as_it_is(batch: tuple) -> tuple:
    return batch


def _start_worker(_worker: int) -> None:
    """A signal to the whole process group is for the trainer, which saves and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Ends the workers of streams that are still open at the exit: multiprocessing would send SIGTERM and wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _usable(
    manifest: Manifest | ManifestSet,
    min_s: float,
    max_s: float | None,
    check: Callable[[Utterance], str | None] | None,
    skip_invalid: bool,
) -> np.ndarray:
    """Indexes of the clips that pass; the first that does not is an error that names it, unless it may be skipped."""
    reasons = {
        int(i): f"its {manifest.durations_s[i]:.4f} s are shorter than the encoder's receptive field of {min_s:.4f} s"
        for i in np.flatnonzero(manifest.durations_s < min_s)
    }
    if max_s:
        reasons |= {
            int(i): f"its {manifest.durations_s[i]:.2f} s are more than data.max_clip_s={max_s:g}, and a transcript "
            "belongs to the whole clip"
            for i in np.flatnonzero(manifest.durations_s > max_s + 0.05)
        }
    if check:
        for i, utterance in enumerate(manifest):
            reason = None if i in reasons else check(utterance)
            if reason:
                reasons[i] = reason
    if reasons:
        first = manifest[min(reasons)]
        said = (
            f"{len(reasons)} of the {len(manifest)} clips in {manifest.path} cannot be used, first {first.audio_path}: "
        )
        said += reasons[min(reasons)]
        if not skip_invalid:
            raise UserError(f"{said}; mend or remove them, or leave them out with data.skip_invalid=true")
        log.warning("%s; left out", said)
    usable = np.setdiff1d(np.arange(len(manifest)), np.fromiter(reasons, dtype=int, count=len(reasons)))
    if not len(usable):
        raise UserError(f"no clip is left in {manifest.path}; add recordings that the encoder can use")
    return usable
