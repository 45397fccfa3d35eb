"""The same batches through the loaders of transformers and of SpeechBrain, as their users write them."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from speechssl import audio
from speechssl.data.loader import PREFETCH
from speechssl.errors import UserError
from speechssl.manifest import Manifest

RATE = audio.SAMPLE_RATE


def chosen(name: str) -> dict[str, Callable[..., Iterator[float]]]:
    """The peers that `peer=` names; `all` is those that are installed."""
    if name == "all":
        return {peer: start for peer, start in PEERS.items() if importlib.util.find_spec(peer)}
    if name not in PEERS:
        raise UserError(f"peer={name} is not known: give peer=all, {' or '.join(PEERS)}, or leave it out")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"peer={name} needs it installed: pip install {name}")
    return {name: PEERS[name]}


class _Files(Dataset):
    """Whole files by transformers' load_audio, cropped at random as its pretraining script truncates."""

    def __init__(self, paths: list[str], longest: int):
        self.paths, self.longest = paths, longest

    def __getitem__(self, index: int):
        from transformers.audio_utils import load_audio

        samples = load_audio(self.paths[index], sampling_rate=RATE, backend="soundfile")
        start = int(torch.randint(0, max(len(samples) - self.longest, 0) + 1, ()))
        return samples[start : start + self.longest]


def _transformers(
    clips: Manifest, keys: Iterator[list[int]], settings: dict[str, Any], workers: int
) -> Iterator[float]:
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)

    def collate(examples: list) -> dict[str, torch.Tensor]:
        return extractor(examples, sampling_rate=RATE, padding=True, return_tensors="pt")

    files = _Files([str(clip.audio_path) for clip in clips], round(settings["data"]["max_clip_s"] * RATE))
    for batch in _load(files, keys, workers, collate):
        yield int(batch["attention_mask"].sum()) / RATE


def _speechbrain(clips: Manifest, keys: Iterator[list[int]], settings: dict[str, Any], workers: int) -> Iterator[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechbrain.dataio.batch import PaddedBatch
        from speechbrain.dataio.dataio import read_audio
        from speechbrain.dataio.dataset import DynamicItemDataset

    longest_s = settings["data"]["max_clip_s"]
    rates = {str(clip.audio_path): audio.info(clip.audio_path).sample_rate for clip in clips}

    def waveform(path: str, duration_s: float) -> torch.Tensor:
        rate = rates[path]
        start = int(torch.rand(()) * max(duration_s - longest_s, 0.0) * rate)
        stop = start + round(min(duration_s, longest_s) * rate)
        samples = read_audio({"file": path, "start": start, "stop": stop})
        return audio.resample(samples, source_rate=rate, target_rate=RATE)

    data = {clip.id: {"path": str(clip.audio_path), "duration": clip.duration_s} for clip in clips}
    pipeline = {"func": waveform, "takes": ["path", "duration"], "provides": "sig"}
    files = DynamicItemDataset(data, dynamic_items=[pipeline], output_keys=["id", "sig"])
    for batch in _load(files, keys, workers, PaddedBatch):
        signal, shares = batch.sig
        yield float(shares.sum()) * signal.shape[1] / RATE


def _load(files: Any, keys: Iterator[list[int]], workers: int, collate: Callable) -> DataLoader:
    return DataLoader(
        files,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
    )


PEERS = {"transformers": _transformers, "speechbrain": _speechbrain}
