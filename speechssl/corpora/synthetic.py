"""A corpus that the toolkit speaks itself, for whoever has no data: real waveforms, transcripts and speakers.

espeak-ng speaks English sentences of a small seeded grammar in several voices, each with a pitch and a rate
of its own that vary a little from clip to clip, over faint noise. Equal options give equal files.

espeak-ng is an extra (`synthetic`): see speechssl/espeak.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import soundfile
import torch

from speechssl import audio, espeak
from speechssl.corpora import splits
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

# ruff: noqa: SIM905  (word lists read better in one string)

# Accent and timbre of espeak-ng, women and men in turn.
VOICES = (
    "en-us+f2 en-us+m3 en+f4 en-029+m7 en-gb-scotland+f1 en+m1 en-us+linda en-us+david en-gb-x-rp+f5 en-us+Michael "
    "en-us+steph en+m8 en-us+belinda en-us+adam en+f3 en+john en-us+Alicia en-us+paul en-029+f2 en-gb-scotland+m4 "
    "en+aunty en+m5 en-us+Annie en+rob"
).split()

DETERMINERS = "the my your our this that every her".split()
ADJECTIVES = (
    "old young small big green red white black cold warm quiet happy little long new good clean dark soft "
    "strong tired funny heavy broken"
).split()
NOUNS = (
    "man woman child dog cat bird horse farmer teacher doctor friend brother sister mother father king baker "
    "house door window table chair garden river road bridge market school kitchen forest mountain village boat "
    "train letter book picture song story apple bread water milk dinner hat coat box key lamp fire stone tree "
    "flower moon star ship wall city"
).split()
VERBS = (
    "saw found took carried painted watched bought sold lost moved washed opened followed called helped liked "
    "wanted made heard pulled pushed kept broke showed hid left drew dropped"
).split()
PREPOSITIONS = "near behind under beside with without before after from above".split()
ADVERBS = "today again slowly quickly often never quietly together yesterday outside early twice".split()

# Names and values of espeak-ng's speak_lib.h.
_RATE, _PITCH = 1, 3
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

# speak(text, voice, words a minute, pitch 0-99) -> float32 [N] and its sample rate.
Speak = Callable[[str, str, int, int], tuple[np.ndarray, int]]


def prepare(
    job: Preparation,
    *,
    num_train: int = 1000,
    num_valid: int = 60,
    num_test: int = 120,
    num_labelled: int = 60,
    num_voices: int = 8,
    seed: int = 0,
) -> dict[str, int]:
    """Speaks out/audio/*.flac (16 kHz), and writes out/{train,valid,test,train_labelled}.jsonl.

    Args:
        job: writes the manifests; audio goes into its folder too.
        num_train: clips to train on, about three seconds each; every clip has its own sentence.
        num_valid: clips for validation.
        num_test: clips for the test.
        num_labelled: clips of train_labelled.jsonl, a part of train with each voice alike often: few transcripts.
        num_voices: speakers; all of them are in every split.
        seed: of sentences, voices and noise.

    Returns:
        Clips of each manifest.

    Raises:
        UserError: espeakng-loader is not installed or cannot be loaded, or a number is out of range.
    """
    if not 1 <= num_voices <= len(VOICES):
        raise UserError(f"corpus.num_voices={num_voices}: there are from 1 to {len(VOICES)} voices.")
    if num_train < 1 or min(num_valid, num_test) < 0 or not 0 <= num_labelled <= num_train:
        raise UserError(
            f"corpus.num_train={num_train}, num_valid={num_valid}, num_test={num_test} and "
            f"num_labelled={num_labelled}: train needs a clip, and the labelled ones are among its."
        )
    out = job.out
    (out / "audio").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    manners = _manners(num_voices, generator)
    sentences = _sentences(generator)
    parts: dict[str, list[splits.Row]] = {}
    with _espeak(seed) as speak, _one_thread():
        for name, count in {"train": num_train, "valid": num_valid, "test": num_test}.items():
            parts[name] = []
            for i in range(count):
                clip, text = f"{name}-{i:05d}", next(sentences)
                waveform = _recording(speak, text, manner=manners[i % num_voices], generator=generator)
                soundfile.write(out / "audio" / f"{clip}.flac", waveform, audio.SAMPLE_RATE, subtype="PCM_16")
                row = {"audio_filepath": f"audio/{clip}.flac", "duration": len(waveform) / audio.SAMPLE_RATE}
                parts[name].append({**row, "text": text, "speaker": VOICES[i % num_voices], "id": clip})
    parts["train_labelled"] = parts["train"][:num_labelled]
    return job.write(parts)


def _sentences(generator: np.random.Generator) -> Iterator[str]:
    """Sentences of five to eleven words, lower case, never one twice."""

    def one(words: list[str]) -> str:
        return words[generator.integers(len(words))]

    def thing() -> str:
        adjective = f"{one(ADJECTIVES)} " if generator.random() < 0.6 else ""
        return f"{one(DETERMINERS)} {adjective}{one(NOUNS)}"

    spoken = set()
    while True:
        sentence = f"{thing()} {one(VERBS)} {thing()}"
        if generator.random() < 0.6:
            sentence += f" {one(PREPOSITIONS)} {thing()}"
        if generator.random() < 0.4:
            sentence += f" {one(ADVERBS)}"
        if sentence not in spoken:
            spoken.add(sentence)
            yield sentence


def _manners(num_voices: int, generator: np.random.Generator) -> list[tuple[str, int, int]]:
    """(voice, words a minute, pitch) of each speaker."""
    rates = generator.integers(145, 190, num_voices)
    pitches = generator.integers(35, 65, num_voices)
    return list(zip(VOICES, rates.tolist(), pitches.tolist(), strict=False))


def _recording(speak: Speak, text: str, *, manner: tuple[str, int, int], generator: np.random.Generator) -> np.ndarray:
    """float32 [N] at 16 kHz: the sentence as this speaker says it this time, over noise of -25 to -40 dB."""
    voice, rate, pitch = manner
    rate, pitch = rate + int(generator.integers(-8, 9)), pitch + int(generator.integers(-5, 6))
    spoken, spoken_rate = speak(text, voice, rate, pitch)
    speech = audio.resample(torch.from_numpy(spoken), source_rate=spoken_rate, target_rate=audio.SAMPLE_RATE)
    pause = generator.integers(0, audio.SAMPLE_RATE // 5, 2)
    waveform = np.pad(speech.numpy(), pause)
    level = waveform.std() * 10 ** (-generator.uniform(25, 40) / 20)
    waveform = waveform + generator.normal(0, level, len(waveform))
    return (waveform * generator.uniform(0.2, 0.8) / np.abs(waveform).max()).astype(np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: for clips as short as these, several mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def _espeak(seed: int) -> Iterator[Speak]:
    """espeak-ng, ready to speak and in its first state."""
    with espeak.loaded("corpus=synthetic speaks through") as (library, sample_rate):
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        chunks: list[np.ndarray] = []

        @_Callback
        def collect(samples, num_samples, _):
            if num_samples > 0:
                chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
            return 0  # go on

        library.espeak_SetSynthCallback(collect)

        def speak(text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, int]:
            chunks.clear()
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UserError(f"espeak-ng has no voice {voice}: pip install -U espeakng-loader")
            library.espeak_SetParameter(_RATE, rate, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            line = text.encode() + b"\0"
            size, none = ctypes.c_size_t(len(line)), ctypes.c_void_p()
            library.espeak_Synth(line, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, none, none)
            return np.concatenate(chunks).astype(np.float32) / 2**15, sample_rate

        yield speak
