"""Every figure of RESULTS.md, the most telling first; what is done is skipped, so it can be stopped.

    python recipes/benchmark/measure.py --out runs/benchmark
    python recipes/benchmark/measure.py --out runs/benchmark --only base   # those whose name has "base"
    python recipes/benchmark/measure.py --out runs/benchmark_gpu --gpu

Needs a machine that does nothing else and transformers; a CPU also 23 GiB of free memory, and of two cores about 20
minutes: each run's own share is in CPU_RUNS. --out gets a JSON file for each run; the tables of all that are there go
to stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

PEER = ("peer=transformers", "verify=true")
BF16 = ("peer=transformers", "trainer.precision=bf16")
ALONE = ("steps=5", "warmup_steps=2")

# Of the paper's recipe a GPU's share of a step, in clips of one length and of many.
EVEN, UNEVEN = "batch=56x15.6", "batch=[" + ",".join(f"{1 + i * 14.6 / 99:.2f}" for i in range(100)) + "]"
GPU = ("model=base trainer.device=cuda trainer.precision=bf16", "steps=15 warmup_steps=5")

# Minutes on two cores, and what is measured.
CPU_RUNS: dict[str, tuple[float, tuple[str, ...]]] = {
    "pretrain_small_4x5": (1.0, ("what=pretrain model=small batch=4x5", *PEER, "steps=7")),
    "pretrain_small_uneven": (1.5, ("what=pretrain model=small batch=uneven", *PEER, "steps=3 warmup_steps=1")),
    "pretrain_base_4x5": (1.5, ("what=pretrain model=base batch=4x5", *PEER, "steps=5 warmup_steps=1")),
    # One side after the other: transformers alone needs 19 GiB.
    "pretrain_base_uneven": (
        4.5,
        ("what=pretrain model=base batch=uneven peer=transformers", "fresh=true steps=2 warmup_steps=1"),
    ),
    "finetune_base_4x5": (1.0, ("what=finetune model=base batch=4x5", *PEER, "steps=5 warmup_steps=1")),
    "inference_base_10x10": (2.0, ("what=inference model=base batch=10x10", *PEER, "steps=5 warmup_steps=1")),
    "bf16_pretrain_small_4x5": (0.5, ("what=pretrain model=small batch=4x5", *BF16, "steps=7")),
    "bf16_pretrain_base_4x5": (1.0, ("what=pretrain model=base batch=4x5", *BF16, "steps=3 warmup_steps=1")),
    **{
        f"length_{batch}": (0.5, (f"what=pretrain model=small batch={batch}", *ALONE))
        for batch in ("60x1", "30x2", "12x5", "6x10", "4x15", "2x30")
    },
    "pretrain_base_2x15": (
        1.5,
        ("what=pretrain model=base batch=2x15 peer=transformers", "steps=3 warmup_steps=1"),
    ),
    "finetune_small_4x5": (0.5, ("what=finetune model=small batch=4x5", *PEER, "steps=7")),
    "bf16_pretrain_small_uneven": (1.0, ("what=pretrain model=small batch=uneven", *BF16, "steps=3 warmup_steps=1")),
    "bf16_inference_base_10x10": (1.5, ("what=inference model=base batch=10x10", *BF16, "steps=3 warmup_steps=1")),
}

# No such minutes: no GPU has run these yet.
GPU_RUNS: dict[str, tuple[float, tuple[str, ...]]] = {
    "gpu_pretrain_base_uneven": (3, (f"what=pretrain {UNEVEN} peer=transformers trainer.compile=true", *GPU)),
    "gpu_pretrain_base_even": (3, (f"what=pretrain {EVEN} peer=transformers trainer.compile=true", *GPU)),
    "gpu_eager_pretrain_base_uneven": (2, (f"what=pretrain {UNEVEN} peer=transformers", *GPU)),
    "gpu_eager_pretrain_base_even": (2, (f"what=pretrain {EVEN} peer=transformers", *GPU)),
    "gpu_finetune_base_uneven": (2, (f"what=finetune {UNEVEN} peer=transformers trainer.compile=true", *GPU)),
    "gpu_inference_base_even": (2, (f"what=inference {EVEN} peer=transformers trainer.compile=true", *GPU)),
}


def main() -> None:
    """Measure what is not measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--only", default="", help="only runs whose name has this in it")
    parser.add_argument("--gpu", action="store_true", help="what a GPU is measured by")
    arguments = parser.parse_args()
    runs = GPU_RUNS if arguments.gpu else CPU_RUNS
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, (minutes, pieces) in runs.items():
        path = arguments.out / f"{name}.json"
        if arguments.only not in name or path.exists():
            continue
        if name.startswith("bf16") and not torch.cpu._is_avx512_bf16_supported():
            log(f"{name}: left out, this CPU has no bf16")
            continue
        measure(name, " ".join(pieces).split(), path, minutes)
    found = {name: json.loads(path.read_text()) for name in runs if (path := arguments.out / f"{name}.json").exists()}
    print("\n\n".join(filter(None, (ratios(found), bf16(found), lengths(found), parts(found)))))


def measure(name: str, overrides: list[str], path: Path, minutes: float) -> None:
    """Run `speechssl benchmark`; a file is there only where it has ended well."""
    log(f"{name}: about {minutes:g} min: speechssl benchmark {' '.join(overrides)}")
    began, unfinished = time.monotonic(), path.with_suffix(".part")
    command = [sys.executable, "-m", "speechssl", "benchmark", *overrides, f"json={unfinished}"]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code == 0:
        unfinished.rename(path)
    else:
        unfinished.unlink(missing_ok=True)
    ended = f"FAILED with code {code}" if code else "done"
    log(f"{name}: {ended} after {(time.monotonic() - began) / 60:.1f} min")


def ratios(found: dict[str, dict[str, Any]]) -> str:
    """Our speed and memory beside the peer's, in fp32, on a GPU in bf16."""
    head = "what | model | batch | audio s/s | transformers | ratio ± half the spread | peak memory, GiB | ratio | MFU"
    rows = []
    for name, report in found.items():
        if "ratio" in report and not name.startswith("bf16"):
            ratio = report["ratio"]
            rows.append(
                [
                    *names(report),
                    *speeds(report),
                    f"{report['peak_memory_bytes'] / 2**30:.2f}",
                    f"{ratio['peak_memory']:.2f}",
                    f"{report['mfu']:.1%}",
                ]
            )
    return table(head, rows)


def bf16(found: dict[str, dict[str, Any]]) -> str:
    """The same in bf16, and what it gains us."""
    head = "what | model | batch | audio s/s | transformers | ratio ± half the spread | over our own fp32"
    rows = []
    for name, report in found.items():
        if name.startswith("bf16"):
            own = found.get(name.removeprefix("bf16_"))
            gain = f"{own['step_seconds'] / report['step_seconds']:.2f}" if own else ""
            rows.append([*names(report), *speeds(report), gain])
    return table(head, rows)


def lengths(found: dict[str, dict[str, Any]]) -> str:
    """Step time at the same audio seconds, by clip length; the Transformer holds attention's quadratic term."""
    head = "batch | step, s | of it, transformer forward and backward, s | the rest, s"
    rows = []
    for name, report in found.items():
        if name.startswith("length"):
            share = sum(report["shares"].get(part, 0.0) for part in ("transformer", "transformer_backward"))
            step = report["step_seconds"]
            rows.append([report["batch"], f"{step:.3f}", f"{share * step:.3f}", f"{(1 - share) * step:.3f}"])
    return table(head, rows)


def parts(found: dict[str, dict[str, Any]]) -> str:
    """Where a step of the small model's time goes, in per cent, forward and backward together."""
    report = found.get("pretrain_small_4x5")
    if not report:
        return ""
    sides = [together(report["shares"]), together(report["peer"]["shares"])]
    rows = [[part, *(f"{100 * side.get(part, 0.0):.0f}" for side in sides)] for part in sides[0]]
    return table("part | speechssl | transformers", rows)


def together(shares: dict[str, float]) -> dict[str, float]:
    """Each part with its backward pass."""
    total: dict[str, float] = {}
    for part, share in shares.items():
        name = part.removesuffix("_backward")
        total[name] = total.get(name, 0.0) + share
    return total


def names(report: dict[str, Any]) -> list[str]:
    return [report["what"], report["model"], report["batch"]]


def speeds(report: dict[str, Any]) -> list[str]:
    ratio = report["ratio"]
    return [
        f"{report['audio_seconds_per_second']:.1f}",
        f"{report['peer']['audio_seconds_per_second']:.1f}",
        f"{ratio['audio_seconds_per_second']:.2f} ± {ratio['spread'] / 2:.2f}",
    ]


def table(head: str, rows: list[list[str]]) -> str:
    """Markdown; nothing where there are no rows."""
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
