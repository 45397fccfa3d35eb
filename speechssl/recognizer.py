"""Speech to text with a fine-tuned checkpoint, from Python and for the commands.

Recordings longer than a window go through the model in overlapping windows (see speechssl/windows.py), whose logits
are joined and decoded once. What differs from the whole recording at once: attention sees the window only; group norm
(BASE) takes its statistics over the window; and where the model wants each clip at zero mean and unit variance, each
window is given so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from speechssl.decoding.greedy import GreedyDecoder, Transcript, Word
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import Clip, SpeechModel, load_model
from speechssl.windows import Windowing

WINDOW_S, CONTEXT_S = 30.0, 2.0


@dataclass(frozen=True)
class Recognition:
    """What was said in a clip.

    Attributes:
        text: the words with one space between them.
        words: the same with times (seconds from the start of the clip) and confidences.
    """

    text: str
    words: list[Word]


class Recognizer:
    """A model with a CTC head, and a decoder.

    Args:
        model: the checkpoint's model.
        decoder: logits [T, V] of one clip -> Transcript; greedy if not given.
        window_s: longer clips go through the model in windows of so many seconds; None is each clip at once.
        context_s: seconds at each end of a window of which the logits are dropped.

    Raises:
        UserError: the model has no CTC head, or the window is not longer than its two contexts.
    """

    def __init__(
        self,
        model: SpeechModel,
        decoder: Callable[[Tensor], Transcript] | None = None,
        *,
        window_s: float | None = WINDOW_S,
        context_s: float = CONTEXT_S,
    ) -> None:
        if not isinstance(model.objective, CTCObjective):
            raise UserError(
                f"the checkpoint {model.source} has no CTC head, so it cannot transcribe: give it one with "
                f"`speechssl finetune task=ctc init={model.source}`"
            )
        self.model = model
        self.decoder = decoder or GreedyDecoder(model.objective.vocabulary)
        self.windowing = None
        if window_s is not None:
            self.windowing = Windowing(
                model.encoder.config, sample_rate=model.sample_rate, window_s=window_s, context_s=context_s
            )

    def transcribe(self, audio: Clip, sample_rate: int | None = None) -> Recognition:
        """The text of one clip with times: an audio file, or samples float [N] with their rate.

        Raises:
            UserError: as `SpeechModel.read`.
        """
        if isinstance(audio, (str, os.PathLike)):
            [(_, transcript)] = self.transcripts([Path(audio)], batch_seconds=0.0)
            return self.recognition(transcript)
        waveform = self.model.read(audio, sample_rate)
        [transcript] = self.decode(waveform[None], torch.tensor([len(waveform)]))
        return self.recognition(transcript)

    def transcripts(self, paths: Sequence[Path], *, batch_seconds: float) -> Iterator[tuple[Path, Transcript]]:
        """Each file with what it says, in their order. Of a file no more than a batch and a window is in memory.

        Args:
            paths: audio files.
            batch_seconds: audio seconds (whole files or windows) that go through the model together.

        Raises:
            UserError: at the end, if there were files that cannot be used.
        """
        kept: list[Tensor] = []
        for parts, waveforms, lengths in self.model.window_batches(
            paths, batch_seconds=batch_seconds, windowing=self.windowing
        ):
            for (path, window), logits in zip(parts, self.logits(waveforms, lengths), strict=True):
                if window.is_first:
                    kept = []  # a file that broke off left some
                kept.append(logits[window.keep])
                if window.is_last:
                    yield path, self.decoder(torch.cat(kept))

    def decode(self, waveforms: Tensor, lengths: Tensor) -> list[Transcript]:
        """A batch, zero-padded float32 [B, N] with lengths int64 [B] in samples -> one Transcript a clip."""
        if self.windowing is None or len(self.windowing.cut(int(lengths.max()))) == 1:
            return [self.decoder(clip) for clip in self.logits(waveforms, lengths)]
        clips = [waveform[:length] for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]
        return [self.decoder(self._joined_logits(clip)) for clip in clips]

    @torch.inference_mode()
    def logits(self, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        """A batch as in `decode`, at once -> float32 [T, V] of each clip, on the CPU."""
        output = self.model.encode(waveforms, lengths)
        return list(self.model.objective.logits(output).float().cpu().split(output.frame_lengths))

    def _joined_logits(self, waveform: Tensor) -> Tensor:
        """One clip [N], a window after the other -> [T, V]."""
        windows, kept = self.windowing.cut(len(waveform)), []
        for window in windows:
            part = waveform[window.start : window.end]
            part = self.model.scale(part) if len(windows) > 1 else part
            [logits] = self.logits(part[None], torch.tensor([len(part)]))
            kept.append(logits[window.keep])
        return torch.cat(kept)

    def recognition(self, transcript: Transcript) -> Recognition:
        """A decoded clip with its frames turned into seconds."""
        return Recognition(transcript.text, transcript.words(self.model.frame_s))


def load_recognizer(
    checkpoint: str | os.PathLike[str],
    *,
    device: str = "auto",
    window_s: float | None = WINDOW_S,
    context_s: float = CONTEXT_S,
) -> Recognizer:
    """The recogniser of a checkpoint (or run folder) that was fine-tuned with task=ctc.

    Raises:
        UserError: as `load_model` and `Recognizer`.
    """
    return Recognizer(load_model(checkpoint, device=device), window_s=window_s, context_s=context_s)
