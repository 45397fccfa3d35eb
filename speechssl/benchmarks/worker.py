"""What runs in a process of its own: one side of a benchmark, with its allocator, threads and peak of memory."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch

from speechssl.benchmarks import meters
from speechssl.benchmarks.clips import clip_seconds, make_batch
from speechssl.benchmarks.ours import SYMBOLS, Ours
from speechssl.training.run import choose_device
from speechssl.types import Batch

OURS, PEER = "speechssl", "transformers"


class Worker:
    """A side's model, and answers to what the parent asks: each method is one request."""

    def __init__(self, side: str, settings: dict[str, Any]):
        kind = Ours if side == OURS else _peer()  # imported before memory is looked at
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        self.settings, self.threads = settings, torch.get_num_threads()
        self.is_inference = settings["what"] == "inference"
        self.device = torch.device(choose_device(settings["trainer"]["device"]))
        self.parts, self.number = meters.Parts(self.device), 0
        batch = batch_of(settings)
        self.memory = meters.Memory(self.device)
        self.side = kind(settings, batch, self.parts, self.device)

    def step(self) -> float:
        """Run a step; its seconds."""
        self.number += 1
        meters.synchronize()
        start = time.perf_counter()
        with torch.inference_mode(self.is_inference):
            self.side.step(self.number)
        meters.synchronize()
        elapsed = time.perf_counter() - start
        self.parts.end_step()
        return elapsed

    def warm_up(self) -> None:
        """The steps that are not counted."""
        for _ in range(self.settings["warmup_steps"]):
            self.step()
        self.parts.forget()

    def peak(self) -> int | None:
        """Peak memory so far, bytes."""
        return self.memory.peak()

    def facts(self) -> dict[str, Any]:
        """What a side reports after its steps."""
        peak, shares = self.memory.peak(), self.parts.shares()  # before the counting adds to them
        # The counter does not go with inference mode, and does not see into what is compiled.
        with torch.set_grad_enabled(not self.is_inference), torch.compiler.set_stance("force_eager"):
            flops = meters.count_flops(lambda: self.side.step(2))  # as most: the first does more
        parameters = sum(p.numel() for p in self.side.model.parameters())
        return {"peak_memory_bytes": peak, "parameters": parameters, "flops": flops, "shares": shares}

    def machine(self) -> dict[str, Any]:
        """What was measured on, and how fast its matrix products are."""
        dtype = torch.bfloat16 if self.settings["trainer"]["precision"] == "bf16" else torch.float32
        return {
            "device": self.device.type,
            "processor": torch.cuda.get_device_name() if self.device.type == "cuda" else processor(),
            "threads": self.threads,
            "matmul_peak_flops": meters.matmul_peak(self.device, dtype),
        }


class Verifier:
    """Compares the losses of both sides."""

    def __init__(self, _side: str, settings: dict[str, Any]):
        self.settings = settings

    def compare(self) -> dict[str, Any]:
        """The largest relative difference; see `verify.compare`."""
        from speechssl.benchmarks import verify  # needs transformers

        return verify.compare(self.settings)


def batch_of(settings: dict[str, Any]) -> Batch:
    """The clips that the settings ask for."""
    return make_batch(
        clip_seconds(settings["batch"]),
        sample_rate=settings["model"]["sample_rate"],
        normalize=settings["model"]["normalize"],
        num_labels=len(SYMBOLS),
        seed=settings["trainer"]["seed"],
    )


def _peer() -> type:
    from speechssl.benchmarks.peer import Peer  # needs transformers

    return Peer


def processor() -> str:
    """The processor's name, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
