"""The clips that a benchmark runs on: how many, how long, and noise in the place of speech."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from speechssl.audio import normalize_waveform
from speechssl.errors import UserError
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, Utterance

# What batch=uneven is, seconds.
UNEVEN = (1.0, 3.0, 5.0, 8.0, 12.0, 15.0)
# Of a batch, seconds.
MOST_S = 86_400
# Characters a second in the transcripts, about as in read English.
LABEL_RATE = 14
# Of each clip, root of the mean square: -26 dB of full scale, as speech is levelled.
LEVEL = 0.05

_NUMBER = r"\d+(?:\.\d+)?"


def clip_seconds(text: str) -> list[float]:
    """Seconds of each clip: of `4x5` (clips x seconds), `[1.5,3,15]`, or `uneven`.

    Raises:
        UserError: it is none of these, or there is no clip, or one of no length.
    """
    even, listed = re.fullmatch(rf"(\d+)x({_NUMBER})", text), re.fullmatch(r"\[(.*)\]", text)
    if text == "uneven":
        found = list(UNEVEN)
    elif even and int(even[1]) * float(even[2]) > MOST_S:
        raise UserError(f"batch={text} is more than a day of audio: give fewer or shorter clips")
    elif even:
        found = [float(even[2])] * int(even[1])
    elif listed and all(re.fullmatch(_NUMBER, item.strip()) for item in listed[1].split(",")):
        found = [float(item) for item in listed[1].split(",")]
    else:
        found = []
    if not found or min(found) <= 0:
        raise UserError(
            f"batch={text} is no batch: give CLIPSxSECONDS such as 4x5, the seconds of each clip such as [1.5,3,15], "
            "or uneven"
        )
    return found


def padding_share(seconds: list[float]) -> float:
    """Share of a batch that would be padding, were each clip padded to the longest."""
    return 1 - sum(seconds) / (len(seconds) * max(seconds))


def make_batch(seconds: list[float], *, sample_rate: int, normalize: bool, num_labels: int, seed: int) -> Batch:
    """Clips of noise with transcripts of random labels (1 to num_labels - 1), the same for the same seed."""
    generator = make_generator(seed, "clips")
    clips = [_noise(round(s * sample_rate), sample_rate, generator) for s in seconds]
    if normalize:
        clips = [normalize_waveform(clip) for clip in clips]
    waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    targets = [torch.randint(1, num_labels, (max(round(s * LABEL_RATE), 1),), generator=generator) for s in seconds]
    return Batch(
        waveforms=waveforms,
        lengths=torch.tensor([len(clip) for clip in clips]),
        seeds=list(range(len(clips))),
        utterances=[Utterance(str(i), Path(f"{i}.wav"), s) for i, s in enumerate(seconds)],
        targets=targets,
    )


def _noise(num_samples: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """White noise whose loudness rises and falls four times a second, as syllables do."""
    phase = torch.arange(num_samples) * (2 * math.pi * 4 / sample_rate)
    waveform = torch.randn(num_samples, generator=generator) * (1 - phase.cos())
    return waveform * (LEVEL / waveform.square().mean().sqrt().clamp_min(1e-8))
