"""A checkpoint put to use: its model in evaluation mode, and clips read the way that model wants them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechssl import audio
from speechssl.corpora.splits import audio_files
from speechssl.errors import UserError
from speechssl.training.checkpoint import build_model, load_checkpoint
from speechssl.training.run import choose_device
from speechssl.types import EncoderOutput
from speechssl.windows import WHOLE, Window

log = logging.getLogger("speechssl")

# An audio file, or the samples of one channel, float [N].
Clip = str | os.PathLike[str] | np.ndarray | Tensor


@dataclass
class SpeechModel:
    """Encoder and head of a checkpoint.

    Attributes:
        encoder, objective: in evaluation mode, on `device`.
        sample_rate: of the waveforms it takes, samples a second.
        normalize: whether it takes each clip at zero mean and unit variance.
        device: where it computes.
        source: the checkpoint, for messages.
        needs_voice: whether silence, and clips too short for a voice, are refused.
    """

    encoder: nn.Module
    objective: nn.Module
    sample_rate: int
    normalize: bool
    device: torch.device
    source: Path
    needs_voice: bool = False

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip that gives a frame."""
        return self.encoder.config.receptive_field

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.encoder.config.hop / self.sample_rate

    def with_head(self, kind: type[nn.Module]) -> SpeechModel | None:
        """The same model with its head of a kind, which may be one of several that were trained together."""
        if isinstance(self.objective, kind):
            return self
        for head in self.objective.children() if self.objective is not None else ():
            if isinstance(head, kind):
                return replace(self, objective=head)
        return None

    def encode(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        """Zero-padded waveforms float32 [B, N] with lengths int64 [B] in samples -> EncoderOutput."""
        return self.encoder(waveforms.to(self.device), lengths)

    def read(self, source: Clip, sample_rate: int | None = None, *, name: str = "the clip") -> Tensor:
        """A clip as the model wants it.

        Args:
            source: an audio file, or the samples of one channel: float [N], full scale at 1.
            sample_rate: samples a second of an array; a file says its own.
            name: of an array, for messages.

        Returns:
            float32 [N] at the model's rate.

        Raises:
            UserError: the file cannot be used, the samples are not float [N] with a rate, or the clip is too
                short.
        """
        if isinstance(source, (str, os.PathLike)):
            name, waveform = str(source), audio.load(source, sample_rate=self.sample_rate)
        else:
            waveform = self._from_samples(source, sample_rate)
        if len(waveform) < self.min_samples:
            raise UserError(
                f"{name}: lasts {len(waveform) / self.sample_rate:.4f} s, and the model needs at least "
                f"{self.min_samples / self.sample_rate:.4f} s; give a longer recording."
            )
        if self.needs_voice:
            self._check_voice(name, waveform)
        return self.scale(waveform)

    def _check_voice(self, name: str, waveform: Tensor) -> None:
        reason = audio.voiceless(waveform, self.sample_rate)
        if reason:
            raise UserError(f"{name}: {reason}; give another recording.")

    def scale(self, waveform: Tensor) -> Tensor:
        """Float [N] at zero mean and unit variance, if the model takes clips so."""
        return audio.normalize_waveform(waveform) if self.normalize else waveform

    def window_batches(
        self, paths: Sequence[Path], *, batch_seconds: float, cut: Callable[[Path], list[Window]] | None = None
    ) -> Iterator[tuple[list[tuple[Path, Window]], Tensor, Tensor]]:
        """Files in their order, in the windows that `cut` gives, as (parts, waveforms [B, N], lengths [B]).

        A batch has at most `batch_seconds` in all; a longer part comes alone. No more of a file is in memory than
        that and one window. A model that normalises each clip is given each window normalised by itself; where a voice
        is needed, a window of a longer file without one is all zeros. A file
        that cannot be used is named on the log and left out, so that the others are not lost for it; windows of it
        may have come by then, but not its last.

        Raises:
            UserError: at the end, if there were such files.
        """
        ready: list[tuple[tuple[Path, Window], Tensor]] = []
        unusable: list[str] = []
        for path, window, waveform in self._parts(paths, cut, unusable):
            num_samples = len(waveform) + sum(len(x) for _, x in ready)
            if ready and num_samples > batch_seconds * self.sample_rate:
                yield _pad(ready)
                ready = []
            ready.append(((path, window), waveform))
        if ready:
            yield _pad(ready)
        if len(paths) == 1 and unusable:
            raise UserError(unusable[0])
        if unusable:
            raise UserError(f"{len(unusable)} of {len(paths)} files cannot be used, the first: {unusable[0]}")

    def _parts(
        self, paths: Sequence[Path], cut: Callable[[Path], list[Window]] | None, unusable: list[str]
    ) -> Iterator[tuple[Path, Window, Tensor]]:
        """The windows of all files; why one cannot be used is added to `unusable`."""
        for path in paths:
            try:
                for window in cut(path) if cut else [WHOLE]:
                    yield path, window, self.read(path) if window is WHOLE else self._read_window(path, window)
            except UserError as error:
                if len(paths) > 1:  # of one file it is said by the error
                    log.warning("%s", error)
                unusable.append(str(error))

    def num_samples(self, path: Path) -> int:
        """Samples of a file at the model's rate."""
        info = audio.info(path)
        return math.ceil(info.num_samples * self.sample_rate / info.sample_rate)

    def _read_window(self, path: Path, window: Window) -> Tensor:
        duration_s = None if window.end is None else (window.end - window.start) / self.sample_rate
        offset_s = window.start / self.sample_rate
        waveform = audio.load(path, sample_rate=self.sample_rate, offset_s=offset_s, duration_s=duration_s)
        if self.needs_voice and audio.voiceless(waveform, self.sample_rate):
            return torch.zeros_like(waveform)  # so that it can be told from voices once they are scaled
        return self.scale(waveform)

    def _from_samples(self, samples: np.ndarray | Tensor, sample_rate: int | None) -> Tensor:
        samples = torch.as_tensor(samples)
        if samples.ndim != 1 or not samples.is_floating_point():
            kind = f"{samples.dtype} {list(samples.shape)}".removeprefix("torch.")
            raise UserError(f"the samples are {kind}: give one channel of floats [N] with full scale at 1")
        if sample_rate is None:
            raise UserError("the rate of the samples is not known: give sample_rate, in samples a second")
        if not samples.isfinite().all():
            raise UserError("the samples hold NaN or infinite values: correct them first")
        return audio.resample(samples.float(), source_rate=sample_rate, target_rate=self.sample_rate)


def load_model(path: str | os.PathLike[str], *, device: str = "auto") -> SpeechModel:
    """The model of a checkpoint: its folder, or a run's, of which `best` is taken where there is one.

    Args:
        path: CHECKPOINT.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        UserError: there is no such checkpoint, it is damaged, or there is no GPU for "cuda".
    """
    checkpoint = load_checkpoint(path, prefer="best")
    encoder, objective = build_model(checkpoint)
    place = torch.device(choose_device(device))
    return SpeechModel(
        encoder=encoder.to(place).eval(),
        objective=objective.to(place).eval(),
        sample_rate=checkpoint.config["sample_rate"],
        normalize=checkpoint.config["normalize"],
        device=place,
        source=checkpoint.folder,
    )


def recordings(path: str | os.PathLike[str]) -> list[Path]:
    """The file itself, or all audio files below a folder but hidden ones, sorted by path.

    Raises:
        UserError: there is no such file or folder, or no audio in the folder.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; correct the path.")
    if not path.is_dir():
        return [path]
    found = sorted(audio_files(path), key=str)
    if not found:
        kinds = ", ".join(sorted(audio.EXTENSIONS))
        raise UserError(f"{path}: has no audio file in it or below it ({kinds}); give another folder.")
    return found


def _pad(clips: list[tuple[tuple[Path, Window], Tensor]]) -> tuple[list[tuple[Path, Window]], Tensor, Tensor]:
    parts, waveforms = zip(*clips, strict=True)
    return list(parts), pad_sequence(waveforms, batch_first=True), torch.tensor([len(x) for x in waveforms])
