"""Processes that take turns: one for our side and one for the peer's, so that neither touches the other.

The parent asks each in turn for one step and waits for it, A B A B, so that whatever slows the machine down slows both.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import signal
import statistics
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

from speechssl import threads
from speechssl.benchmarks.clips import clip_seconds, padding_share
from speechssl.benchmarks.worker import OURS, PEER, Verifier, Worker
from speechssl.errors import UserError
from speechssl.planning import cost


class Child:
    """The parent's end of a process, in which `kind(side, settings)` answers requests."""

    def __init__(self, kind: type, side: str, settings: dict[str, Any]):
        context = multiprocessing.get_context("spawn")
        self.side = side
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, kind, side, settings), daemon=True)
        # The peer waits as its users' processes do.
        with threads.as_given() if side == PEER else contextlib.nullcontext():
            self.process.start()
        theirs.close()

    def ask(self, request: str) -> Any:
        """The answer to a request: what the method of that name returns.

        Raises:
            UserError: as the process did, or the system killed it.
        """
        try:
            with contextlib.suppress(ConnectionError):  # it may have ended already, and said why
                self.connection.send(request)
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            if self.process.exitcode == -signal.SIGKILL:
                raise UserError(
                    f"the process of {self.side} was killed, as happens where memory runs out: give a smaller batch, "
                    "or fresh=true where there is a peer"
                ) from error
            raise RuntimeError(f"the process of {self.side} ended with code {self.process.exitcode}") from error
        if isinstance(answer, UserError):
            raise answer
        return answer

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind:
            self.process.terminate()
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, kind: type, side: str, settings: dict[str, Any]) -> None:
    """Answer requests until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    with contextlib.suppress(EOFError):
        try:
            worker = kind(side, settings)
            while True:
                connection.send(getattr(worker, connection.recv())())
        except UserError as error:
            connection.send(error)


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that the command reports, as plain data; `settings` is its whole config."""
    sides = [OURS, PEER] if settings["peer"] else [OURS]
    clips = clip_seconds(settings["batch"])
    verified = {}
    if settings["verify"]:
        with Child(Verifier, "the comparison", settings) as child:
            verified = {"verify": child.ask("compare")}
    seconds, facts, machine = (_fresh_turns if settings["fresh"] else _turns)(sides, settings)
    peak = machine["matmul_peak_flops"]
    results = {side: _result(seconds[side], facts[side], sum(clips), peak) for side in sides}
    report = {
        "what": settings["what"],
        "model": settings["model"]["name"],
        "batch": settings["batch"],
        "clip_seconds": clips,
        "audio_seconds": sum(clips),
        "padding_share": padding_share(clips),
        "padding_cost": _padding_cost(settings, clips),
        "precision": settings["trainer"]["precision"],
        **machine,
        "versions": _versions(sides),
        **results[OURS],
    }
    if settings["peer"]:
        assert results[OURS]["parameters"] == results[PEER]["parameters"], "the models have different shapes"
        report["peer"] = {"name": PEER, **results[PEER]}
        report["ratio"] = _ratio(results[OURS], results[PEER])
    return report | verified


Measured = tuple[dict[str, list[float]], dict[str, dict[str, Any]], dict[str, Any]]


def _turns(sides: list[str], settings: dict[str, Any]) -> Measured:
    """Seconds of each side's steps, its facts, and the machine; all processes are alive from first to last."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with contextlib.ExitStack() as stack:
        children = {side: stack.enter_context(Child(Worker, side, settings)) for side in sides}
        for child in children.values():
            child.ask("warm_up")
        for _ in range(settings["steps"]):
            for side, child in children.items():
                seconds[side].append(child.ask("step"))
        facts = {side: child.ask("facts") for side, child in children.items()}
        return seconds, facts, children[OURS].ask("machine")


def _fresh_turns(sides: list[str], settings: dict[str, Any]) -> Measured:
    """The same with one process at a time, new for each turn."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    facts, machine = {}, {}
    for number in range(settings["steps"]):
        is_last = number + 1 == settings["steps"]
        for side in sides:
            with Child(Worker, side, settings) as child:
                child.ask("warm_up")
                seconds[side].append(child.ask("step"))
                if is_last:
                    facts[side] = child.ask("facts")
                if is_last and side == OURS:
                    machine = child.ask("machine")
    return seconds, facts, machine


def _result(seconds: list[float], facts: dict[str, Any], audio_seconds: float, peak: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "audio_seconds_per_second": audio_seconds / median,
        "step_seconds": median,
        "step_seconds_spread": spread(seconds),
        "step_seconds_all": seconds,
        **facts,
        "mfu": facts["flops"] / median / peak,
    }


def _padding_cost(settings: dict[str, Any], clips: list[float]) -> float:
    """How many times the encoder's operations a padded batch would take, counted."""
    trains = settings["what"] == "pretrain"
    padded = cost.of_encoder(settings["model"], [max(clips)] * len(clips), trains=trains)
    return padded / cost.of_encoder(settings["model"], clips, trains=trains)


def _ratio(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast we are: of each pair of neighbouring steps, then the median."""
    pairs = [b / a for a, b in zip(ours["step_seconds_all"], peer["step_seconds_all"], strict=True)]
    memory = [side["peak_memory_bytes"] for side in (ours, peer)]
    return {
        "audio_seconds_per_second": statistics.median(pairs),
        "spread": spread(pairs),
        "peak_memory": memory[0] / memory[1] if None not in memory else None,
    }


def spread(values: list[float]) -> float:
    """The range of the middle half (between the quartiles); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def _versions(sides: list[str]) -> dict[str, str]:
    packages = ["speechssl", "torch", *(["transformers"] if PEER in sides else [])]
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
