"""A command line as a user types it, and runs small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechssl import cli

# As overrides, so that the yaml may change.
SMALL_MODEL = (
    "model=tiny",
    "model.encoder.conv_channels=[8,8,8,8,8,8,8]",
    "model.encoder.hidden_size=16",
    "model.encoder.num_layers=2",
    "model.encoder.num_heads=2",
    "model.encoder.feed_forward_size=32",
    "model.encoder.position_kernel=8",
    "model.encoder.position_groups=4",
)
SMALL_RUN = (
    "data.num_workers=0",
    "data.batch_seconds=1.5",
    "trainer.max_steps=3",
    "trainer.valid_every=2",
    "trainer.checkpoint_every=2",
    "trainer.device=cpu",
)


@pytest.fixture
def speechssl(capsys) -> Callable[..., SimpleNamespace]:
    """`speechssl(*arguments)` -> code, out, err, and the sentence of an error that a user can mend (exit code 2)."""

    def run(*arguments: str) -> SimpleNamespace:
        capsys.readouterr()
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        sentence = None
        if code == 2:
            assert "Traceback" not in err
            (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
            assert err.endswith(f"{line}\n")
            sentence = line.removeprefix("error: ")
        return SimpleNamespace(code=code, out=out, err=err, sentence=sentence)

    return run


@pytest.fixture
def pretrain(speechssl, tmp_path) -> Callable[..., SimpleNamespace]:
    """`pretrain(train, *overrides, run="pretrained")`: speechssl pretrain of a small model, a few steps."""

    def run(train: Path, *overrides: str, run: str = "pretrained") -> SimpleNamespace:
        return speechssl(
            "pretrain", f"data.train={train}", f"run_dir={tmp_path / run}", *SMALL_MODEL, *SMALL_RUN, *overrides
        )

    return run


@pytest.fixture
def finetune(speechssl, tmp_path) -> Callable[..., SimpleNamespace]:
    """`finetune(train, *overrides, init=…, run="tuned")`: speechssl finetune, a few steps."""

    def run(train: Path, *overrides: str, init: str | Path = "none", run: str = "tuned") -> SimpleNamespace:
        model = SMALL_MODEL if init == "none" else ()
        given = (f"data.train={train}", f"init={init}", f"run_dir={tmp_path / run}")
        return speechssl("finetune", *given, *model, *SMALL_RUN, *overrides)

    return run


@pytest.fixture
def read_rows(tmp_path) -> Callable[[str], list[dict]]:
    """`read_rows(run)`: the rows of its metrics.jsonl."""

    def read(run: str) -> list[dict]:
        return [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]

    return read
