"""Speech to text with a fine-tuned checkpoint, from Python and for the commands.

A recording longer than the clips that the model was trained on is cut at its pauses (see speechssl/segments.py),
and each stretch is decoded by itself; a stretch without a pause goes through the model in overlapping windows (see
speechssl/windows.py), whose logits are joined before they are decoded. What differs from the whole recording at once:
attention, group norm (BASE) and the zero mean and unit variance that some models want are of a stretch or window.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from speechssl.cutting import Cutter, assemble
from speechssl.decoding.greedy import GreedyDecoder
from speechssl.decoding.transcript import Alternative, Transcript, Word, join
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import Clip, SpeechModel, load_model
from speechssl.windows import WHOLE, Window

WINDOW_S, CONTEXT_S = 30.0, 2.0


@dataclass(frozen=True)
class Recognition:
    """What was said in a clip.

    Attributes:
        text: the words with one space between them.
        words: the same with times (seconds from the start of the clip) and confidences.
        duration_s: how long the clip lasts, to a frame.
        alternatives: the n best readings, where the decoder gives them and the clip was decoded as one.
    """

    text: str
    words: list[Word]
    duration_s: float = 0.0
    alternatives: list[Alternative] = field(default_factory=list)


class Recognizer:
    """A model with a CTC head, and a decoder.

    Args:
        model: the checkpoint's model.
        decoder: logits [T, V] of one clip -> Transcript; greedy if not given.
        window_s: no more than so many seconds go through the model at once, and less where it was trained on shorter
            clips; None is each clip at once.
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
        found = model.with_head(CTCObjective)
        if found is None:
            raise UserError(
                f"the checkpoint {model.source} has no CTC head, so it cannot transcribe: give it one with "
                f"`speechssl finetune task=ctc init={model.source}`"
            )
        self.model = model = found
        self.decoder = decoder or GreedyDecoder(model.objective.vocabulary)
        self.cutter = None
        if window_s is not None:
            self.cutter = Cutter(model, window_s=window_s, context_s=context_s)

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
        done: list[tuple[int, Transcript]] = []
        current = None
        for parts, waveforms, lengths in self.model.window_batches(
            paths, batch_seconds=batch_seconds, cut=self.cutter.of_file if self.cutter else None
        ):
            for (path, window), logits in zip(parts, self.logits(waveforms, lengths), strict=True):
                if path != current:
                    current, done = path, []  # a file that broke off left some
                stretch = assemble(window, logits, kept)
                if stretch is not None:
                    done.append((window.first_frame, self.decoder(stretch)))
                    if window.ends_recording:
                        yield path, self._joined(done, lambda path=path: self.model.num_samples(path))
                        current = None

    def decode(self, waveforms: Tensor, lengths: Tensor) -> list[Transcript]:
        """A batch, zero-padded float32 [B, N] with lengths int64 [B] in samples -> one Transcript a clip."""
        clips = [waveform[:length] for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]
        cuts = [self.cutter.of_waveform(clip) if self.cutter else [WHOLE] for clip in clips]
        if all(windows == [WHOLE] for windows in cuts):
            return [self.decoder(clip) for clip in self.logits(waveforms, lengths)]
        return [self._decode_long(clip, windows) for clip, windows in zip(clips, cuts, strict=True)]

    @torch.inference_mode()
    def logits(self, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        """A batch as in `decode`, at once -> float32 [T, V] of each clip, on the CPU."""
        output = self.model.encode(waveforms, lengths)
        return list(self.model.objective.logits(output).float().cpu().split(output.frame_lengths))

    def _decode_long(self, waveform: Tensor, windows: list[Window]) -> Transcript:
        """One clip [N], a window after the other."""
        kept: list[Tensor] = []
        done: list[tuple[int, Transcript]] = []
        for window in windows:
            part = waveform[window.start : window.end]
            part = part if window == WHOLE else self.model.scale(part)
            [logits] = self.logits(part[None], torch.tensor([len(part)]))
            stretch = assemble(window, logits, kept)
            if stretch is not None:
                done.append((window.first_frame, self.decoder(stretch)))
        return self._joined(done, lambda: len(waveform))

    def _joined(self, done: list[tuple[int, Transcript]], length: Callable[[], int]) -> Transcript:
        """What a recording says, from its stretches; its length in samples is asked for where it was cut."""
        if len(done) == 1 and done[0][0] == 0:
            return done[0][1]
        return join(done, num_frames=self.cutter.num_frames(length()))

    def recognition(self, transcript: Transcript) -> Recognition:
        """A decoded clip with its frames turned into seconds."""
        alternatives = list(transcript.alternatives) if len(transcript.alternatives) > 1 else []
        frame_s = self.model.frame_s
        return Recognition(transcript.text, transcript.words(frame_s), transcript.num_frames * frame_s, alternatives)


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
