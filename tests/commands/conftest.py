"""A command line as a user types it, and runs small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from speechssl import cli, manifest

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


@pytest.fixture(scope="session")
def small_overrides(small_model) -> tuple[str, ...]:
    """Overrides of a small model and a run of a few steps."""
    return (*small_model, *SMALL_RUN)


@pytest.fixture
def pretrain(speechssl, small_overrides, tmp_path) -> Callable[..., SimpleNamespace]:
    """`pretrain(train, *overrides, run="pretrained")`: speechssl pretrain of a small model, a few steps."""

    def run(train: Path, *overrides: str, run: str = "pretrained") -> SimpleNamespace:
        return speechssl("pretrain", f"data.train={train}", f"run_dir={tmp_path / run}", *small_overrides, *overrides)

    return run


@pytest.fixture
def finetune(speechssl, small_model, tmp_path) -> Callable[..., SimpleNamespace]:
    """`finetune(train, *overrides, init=…, run="tuned")`: speechssl finetune, a few steps."""

    def run(train: Path, *overrides: str, init: str | Path = "none", run: str = "tuned") -> SimpleNamespace:
        model = small_model if init == "none" else ()
        given = (f"data.train={train}", f"init={init}", f"run_dir={tmp_path / run}")
        return speechssl("finetune", *given, *model, *SMALL_RUN, *overrides)

    return run


@pytest.fixture
def silence() -> Callable[[Path, int], None]:
    """`silence(manifest, i)`: nothing is to be heard in its clip i any more."""

    def write(path: Path, i: int) -> None:
        clip = list(manifest.Manifest(path))[i]
        audio, rate = soundfile.read(clip.audio_path)
        soundfile.write(clip.audio_path, 0 * audio, rate)

    return write


@pytest.fixture
def read_rows(tmp_path) -> Callable[[str], list[dict]]:
    """`read_rows(run)`: the rows of its metrics.jsonl, events left out."""

    def read(run: str) -> list[dict]:
        rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if "event" not in row]

    return read
