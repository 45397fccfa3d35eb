"""`trainer.devices=N` for real: ranks start, one speaks, a death ends the job, a restart goes on, a signal saves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from speechssl import ranks
from speechssl.errors import UserError
from speechssl.training.launch import _exit_code

RUN = (
    "data.num_workers=0",
    "data.batch_seconds=1",
    "trainer.device=cpu",
    "trainer.devices=2",
    "trainer.log_every=1",
)


@pytest.fixture
def start(tmp_path, write_corpus, small_model):
    """`start(*overrides, verb=…)`: the command in a process of its own, its run folder and what it says on stderr."""
    train, valid = write_corpus("train", seconds=(0.5, 0.6, 0.4, 0.8, 0.7)), write_corpus("valid")

    def run(*overrides, verb="pretrain"):
        paths = f"data.train={train}", f"data.valid={valid}", f"run_dir={tmp_path / 'run'}"
        arguments = [*paths, *small_model, *RUN, *overrides]
        said = (tmp_path / "said").open("w+")
        process = subprocess.Popen(
            [sys.executable, "-m", "speechssl", verb, *arguments],
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return process, tmp_path / "run", Path(said.name)

    return run


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for(step, process, run):
    """Until the run has gone past a step."""
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        if (run / "metrics.jsonl").exists() and any(row["step"] > step for row in rows(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"the run ended before step {step}")


def rank_of(process, number):
    """The process id of a rank."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={number}".encode() in environment:
            return int(child)
    raise AssertionError("there is no such rank")


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_with_one_sentence(start):
    long = "trainer.max_steps=100000", "trainer.checkpoint_every=5"
    process, run, said = start(*long)
    wait_for(6, process, run)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(300) == 2
    elapsed_s = time.monotonic() - began
    text = said.read_text()
    assert text.count("error: rank 1 ") == 1 and "SIGKILL" in text and "Traceback" not in text
    assert len(re.findall(r"step 1/100000", text)) == 1  # only rank 0 prints
    assert elapsed_s < 60 or os.getloadavg()[0] > 2 * os.cpu_count()


@pytest.mark.slow
def test_a_restart_goes_on(start):
    process, run, said = start("trainer.max_steps=100000", "trainer.checkpoint_every=5", "trainer.restarts=1")
    wait_for(6, process, run)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    at = max(row["step"] for row in rows(run))
    wait_for(at + 6, process, run)
    assert sum("resumed_from" in row for row in rows(run)) == 1
    process.send_signal(signal.SIGUSR1)
    assert process.wait(300) == 1
    assert said.read_text().count("to go on: speechssl pretrain") == 1


@pytest.mark.slow
def test_an_error_of_one_rank_is_said_once(start, tmp_path):
    for number in range(5):
        (tmp_path / "train" / f"{number}.wav").write_bytes(b"RIFF")
    process, _, said = start("trainer.max_steps=5", "data.max_broken_share=0")
    assert process.wait(300) == 2
    text = said.read_text()
    assert text.count("error: ") == 1 and "broken" in text and "Traceback" not in text


def test_a_signal_that_ended_a_rank_is_what_is_said():
    """The others were ended by torchrun, or lost their peer."""

    def failed(**codes):
        failures = {int(rank[1:]): SimpleNamespace(exitcode=code, pid=1) for rank, code in codes.items()}
        error = ChildFailedError.__new__(ChildFailedError)
        error.failures = failures
        return error

    with pytest.raises(UserError, match=r"rank 1 .* was ended by SIGKILL"):
        _exit_code(failed(r0=1, r1=-signal.SIGKILL, r2=-signal.SIGTERM))
    assert _exit_code(failed(r0=-signal.SIGTERM, r1=2)) == 2
    assert _exit_code(failed(r0=1, r1=-signal.SIGTERM)) == 1


def test_of_ranks_that_fail_the_first_speaks(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.0)
    assert ranks.may_speak(ValueError()) and ranks.rank() == 0  # alone
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
    spoke = []
    for rank, error in enumerate((ValueError(), RuntimeError("Connection closed by peer"), UserError("x"))):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        spoke.append(ranks.may_speak(error))
    assert spoke == [True, False, False]
    (tmp_path / "first_to_fail").unlink()
    monkeypatch.setattr(ranks, "asked_to_end", True)
    assert not ranks.may_speak(RuntimeError("Connection closed by peer"))
    assert ranks.rank() == 2


@pytest.mark.slow
def test_ranks_share_hubert_labels_of_every_iteration(start):
    """One rank after the other asks for the labels, whichever comes first; the group is formed anew each iteration."""
    process, run, said = start("clusters=[4,5]", "iterations=2", "trainer.max_steps=2", verb="hubert")
    assert process.wait(timeout=300) == 0, said.read_text()
    assert (run / "last").resolve() == run / "iteration_2"
    assert [row["step"] for row in rows(run / "last") if "loss" in row] == [1, 2]
    assert not list(run.glob(".tmp*"))
