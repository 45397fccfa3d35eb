"""The worked example of docs/new-objective.md: its two files, as they are there, are all that a run needs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import speechssl.objectives
from speechssl import cli, config

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "new-objective.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The guide's objective, where the package finds it."""
    text = GUIDE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "loudness.py").write_text(code, encoding="utf-8")
    configs = shutil.copytree(config.config_dir(), tmp_path / "configs")
    (configs / "objective" / "loudness.yaml").write_text(yaml, encoding="utf-8")
    monkeypatch.setattr(speechssl.objectives, "__path__", [*speechssl.objectives.__path__, str(tmp_path)])
    monkeypatch.setattr(config, "config_dir", lambda: configs)


def test_two_files_are_an_objective(example, write_corpus, tmp_path):
    train, valid = write_corpus(), write_corpus("valid", seconds=(0.5, 0.7))
    command = ["pretrain", "objective=loudness", "model=tiny", f"data.train={train}", f"data.valid={valid}"]
    command += [f"run_dir={tmp_path / 'run'}", "model.encoder.conv_channels=[8,8,8,8,8]"]
    command += ["model.encoder.num_layers=1", "model.encoder.hidden_size=32", "data.num_workers=0"]
    command += ["trainer.max_steps=4", "trainer.valid_every=4", "trainer.device=cpu", "trainer.checkpoint_every=2"]
    assert cli.main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "loss" in row)
    assert {"loss_regression", "output_variance", "effective_rank", "energy_gap"} <= first.keys()
    assert (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").is_file()
