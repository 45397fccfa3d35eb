"""recipes/slurm/pretrain.sbatch with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "slurm" / "pretrain.sbatch"
# Each notes how it was called; srun waits until scancel has sent its signal on, as torchrun would.
STAND_INS = {
    "srun": 'echo "srun $*" >> calls; trap "echo saved >> calls; exit 1" USR1; echo $$ > pid; '
    'if [[ -e wait ]]; then while :; do sleep 0.05; done; fi; exit "$(cat code)"',
    "scancel": 'echo "scancel $*" >> calls; kill -USR1 "$(cat pid)"',
    "scontrol": 'echo "scontrol $*" >> calls; if [[ $1 == show ]]; then printf "one\\ntwo\\n"; fi',
}


def start(folder):
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x", "SLURM_GPUS_ON_NODE": "4"}
    place = {"PATH": f"{folder}:{os.environ['PATH']}", "SPEECHSSL_PYTHON": "python"}
    command = ["bash", str(SCRIPT), "data.train=a b.jsonl", "run_dir=r"]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **slurm, **place})


def test_a_job_that_ends_by_itself_has_its_own_code_and_starts_a_torchrun_on_each_machine(tmp_path):
    (tmp_path / "code").write_text("3")
    assert start(tmp_path).wait(30) == 3
    calls = (tmp_path / "calls").read_text()
    assert "--nnodes=2 --nproc-per-node=4" in calls
    assert "--rdzv-endpoint=one:29500" in calls
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" in calls
    assert calls.rstrip().endswith("-m speechssl pretrain trainer.precision=bf16 data.train=a b.jsonl run_dir=r")
    assert "requeue" not in calls


def test_before_the_time_is_up_the_run_saves_and_the_job_is_queued_again(tmp_path):
    (tmp_path / "wait").touch()
    process = start(tmp_path)
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 1
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-3:] == ["scancel --signal=USR1 7.0", "saved", "scontrol requeue 7"]
