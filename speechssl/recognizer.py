"""Speech to text with a fine-tuned checkpoint, from Python and for the commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.decoding.greedy import GreedyDecoder, Transcript, Word
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import Clip, SpeechModel, load_model


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

    Raises:
        UserError: the model has no CTC head.
    """

    def __init__(self, model: SpeechModel, decoder: Callable[[Tensor], Transcript] | None = None) -> None:
        if not isinstance(model.objective, CTCObjective):
            raise UserError(
                f"the checkpoint {model.source} has no CTC head, so it cannot transcribe: give it one with "
                f"`speechssl finetune task=ctc init={model.source}`"
            )
        self.model = model
        self.decoder = decoder or GreedyDecoder(model.objective.vocabulary)

    def transcribe(self, audio: Clip, sample_rate: int | None = None) -> Recognition:
        """The text of one clip with times: an audio file, or samples float [N] with their rate.

        Raises:
            UserError: as `SpeechModel.read`.
        """
        waveform = self.model.read(audio, sample_rate)
        [transcript] = self.decode(waveform[None], torch.tensor([len(waveform)]))
        return self.recognition(transcript)

    @torch.inference_mode()
    def decode(self, waveforms: Tensor, lengths: Tensor) -> list[Transcript]:
        """A batch, zero-padded float32 [B, N] with lengths int64 [B] in samples -> one Transcript a clip."""
        output = self.model.encode(waveforms, lengths)
        logits = self.model.objective.logits(output).float().cpu()
        return [self.decoder(clip) for clip in logits.split(output.frame_lengths)]

    def recognition(self, transcript: Transcript) -> Recognition:
        """A decoded clip with its frames turned into seconds."""
        return Recognition(transcript.text, transcript.words(self.model.frame_s))


def load_recognizer(checkpoint: str | os.PathLike[str], *, device: str = "auto") -> Recognizer:
    """The recogniser of a checkpoint (or run folder) that was fine-tuned with task=ctc.

    Raises:
        UserError: as `load_model`, or it has no CTC head.
    """
    return Recognizer(load_model(checkpoint, device=device))
