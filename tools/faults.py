"""Breaks runs on purpose and compares what comes out with a run that was left alone, bit by bit.

    .venv/bin/python tools/faults.py kills --count 50      kill -9 of a process at random moments, each time resumed
    .venv/bin/python tools/faults.py faults --count 1000   each write, sync and rename fails in turn, in this process

Both pretrain a very small network with every kind of randomness on (dropout, LayerDrop, crops, masks, Gumbel noise, a
loader's worker for `kills`), with validation, a checkpoint every other step and `best` moving. What has to be equal:
weights, optimiser, trainer.json, `last`, `best`, and every row of metrics.jsonl but the clock's figures. The last line
is JSON; the exit code is 1 where anything differed. `docs/robustness.md` has the figures of long runs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from speechssl import cli, manifest
from speechssl.commands import pretrain
from speechssl.config import compose
from speechssl.errors import Interrupted
from speechssl.training import files

CLOCK = ("audio_seconds_per_second", "loader_share", "memory_gib", "memory_share")
NETWORK = (
    "model=small",
    "model.encoder.conv_channels=[8,8,8,8,8,8,8]",
    "model.encoder.hidden_size=32",
    "model.encoder.num_layers=2",
    "model.encoder.feed_forward_size=64",
    "model.encoder.position_kernel=16",
    "model.encoder.layer_drop=0.2",
    "model.pretrain.code_size=32",
    "model.pretrain.final_size=32",
    "objective.num_codewords=20",
    "data.batch_seconds=2",
    "data.max_clip_s=0.8",
    "trainer.device=cpu",
    "trainer.checkpoint_every=2",
    "trainer.log_every=1",
)


def corpus(folder: Path) -> None:
    """Seeded tones in noise, to train on and to validate with."""
    for name, count in (("train", 24), ("valid", 4)):
        sound, rows = np.random.default_rng(count), []
        for clip in range(count):
            seconds = round(sound.uniform(0.5, 1.2), 2)
            moment = np.arange(round(seconds * 16_000)) / 16_000
            tone = np.sin(2 * np.pi * sound.uniform(100, 1000) * moment) * np.sin(2 * np.pi * 3 * moment)
            soundfile.write(folder / f"{name}_{clip}.wav", 0.2 * tone + 0.02 * sound.standard_normal(len(tone)), 16_000)
            rows.append({"audio_filepath": f"{name}_{clip}.wav", "duration": seconds})
        manifest.write(folder / f"{name}.jsonl", rows)


def overrides(folder: Path, run: str, *more: str) -> list[str]:
    """The command line of a run."""
    data = f"data.train={folder / 'train.jsonl'}", f"data.valid={folder / 'valid.jsonl'}"
    return [*NETWORK, *data, f"run_dir={folder / run}", *more]


def outcome(run: Path) -> dict[str, object]:
    """All of a finished run that has to be equal."""
    last = run / "checkpoints" / "last"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "state": (last / "trainer.json").read_text(),
        "links": [str((run / "checkpoints" / name).readlink()) for name in ("last", "best")],
        "metrics": [{k: v for k, v in row.items() if k not in CLOCK} for row in rows if "event" not in row],
    }


def differences(ours: dict[str, object], theirs: dict[str, object]) -> list[str]:
    """Which parts of two outcomes differ."""
    return [name for name in theirs if ours[name] != theirs[name]]


# Real kills


def launch(arguments: list[str], log: Path) -> multiprocessing.Process:
    """A process of its own that runs the command; forked, which saves importing torch each time."""

    def work() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os._exit(cli.main(["pretrain", *arguments]))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def events(run: Path) -> list[dict]:
    """What resumes have noted in metrics.jsonl."""
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "event" in row]


def last_step(run: Path) -> int:
    """The step of the last row that is there in full; 0 before the first."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0
    return 0


def runs_past(process: multiprocessing.Process, run: Path, step: int) -> bool:
    """Wait until the run is past a step; false where it has ended before."""
    while process.is_alive() and last_step(run) <= step:
        time.sleep(0.002)
    return process.is_alive()


def kill_once(process: multiprocessing.Process, run: Path, chance: random.Random, step_s: float) -> dict | None:
    """Kill a process at a random moment after step 15, and after some steps of its own; None where it ended first.

    A save is short, so each third kill waits for one to begin.
    """
    if not runs_past(process, run, max(15, last_step(run)) + chance.randrange(4)):
        return None
    time.sleep(chance.uniform(0, 2 * step_s))
    wait_for_save = chance.randrange(3) == 0
    while wait_for_save and process.is_alive() and not any((run / "checkpoints").glob(".tmp_*")):
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    saved = int((run / "checkpoints" / "last").readlink().name.removeprefix("step_"))
    saving = any((run / "checkpoints").glob(".tmp_*"))
    return {"saved": saved, "lost_steps": last_step(run) - saved, "while_saving": saving}


def kills(folder: Path, count: int, chance: random.Random, max_steps: int = 60) -> dict[str, object]:
    """Kill runs until there were `count` kills, and compare each run at its end."""
    more = f"trainer.max_steps={max_steps}", "trainer.valid_every=5", "data.num_workers=1"
    began = time.monotonic()
    launch(overrides(folder, "whole", *more), folder / "log").join()
    step_s = (time.monotonic() - began) / max_steps
    whole, made, resumed, different, number = outcome(folder / "whole"), [], [], [], 0
    while len(made) < count:
        number += 1
        run = folder / f"run_{number}"
        while True:
            process = launch(overrides(folder, run.name, *more), folder / "log")
            kill = kill_once(process, run, chance, step_s) if len(made) < count else None
            if kill is None:
                break
            if kill["saved"] == max_steps:
                continue  # too late: there is nothing left to resume
            made.append(kill)
            print(f"kill {len(made)}: run {number} after step {last_step(run)}: {kill}", file=sys.stderr)
        process.join()
        different += [f"run {number}: {name}" for name in differences(outcome(run), whole)]
        resumed += [event["resumed_from"] for event in events(run) if event["event"] == "resumed"]
        shutil.rmtree(run)
    return {
        "kills": len(made),
        "runs": number,
        "resumes": len(resumed),
        "resumed_from_at_least": min(resumed),
        "while_saving": sum(kill["while_saving"] for kill in made),
        "most_steps_lost": max(kill["lost_steps"] for kill in made),
        "different": different,
    }


# Faults in this process

WRITES = ("write_text", "write_tensors", "append_text")
OPERATIONS = (*WRITES, "sync", "rename", "symlink", "remove")
KINDS = ("full", "broken", "killed_before", "killed_amid", "killed_after", "power_cut")


class Killed(BaseException):
    """Ends a run as kill -9 does: nothing handles it."""


class Disk:
    """Counts the operations on checkpoints and metrics, and lets one of them fail.

    Args:
        number: of the operation that fails, counted from 1; 0 for none.
        kind: how, one of KINDS. A power cut also takes half of each file that has not been synced.
    """

    def __init__(self, number: int, kind: str):
        self.number, self.kind, self.done = number, kind, 0
        self.unsynced: dict[int, int] = {}  # by inode: bytes that are safe
        self.failed: str | None = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Take the place of the operations of speechssl.training.files."""
        real = {name: getattr(files, name) for name in OPERATIONS}
        for name, operation in real.items():
            setattr(files, name, self._wrap(name, operation))
        try:
            yield
        finally:
            for name, operation in real.items():
                setattr(files, name, operation)

    def _wrap(self, name: str, real: Callable) -> Callable:
        def operation(path: Path, *arguments: object) -> None:
            self.done += 1
            fails = self.done == self.number
            if fails:
                self.failed = name
                self._fail_before(name, path, lambda: real(path, *arguments))
            before = path.stat().st_size if name == "append_text" and path.exists() else 0
            real(path, *arguments)
            if name in WRITES:
                self.unsynced.setdefault(path.stat().st_ino, before)
            elif name == "sync" and path.is_file():
                self.unsynced.pop(path.stat().st_ino, None)
            if fails:
                raise Killed

        return operation

    def _fail_before(self, name: str, path: Path, work: Callable[[], None]) -> None:
        """Fail before the operation or in the middle of it; returns where it is to fail after it."""
        if self.kind == "killed_amid" and name in WRITES:
            size = path.stat().st_size if path.exists() else 0
            work()
            os.truncate(path, (size + path.stat().st_size) // 2)
            raise Killed
        if self.kind in ("full", "broken"):
            number = errno.ENOSPC if self.kind == "full" else errno.EIO
            raise OSError(number, os.strerror(number), str(path))
        if self.kind == "killed_before":
            raise Killed

    def cut_power(self, run: Path) -> None:
        """Take away half of what was written to each file since it was last synced."""
        for path in run.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_ino in self.unsynced:
                safe = self.unsynced[path.stat().st_ino]
                os.truncate(path, (safe + path.stat().st_size) // 2)


def faults(folder: Path, count: int, chance: random.Random, max_steps: int = 6) -> dict[str, object]:
    """Let operations fail in every way, up to three times in a run, until there were `count`; compare each run."""
    more = f"trainer.max_steps={max_steps}", "trainer.valid_every=3", "data.num_workers=0"

    config = compose("pretrain", overrides(folder, "whole", *more))

    def run(name: str, disk: Disk) -> str:
        config.run_dir = str(folder / name)
        with disk.in_use():
            try:
                pretrain.run(config)
            except Killed:
                if disk.kind == "power_cut":
                    disk.cut_power(folder / name)
                return "killed"
            except Interrupted:
                return "stopped"
        return "finished"

    disk = Disk(0, "none")
    run("whole", disk)
    whole, operations, different = outcome(folder / "whole"), disk.done, []
    injected, number = Counter(), 0
    while injected.total() < count:
        name, plan = f"run_{number}", []
        # The first fault goes through all operations in all ways; two more hit the resumed run wherever they fall.
        first = Disk(1 + number // len(KINDS) % operations, KINDS[number % len(KINDS)])
        for disk in (first, *(Disk(chance.randrange(1, operations // 2), chance.choice(KINDS)) for _ in range(2))):
            plan.append(disk)
            end = run(name, disk)
            injected[disk.kind, disk.failed] += disk.failed is not None
        if end != "finished":
            run(name, Disk(0, "none"))
        faults = [f"{disk.kind} at operation {disk.number} ({disk.failed})" for disk in plan]
        different += [f"{part} after {faults}" for part in differences(outcome(folder / name), whole)]
        shutil.rmtree(folder / name)
        number += 1
        if number % 20 == 0:
            print(f"{injected.total()} faults in {number} runs, {len(different)} differences", file=sys.stderr)
    by_kind, by_operation = Counter(), Counter()
    for (kind, operation), times in injected.items():
        by_kind[kind] += times
        by_operation[operation] += times
    counts = {"by_kind": dict(+by_kind), "by_operation": dict(+by_operation), "operations_of_a_run": operations}
    return {"faults": injected.total(), "runs": number, **counts, "different": different}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "faults"))
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the second faults")
    options = parser.parse_args()
    logging.disable(logging.INFO if options.what == "kills" else logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="speechssl-faults-") as name:
        corpus(Path(name))
        work = kills if options.what == "kills" else faults
        result = work(Path(name), options.count, random.Random(options.seed))
    print(json.dumps(result))
    return 1 if result["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
