"""Time and memory of loading from a manifest of many lines: how long to the first batch, and what many steps add.

    python tools/loader_memory.py --lines 2000000 --steps 10000

The clips are a few short recordings of noise under as many names as there are lines. Prints one JSON object: seconds
from the start of this program (imports included) to the first batch, resident MiB after the imports, at the first
batch, after a tenth of the steps and after the last, and the peak.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402

from speechssl.data.loader import BatchLoader  # noqa: E402
from speechssl.manifest import Manifest  # noqa: E402

NUM_FILES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch-seconds", type=float, default=4.0)
    options = parser.parse_args()
    imported_s = time.perf_counter() - STARTED
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), options.lines)
        print(json.dumps(measure(path, options, imported_s), indent=1))


def write(folder: Path, num_lines: int) -> Path:
    """The recordings, and a manifest of them under many names."""
    random = np.random.default_rng(0)
    durations = random.integers(20, 80, NUM_FILES) / 100
    for number, duration in enumerate(durations):
        soundfile.write(folder / f"{number}.flac", random.normal(0, 0.1, round(16_000 * duration)), 16_000)
    with (folder / "train.jsonl").open("w") as file:
        for line in range(num_lines):
            number = line % NUM_FILES
            row = {"audio_filepath": f"{number}.flac", "duration": float(durations[number]), "id": f"clip-{line:08d}"}
            file.write(json.dumps({**row, "text": "some words that somebody says", "speaker": f"s{line % 999}"}) + "\n")
    return folder / "train.jsonl"


def measure(path: Path, options: argparse.Namespace, imported_s: float) -> dict[str, float]:
    """What the module's docstring says."""
    figures = {"resident_after_import_mib": resident_mib()}
    started, used = time.perf_counter(), time.process_time()
    manifest = Manifest(path)
    manifest.check_files()
    loader = BatchLoader(
        manifest,
        sample_rate=16_000,
        normalize=False,
        min_samples=400,
        batch_seconds=options.batch_seconds,
        seed=0,
        num_workers=options.workers,
    )
    stream = loader.stream()
    next(stream)
    figures["first_batch_s"] = imported_s + time.perf_counter() - started
    figures["first_batch_processor_s"] = time.process_time() - used
    figures["resident_at_first_batch_mib"] = resident_mib()
    for step in range(2, options.steps + 1):
        next(stream)
        if step == options.steps // 10:
            figures["resident_after_a_tenth_mib"] = resident_mib()
    figures["resident_at_the_end_mib"] = resident_mib()
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {key: round(value, 1) for key, value in figures.items()}


def resident_mib() -> float:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
