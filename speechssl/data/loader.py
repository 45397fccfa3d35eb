"""A manifest to a stream of batches: the checks that can be made before a run, then dataset, sampler and workers."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from speechssl.data.collate import collate
from speechssl.data.dataset import BrokenClip, ClipDataset
from speechssl.data.sampler import DurationBuckets
from speechssl.errors import UserError
from speechssl.manifest import Manifest
from speechssl.types import Batch, Utterance

log = logging.getLogger("speechssl")


class BatchLoader:
    """Batches of a manifest.

    Args:
        manifest: the clips; those that the encoder cannot take are named and refused, or skipped where allowed.
        sample_rate, normalize: what the encoder wants.
        min_samples: the encoder's receptive field.
        batch_seconds: audio seconds in a batch.
        seed: of the run.
        shuffle: False for validation.
        max_clip_s: crop longer clips (pretraining).
        encode: labels of a clip.
        check: the reason why a clip cannot be used, or None (for example labels longer than frames).
        skip_invalid: leave out clips that fail a check instead of stopping.
        max_broken_share: the run stops when more than this share of the clips read so far could not be read.
        num_workers: processes that read and decode.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        sample_rate: int,
        normalize: bool,
        min_samples: int,
        batch_seconds: float,
        seed: int,
        shuffle: bool = True,
        max_clip_s: float | None = None,
        encode: Callable[[Utterance], Tensor] | None = None,
        check: Callable[[Utterance], str | None] | None = None,
        skip_invalid: bool = False,
        max_broken_share: float = 0.1,
        num_workers: int = 0,
    ):
        self.manifest, self.max_broken_share, self.num_workers = manifest, max_broken_share, num_workers
        self.dataset = ClipDataset(
            manifest,
            sample_rate=sample_rate,
            normalize=normalize,
            seed=seed,
            max_clip_s=max_clip_s,
            encode=encode,
        )
        self.usable = _usable(manifest, min_samples / sample_rate, check, skip_invalid)
        durations_s = manifest.durations_s[self.usable]
        if max_clip_s:
            durations_s = np.minimum(durations_s, max_clip_s)
        self.sampler = DurationBuckets(durations_s, batch_seconds=batch_seconds, seed=seed, shuffle=shuffle)
        self.collate = partial(collate, min_samples=min_samples)
        self.position = self.num_read = self.num_broken = 0

    def stream(self) -> Iterator[Batch]:
        """Batches without end, from number `position` of the run on; `position` counts those handed out."""
        for batch, broken in self._load(self.sampler.batches(self.position)):
            self.position += 1
            self._account(batch, broken)
            if batch is not None:
                yield batch

    def once(self) -> Iterator[Batch]:
        """The batches of epoch 0, once."""
        for batch, broken in self._load([(0, i) for i in batch] for batch in self.sampler.epoch(0)):
            self._account(batch, broken)
            if batch is not None:
                yield batch

    def _load(self, batches: Iterable[list[tuple[int, int]]]) -> DataLoader:
        # The sampler numbers the usable clips; the dataset numbers the manifest's lines.
        keys = ([(epoch, int(self.usable[i])) for epoch, i in batch] for batch in batches)
        return DataLoader(
            self.dataset,
            batch_sampler=keys,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            prefetch_factor=4 if self.num_workers else None,
            worker_init_fn=_ignore_signals,
        )

    def _account(self, batch: Batch | None, broken: list[BrokenClip]) -> None:
        """Name broken clips; stop when there are too many."""
        self.num_read += len(broken) + (len(batch.seeds) if batch else 0)
        self.num_broken += len(broken)
        for clip in broken:
            log.warning("clip %s skipped: %s (%d so far)", clip.utterance.id, clip.reason, self.num_broken)
        # The first few clips decide nothing: the share is taken of 100 clips at least, or of all where there are fewer.
        allowed = self.max_broken_share * max(self.num_read, min(100, len(self.usable)))
        if broken and self.num_broken > allowed:
            raise UserError(
                f"{self.num_broken} of the {self.num_read} clips read so far are broken, the last because: "
                f"{broken[-1].reason}; mend or remove them, or raise data.max_broken_share"
            )


def _ignore_signals(_worker: int) -> None:
    """A signal to the whole process group is for the trainer, which saves and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _usable(
    manifest: Manifest,
    min_s: float,
    check: Callable[[Utterance], str | None] | None,
    skip_invalid: bool,
) -> np.ndarray:
    """Indexes of the clips that pass; the first that does not is an error that names it, unless it may be skipped."""
    reasons = {
        int(i): f"its {manifest.durations_s[i]:.4f} s are shorter than the encoder's receptive field of {min_s:.4f} s"
        for i in np.flatnonzero(manifest.durations_s < min_s)
    }
    if check:
        for i in range(len(manifest)):
            reason = None if i in reasons else check(manifest[i])
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
