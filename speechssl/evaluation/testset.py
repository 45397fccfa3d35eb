"""One pass over a test set: every clip through the model once, and how long that took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speechssl.data.loader import BatchLoader
from speechssl.errors import UserError
from speechssl.inference import SpeechModel
from speechssl.manifest import Manifest
from speechssl.types import Batch, Utterance

log = logging.getLogger("speechssl")

_PROGRESS_S = 10.0


@dataclass(frozen=True)
class Pass:
    """What came of a pass.

    Attributes:
        utterances: the clips that went through, in the manifest's order.
        results: one for each of them.
        num_skipped: clips of the manifest that were left out.
        audio_s: seconds of audio that went through.
        wall_s: seconds from before the first clip was read until after the last result.
    """

    utterances: list[Utterance]
    results: list[Any]
    num_skipped: int
    audio_s: float
    wall_s: float

    def metrics(self) -> dict[str, Any]:
        """The figures that every evaluation reports; rtf is wall seconds per audio second."""
        return {
            "num_utterances": len(self.utterances),
            "num_skipped": self.num_skipped,
            "audio_seconds": self.audio_s,
            "rtf": self.wall_s / self.audio_s,
        }


def names(utterance: Utterance) -> dict[str, Any]:
    """What every row about a clip begins with: its id and, in a manifest's keys, which audio it is."""
    row = {"id": utterance.id, "audio_filepath": str(utterance.audio_path), "duration": utterance.duration_s}
    if utterance.offset_s:
        row["offset"] = utterance.offset_s
    if utterance.byte_range is not None:
        row["bytes"] = list(utterance.byte_range)
    if utterance.channel is not None:
        row["channel"] = utterance.channel
    return row


def loader_for(
    manifest: Manifest, model: SpeechModel, *, check: Callable[[Utterance], str | None], **data: Any
) -> BatchLoader:
    """Every clip of a manifest once, in its order, as a model wants it; `data` are options of `BatchLoader`."""
    return BatchLoader(
        manifest,
        sample_rate=model.sample_rate,
        normalize=model.normalize,
        min_samples=model.min_samples,
        needs_voice=model.needs_voice,
        seed=0,
        shuffle=False,
        check=check,
        **data,
    )


def run_over(
    manifest: Manifest,
    model: SpeechModel,
    process: Callable[[Batch], list[Any]],
    *,
    check: Callable[[Utterance], str | None],
    batch_seconds: float,
    skip_invalid: bool,
    max_broken_share: float,
    num_workers: int,
) -> Pass:
    """Put every clip of a manifest through `process`.

    Args:
        manifest: the test set.
        model: says how clips are to be read.
        process: a batch -> one result for each of its clips.
        check: the reason why a clip cannot count, or None.
        batch_seconds: audio seconds in a batch.
        skip_invalid: leave out clips that fail the check, instead of refusing the manifest.
        max_broken_share: share of clips that may turn out unreadable; they are left out.
        num_workers: processes that read ahead.

    Raises:
        UserError: naming the first clip that cannot count, or that cannot be read.
    """
    loader = loader_for(
        manifest,
        model,
        check=check,
        batch_seconds=batch_seconds,
        skip_invalid=skip_invalid,
        max_broken_share=max_broken_share,
        num_workers=num_workers,
    )
    found: dict[str, tuple[Utterance, Any]] = {}
    num_samples = 0
    started = said = time.perf_counter()
    for batch in loader.once():
        for utterance, result in zip(batch.utterances, process(batch), strict=True):
            found[utterance.id] = utterance, result
        num_samples += int(batch.lengths.sum())
        if time.perf_counter() - said > _PROGRESS_S:
            said = time.perf_counter()
            log.info("%d of %d clips", len(found), len(manifest))
    wall_s = time.perf_counter() - started
    if not found:
        raise UserError(f"no clip is left in {manifest.path}: add recordings that can be read")
    ordered = [found[utterance.id] for utterance in manifest if utterance.id in found]
    return Pass(
        utterances=[utterance for utterance, _ in ordered],
        results=[result for _, result in ordered],
        num_skipped=len(manifest) - len(ordered),
        audio_s=num_samples / model.sample_rate,
        wall_s=wall_s,
    )
