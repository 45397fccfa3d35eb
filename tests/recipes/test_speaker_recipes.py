"""The speaker recipes: their options and, slow, all their stages on a small folder of the layout that they want."""

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

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = ("librispeech_sample", "voxceleb")
TINY = ("trainer.device=cpu", "data.num_workers=0", "data.batch_seconds=8")


def run(name, *arguments):
    environment = {**os.environ, "SPEECHSSL_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(RECIPES / name / "run.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def voice(path, *, pitch, seconds, seed, rate=16_000):
    """A buzz with a melody of its own, over noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    glide = pitch * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 3) * time_s))
    phase = 2 * np.pi * np.cumsum(glide) / rate
    samples = sum(np.sin(k * phase) / k for k in range(1, 6))
    soundfile.write(path, 0.1 * samples + 0.01 * rng.normal(size=len(time_s)), rate)


@pytest.mark.parametrize("name", NAMES)
def test_help_and_documents_name_the_same_options(name):
    subprocess.run(["bash", "-n", str(RECIPES / name / "run.sh")], check=True)
    done = run(name, "--help")
    assert done.returncode == 0
    listed = set(re.findall(r"^  --([a-z-]+) VALUE", done.stdout, flags=re.M))
    assert {"out", "stage", "stop-stage", "data", "init", "task", "speaker-steps"} <= listed
    for document in ("README.md", "RESULTS.md"):
        text = (RECIPES / name / document).read_text(encoding="utf-8")
        assert set(re.findall(r"(?<!\w)--([a-z][a-z-]+)", text)) <= {*listed, "help"}
    assert run(name).stderr.startswith("error: --data DIR is needed")


@pytest.mark.slow
def test_librispeech_sample(tmp_path):
    for i in range(8):
        voice(tmp_path / "data" / f"{i}-book-0000.wav", pitch=100 + 25 * i, seconds=4 + 0.1 * i, seed=i)
    lengths = ["--pretrain-steps", 3, "--speaker-steps", 3, "--probe-steps", 20]
    done = run("librispeech_sample", "--data", tmp_path / "data", "--out", tmp_path / "out", *lengths, *TINY)
    assert done.returncode == 0, done.stderr
    found = {str(p.parent.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("metrics.json")}
    heads = ("all/test", "known/verify")
    assert found == {f"speaker/{start}/{name}" for start in ("pretrained", "scratch") for name in heads}
    rows = json.loads((tmp_path / "out" / "probe" / "verification" / "probe.json").read_text())["results"]
    assert {row["source"] for row in rows} == {"encoder", "random encoder", "log-mel"}
    for wanted in ("Probe identification", "Probe verification", "log-mel", "pretrained", "verify", "Seconds"):
        assert wanted in done.stdout


@pytest.mark.slow
def test_voxceleb(tmp_path):
    wav = tmp_path / "vox" / "wav"
    for i in range(6):
        for number in range(4):
            path = wav / f"id1000{i}" / f"video{number // 2}" / f"0000{number}.wav"
            voice(path, pitch=100 + 30 * i, seconds=1.5, seed=10 * i + number)
    clips = ["id10004/video0/00000.wav", "id10004/video1/00002.wav", "id10005/video0/00001.wav"]
    (tmp_path / "vox" / "veri_test.txt").write_text(f"1 {clips[0]} {clips[1]}\n0 {clips[0]} {clips[2]}\n")
    options = ["--model", "tiny", "--pretrain-steps", 3, "--speaker-steps", 3, "--crop-seconds", 1.0]
    done = run("voxceleb", "--data", tmp_path / "vox", "--out", tmp_path / "out", *options, *TINY)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "speaker" / "asnorm" / "metrics.json").read_text())
    assert (metrics["num_trials"], metrics["num_target_trials"], metrics["accuracy"]) == (2, 1, None)
    assert metrics["p_target"] == 0.01 and metrics["score"] == "AS-norm"
