"""The few things that travel between the parts.

Legend used throughout: B clips in a batch, N samples, T frames of one clip, P frames of all clips end to end
("packed": no padding anywhere), C channels, G groups of the quantizer, V codewords a group, K distractors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest.

    Attributes:
        id: name of the clip, unique within its manifest.
        audio_path: where the audio is, a path or, as text, a URL; a manifest's relative path is already resolved.
        duration_s: seconds of audio.
        offset_s: where the clip begins within its file, seconds.
        text: transcript, if there is one.
        speaker: who speaks, if known.
        byte_range: (first, number) of the bytes that are the audio file, where it lies in a larger one (a tar shard).
        channel: which one of several to read; None is their mean.
        fields: every key of the line as written, unknown ones included.
    """

    id: str
    audio_path: Path | str
    duration_s: float
    offset_s: float = 0.0
    text: str | None = None
    speaker: str | None = None
    byte_range: tuple[int, int] | None = None
    channel: int | None = None
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    def label(self, column: str) -> str | None:
        """What a column says, as text; None where it is missing or empty."""
        value = self.fields.get(column)
        return None if value in (None, "") else str(value)


@dataclass
class Batch:
    """Clips that go through the model together.

    Attributes:
        waveforms: float32 [B, N], zero padded; what lies past a clip's length is never read.
        lengths: int64 [B] on the CPU, samples of each clip.
        seeds: one integer a clip, a function of (seed, epoch, clip) alone; masks, distractors and noise come from it.
        utterances: what the clips are.
        targets: int64 [L] label ids of each clip, or None where the objective needs none.
        starts_s: where in its utterance each clip begins, seconds; None where all are whole.
    """

    waveforms: Tensor
    lengths: Tensor
    seeds: list[int]
    utterances: list[Utterance]
    targets: list[Tensor] | None = None
    starts_s: list[float] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with its waveforms on `device`; lengths stay on the CPU, where shapes are decided."""
        return Batch(
            waveforms=to_device(self.waveforms, device),
            lengths=self.lengths,
            seeds=self.seeds,
            utterances=self.utterances,
            targets=self.targets,
            starts_s=self.starts_s,
        )


@dataclass
class EncoderOutput:
    """What an encoder makes of a batch.

    Attributes:
        packed: layers + 1 tensors [P, C]: the input of the first layer, then the output of each.
        frame_lengths: frames of each clip; they sum to P.
    """

    packed: list[Tensor]
    frame_lengths: list[int]

    @property
    def lengths(self) -> Tensor:
        """int64 [B]: frames of each clip."""
        return torch.tensor(self.frame_lengths)

    @property
    def hidden_states(self) -> list[Tensor]:
        """layers + 1 tensors [B, T, C], zero where a clip has ended."""
        return [self._pad(x) for x in self.packed]

    @property
    def frames(self) -> Tensor:
        """[B, T, C]: the last hidden state, zero where a clip has ended."""
        return self._pad(self.packed[-1])

    def _pad(self, x_PC: Tensor) -> Tensor:
        return pad_sequence(x_PC.split(self.frame_lengths), batch_first=True)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. To a GPU it goes from pinned memory, so that nobody waits until the GPU is idle."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32, and in fp64 where the model is."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass
class Term:
    """One part of a loss, as a sum and what it is a sum over, so that parts add up over batches and ranks.

    Attributes:
        sum: scalar with gradient, summed (nats, squared units, ...) over the batch.
        count: how many items (masked frames, clips, values) the sum is over.
        weight: factor in the total loss.
    """

    sum: Tensor
    count: int
    weight: float = 1.0


@dataclass
class LossOutput:
    """What an objective returns.

    Attributes:
        terms: the parts of the loss by name; the total is the weighted sum of each sum over its count.
        metrics: figures worth logging by name, each (sum, count), averaged over a logging interval.
    """

    terms: dict[str, Term]
    metrics: dict[str, tuple[float | Tensor, float]] = field(default_factory=dict)
