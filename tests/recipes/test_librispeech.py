"""recipes/librispeech: its options, and all its stages on a small folder of that layout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "librispeech"
TEXTS = ("THE CAT SAT", "A DOG RAN", "THE DOG SAT", "A CAT RAN")


def run(*arguments):
    return subprocess.run(
        ["bash", str(RECIPE / "run.sh"), *map(str, arguments)],
        env={**os.environ, "SPEECHSSL_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_help_and_documents_name_the_same_options():
    done = run("--help")
    assert done.returncode == 0
    listed = set(re.findall(r"^  --([a-z-]+) VALUE", done.stdout, flags=re.M))
    for document in ("README.md", "RESULTS.md"):
        text = (RECIPE / document).read_text(encoding="utf-8")
        assert set(re.findall(r"(?<!\w)--([a-z][a-z-]+)", text)) <= {*listed, "help"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--data DIR is needed"),
        (["--data", "x"], "--limited DIR is needed for --labels 10min"),
        (["--data", "x", "--labels", "5h"], "there are 10min, 1h, 10h and 100h"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def chapter(folder, speaker, number, *, count=4):
    """A chapter as LibriSpeech has it: SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac and a file of transcripts."""
    place = folder / str(speaker) / str(number)
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        name = f"{speaker}-{number}-{i:04d}"
        seconds = np.arange(16_000) / 16_000
        noise = np.random.default_rng(speaker + i).normal(0, 0.02, 16_000)
        soundfile.write(place / f"{name}.flac", 0.3 * np.sin(2 * np.pi * (150 + 60 * i) * seconds) + noise, 16_000)
        lines.append(f"{name} {TEXTS[i % len(TEXTS)]}\n")
    (place / f"{speaker}-{number}.trans.txt").write_text("".join(lines), encoding="utf-8")


@pytest.mark.slow
def test_every_stage(tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    for speaker, name in enumerate(("train-clean-100", "dev-clean", "test-clean", "test-other"), start=10):
        chapter(tmp_path / "LibriSpeech" / name, speaker, 1)
    for number in range(6):
        chapter(tmp_path / "librispeech_finetuning" / "1h" / str(number) / "clean", 20 + number, 1, count=2)
    chapter(tmp_path / "librispeech_finetuning" / "9h" / "other", 30, 1)
    given = (
        "--data",
        tmp_path / "LibriSpeech",
        "--limited",
        tmp_path / "librispeech_finetuning",
        "--out",
        tmp_path / "o",
    )
    small = ("--train", "train-clean-100", "--model", "tiny", "--pretrain-steps", 3, "--finetune-steps", 3)
    done = run(*given, *small, "trainer.device=cpu", "data.num_workers=0", "data.batch_seconds=4")
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "o" / "ctc" / "10min" / "seed_0").glob("*/*/metrics.json"))
    assert [path.parts[-3:-1] for path in found] == [
        (name, decoder) for name in ("test-clean", "test-other") for decoder in ("4-gram", "greedy")
    ]
    metrics = json.loads(found[0].read_text())
    assert metrics["num_utterances"] == 4 and "p" in metrics["against"]["wer"]
    assert done.stdout.splitlines()[0].startswith("labels") and len(done.stdout.splitlines()) == 5
    again = run(*given, *small, "trainer.device=cpu", "data.num_workers=0", "data.batch_seconds=4")
    assert again.returncode == 0 and again.stdout == done.stdout
