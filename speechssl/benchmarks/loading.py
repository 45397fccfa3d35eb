"""How fast recordings become batches: what=data.

The same clips in several formats, through a plain loop of soundfile and the resampler on one core (the limit), through
our loader and through those of others with some numbers of workers. All get the same batches and crop the same clips to
the same length. Sides take turns; of each turn the batches that were read ahead are not counted. Beside the clock, the
time that processors worked is counted, of workers too: it tells about the same on a machine that others use as well.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from speechssl import audio, cpu, manifest
from speechssl.benchmarks.meters import Parts
from speechssl.benchmarks.ours import Ours
from speechssl.benchmarks.worker import processor
from speechssl.corpora import shards
from speechssl.data.loader import PREFETCH, BatchLoader
from speechssl.data.sampler import DurationBuckets
from speechssl.manifest import Manifest
from speechssl.rng import derive_seed
from speechssl.training.run import choose_device

RATE = audio.SAMPLE_RATE
# Of each format: suffix, rate, and what soundfile is to be told.
FORMATS = {
    "wav": (".wav", RATE, {"subtype": "PCM_16"}),
    "flac": (".flac", RATE, {"subtype": "PCM_16"}),
    "flac_44k": (".flac", 44_100, {"subtype": "PCM_16"}),
    "opus": (".opus", RATE, {"format": "OGG", "subtype": "OPUS"}),
    "mp3": (".mp3", RATE, {}),
    "shards": (".flac", RATE, {"subtype": "PCM_16"}),
}
LIMIT = "soundfile, one core"

Batches = Iterator[float]  # audio seconds of each batch, as it comes


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that the command reports, as plain data; `settings` is its whole config."""
    options = settings["data"]
    torch.set_num_threads(1)
    cpu.tune()  # memory as in training, for all sides
    formats = {}
    with tempfile.TemporaryDirectory(prefix="speechssl-benchmark-") as folder:
        for name in options["formats"]:
            clips = write_clips(Path(folder) / name, name, seconds=options["seconds"], seed=settings["trainer"]["seed"])
            formats[name] = _format(clips, settings)
        share = _loader_share(clips, settings)
    return {
        "what": "data",
        "formats": formats,
        "max_clip_s": options["max_clip_s"],
        "batch_seconds": options["batch_seconds"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor(),
        **share,
    }


def write_clips(folder: Path, name: str, *, seconds: float, seed: int, longest_s: float = 20.0) -> Manifest:
    """Clips of 1 to `longest_s` seconds, as many as last `seconds`, in a format."""
    suffix, rate, options = FORMATS[name]
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows, total = [], 0.0
    while total < seconds:
        duration = float(random.uniform(1.0, longest_s))
        path = folder / f"{len(rows):05d}{suffix}"
        soundfile.write(path, _speechlike(round(duration * rate), random), rate, **options)
        duration = audio.info(path).duration_s
        rows.append({"audio_filepath": str(path), "duration": duration, "id": path.stem})
        total += duration
    if name == "shards":
        rows = [row for part in shards.plan(folder, "train", rows, shard_bytes=2**26) for row in shards.pack(part).rows]
    manifest.write(folder / "train.jsonl", rows)
    return Manifest(folder / "train.jsonl")


def _speechlike(num_samples: int, random: np.random.Generator) -> np.ndarray:
    """Noise with the falling spectrum and the syllables of speech, so that codecs have about as much to do."""
    spectrum = np.fft.rfft(random.standard_normal(num_samples))
    noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum)) / len(spectrum) * 100), n=num_samples)
    syllables = 1 - np.cos(np.arange(num_samples) * (2 * np.pi * 4 / RATE))
    return 0.05 * noise / noise.std() * syllables


def _format(clips: Manifest, settings: dict[str, Any]) -> dict[str, Any]:
    """Audio seconds a second of each side, by its number of workers."""
    sides = _sides(clips, settings)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(settings["data"]["rounds"]):
        for name, (start, ahead) in sides.items():
            speeds[name].append(_speed(start(), ahead, settings["data"]["batches"]))
    results = {}
    for name, pairs in speeds.items():
        by_clock, by_processor = zip(*pairs, strict=True)
        of_clock, of_processor = (
            statistics.median(ours[kind] / limit[kind] for ours, limit in zip(pairs, speeds[LIMIT], strict=True))
            for kind in (0, 1)
        )
        results[name] = {
            "audio_seconds_per_second": statistics.median(by_clock),
            "of_limit": of_clock,
            "audio_seconds_per_processor_second": statistics.median(by_processor),
            "of_limit_by_processor": of_processor,
            "rounds": by_clock,
        }
    return results


def _speed(batches: Batches, ahead: int, count: int) -> tuple[float, float]:
    """Audio seconds a second, and a second of processors, of `count` batches.

    The first `ahead` batches do not count: they may have been read before the clock began.
    """
    for _ in range(ahead):
        next(batches)
    started, used, total = time.perf_counter(), _processor_seconds(), 0.0
    for seconds in itertools.islice(batches, count):
        total += seconds
    elapsed, used = time.perf_counter() - started, _processor_seconds() - used
    batches.close()
    return total / elapsed, total / max(used, 1e-9)


def _processor_seconds() -> float:
    """Of this process and, where the system tells, of its workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        status = Path(f"/proc/{child.pid}/stat")
        if status.exists():
            fields = status.read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def _sides(clips: Manifest, settings: dict[str, Any]) -> dict[str, tuple[Callable[[], Batches], int]]:
    """Of each side, what starts it, and how many of its batches do not count."""
    sides: dict[str, tuple[Callable[[], Batches], int]] = {LIMIT: (lambda: _limit(clips, settings), 1)}
    for workers in settings["data"]["workers"]:
        ahead = 1 + PREFETCH * workers
        sides[f"speechssl, {workers} workers"] = (lambda w=workers: _ours(clips, settings, w), ahead)
        if settings["peer"] and clips.shards is None:
            from speechssl.benchmarks import loading_peers

            for peer, start in loading_peers.chosen(settings["peer"]).items():
                run = lambda w=workers, start=start: start(clips, keys(clips, settings), settings, w)  # noqa: E731
                sides[f"{peer}, {workers} workers"] = (run, ahead)
    return sides


def keys(clips: Manifest, settings: dict[str, Any]) -> Iterator[list[int]]:
    """Indexes of the clips of each batch, the same for all sides, without end."""
    durations_s = np.minimum(clips.durations_s, settings["data"]["max_clip_s"])
    sampler = DurationBuckets(
        durations_s,
        batch_seconds=settings["data"]["batch_seconds"],
        seed=settings["trainer"]["seed"],
        shards=clips.shards,
    )
    for batch in sampler.batches():
        yield [index for _, index in batch]


def _limit(clips: Manifest, settings: dict[str, Any]) -> Batches:
    """Nothing but decoding the samples that are wanted, and the resampler."""
    longest_s = settings["data"]["max_clip_s"]
    plain = [(str(clip.audio_path), clip.duration_s, clip.byte_range) for clip in clips]
    for batch in keys(clips, settings):
        total = 0
        for index in batch:
            path, duration_s, byte_range = plain[index]
            with soundfile.SoundFile(path if byte_range is None else _part(path, byte_range)) as file:
                wanted = round(min(duration_s, longest_s) * file.samplerate)
                samples = torch.from_numpy(file.read(wanted, dtype="float32"))
                total += len(audio.resample(samples, source_rate=file.samplerate, target_rate=RATE))
        yield total / RATE


def _part(path: str, byte_range: tuple[int, int]):
    import io

    with Path(path).open("rb") as file:
        file.seek(byte_range[0])
        return io.BytesIO(file.read(byte_range[1]))


def _loader(clips: Manifest, settings: dict[str, Any], workers: int) -> BatchLoader:
    options = settings["data"]
    return BatchLoader(
        clips,
        sample_rate=RATE,
        normalize=False,
        min_samples=400,
        batch_seconds=options["batch_seconds"],
        seed=settings["trainer"]["seed"],
        max_clip_s=options["max_clip_s"],
        num_workers=workers,
    )


def _ours(clips: Manifest, settings: dict[str, Any], workers: int) -> Batches:
    for batch in _loader(clips, settings, workers).stream():
        yield int(batch.lengths.sum()) / RATE


def _loader_share(clips: Manifest, settings: dict[str, Any]) -> dict[str, Any]:
    """How much of a training step of the model is waiting for audio, with the largest number of workers."""
    workers = max(settings["data"]["workers"])
    device = torch.device(choose_device(settings["trainer"]["device"]))
    loader = _loader(clips, settings, workers)
    stream, side, started = loader.stream(), None, 0.0
    for number in range(settings["warmup_steps"] + settings["steps"]):
        if number == settings["warmup_steps"]:
            loader.waited_s, started = 0.0, time.perf_counter()
        batch = next(stream)
        batch.seeds = [derive_seed(seed) for seed in batch.seeds]
        if side is None:
            side = Ours({**settings, "what": "pretrain"}, batch, Parts(device), device)
        side.batch = batch.to(device)
        side.step(number + 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    return {
        "model": settings["model"]["name"],
        "loader_share": loader.waited_s / elapsed,
        "loader_share_workers": workers,
        "step_seconds": elapsed / settings["steps"],
    }
