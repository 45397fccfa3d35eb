"""Say what to train with a budget, how long it takes and what limits; or how long a given config takes.

Examples:
  speechssl plan hours=40 days=2
  speechssl plan hours=40 days=2 gpus=1 memory_gib=24 labels_hours=1 out=plan.sh
  speechssl plan hours=960 days=7 gpus=8 gpu=a100
  speechssl plan what=time model=base hours=960 steps=400000 gpus=8 gpu=v100
  speechssl plan what=check json=check.json    # predicted against measured, for ten configs on this machine

Times come from an analytic count of the work in a step and the machine's coefficients, which are measured in about
two minutes the first time and kept for each device and precision (calibrate=true measures anew). gpu= takes a table of
stated peaks instead: an estimate. gpus=0 without it is the CPU. out= gets the commands as a script.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from speechssl.errors import UserError
from speechssl.planning import choose, machine
from speechssl.planning.choose import LEAST_HOURS_SEEN, Plan
from speechssl.planning.machine import Machine


def run(config: DictConfig) -> None:
    """Plan as the config says."""
    _validate(config)
    if config.what == "check":
        _check(config)
        return
    here = _machine(config)
    memory = config.memory_gib or here.memory_gib
    hours = config.hours
    devices = _devices(config)
    if config.what == "time":
        plans = [_timed(config, here, devices, memory)]
    else:
        if config.days is None:
            raise UserError("speechssl plan needs days=N, the time there is (or what=time with model= and steps=)")
        models = [config.model.name] if config.get("model") else list(LEAST_HOURS_SEEN)
        budget = {"hours": hours, "days": config.days, "devices": devices, "memory_gib": memory}
        plans = choose.choose(here, **budget, models=models)
        if not plans:
            raise UserError(f"no model fits into memory_gib={memory:g}: give more, or a smaller model")
    _say(plans, here, hours, memory)
    commands = _commands(plans[0], config.labels_hours)
    print("\n".join(commands))
    if config.out:
        text = "#!/usr/bin/env bash\nset -euo pipefail\n\n" + "\n".join(commands) + "\n"
        Path(config.out).write_text(text, encoding="utf-8")


def _validate(config: DictConfig) -> None:
    for key, wanted, is_inside in (
        ("hours", "more than 0", config.hours > 0),
        ("labels_hours", "0 or more", config.labels_hours >= 0),
        ("gpus", "0 or more", config.gpus >= 0),
    ):
        if not is_inside:
            raise UserError(f"speechssl plan: {key}={config[key]} must be a number, {wanted}")
    if config.precision not in (None, "fp32", "bf16"):
        raise UserError(f"speechssl plan: precision={config.precision} must be fp32 or bf16")


def _devices(config: DictConfig) -> int:
    """How many GPUs; 0 is the CPU. A GPU that is named is one at least."""
    return max(config.gpus, 1) if config.gpu else config.gpus


def _timed(config: DictConfig, here: Machine, devices: int, memory: float) -> Plan:
    if not config.get("model"):
        raise UserError("speechssl plan what=time needs model=NAME, and takes objective=, feature_encoder= and steps=")
    steps = config.steps or config.model.pretrain.max_steps
    batch = config.batch_seconds or config.model.pretrain.batch_seconds
    overrides = (
        f"model={config.model.name}",
        f"objective={config.objective}",
        f"feature_encoder={config.feature_encoder}",
    )
    return choose.plan_of(
        here,
        overrides,
        hours=config.hours,
        steps=steps,
        batch_seconds=batch,
        accumulate=config.accumulate,
        devices=devices,
        memory_gib=memory,
    )


def _machine(config: DictConfig) -> Machine:
    """The coefficients: of the table, kept from before, or measured now."""
    if config.gpu:
        return machine.gpu(config.gpu, config.precision)
    if config.gpus and not _has_gpu():
        return machine.gpu(machine.gpu_with(config.memory_gib, config.precision), config.precision)
    measured = _measured(config)
    path = machine.cache_path(**measured)
    if path.exists() and not config.calibrate:
        return machine.load(path)
    from speechssl.planning.calibrate import calibrate  # needs torch

    found = calibrate(**measured)
    machine.save(found, path)
    return found


def _measured(config: DictConfig) -> dict[str, str]:
    """Device and precision of what is measured here."""
    return {"device": "cuda" if config.gpus else "cpu", "precision": config.precision or "fp32"}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check(config: DictConfig) -> None:
    from speechssl.planning.calibrate import check

    if config.gpus and not _has_gpu():
        raise UserError(f"speechssl plan what=check gpus={config.gpus}: torch sees no GPU to measure; use gpus=0")
    rows = check(**_measured(config), rounds=config.rounds, steps=config.steps or 3)
    table = Table(Column("config", overflow="fold"), box=None, pad_edge=False)
    for name in ("seen", "step, s", "predicted", "error", "GiB", "predicted", "error"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row["config"],
            "yes" if row["seen"] else "no",
            f"{row['measured_s']:.3f} ± {row['spread_s'] / 2:.3f}",
            f"{row['predicted_s']:.3f}",
            f"{row['time_error']:+.0%}",
            f"{row['measured_gib']:.2f}",
            f"{row['predicted_gib']:.2f}",
            f"{row['memory_error']:+.0%}",
        )
    Console().print(table)
    if config.json:
        Path(config.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _say(plans: list[Plan], here: Machine, hours: float, memory: float) -> None:
    console = Console(stderr=True, highlight=False)
    console.width = max(console.width, 100)
    console.print(f"{hours:g} h of audio, on {here.name} in {here.precision} ({here.source})")
    table = Table(box=None, pad_edge=False)
    for name in ("model", "objective", "front", "batch, s", "steps", "step, s", "takes", "GiB", "hears", "passes"):
        table.add_column(name, justify="left" if name in ("model", "objective", "front") else "right", no_wrap=True)
    for plan in plans[:6]:
        batch = f"{plan.batch_seconds:g}" + (f"x{plan.accumulate}" if plan.accumulate > 1 else "")
        table.add_row(
            *(plan.model, plan.objective, plan.front, batch, f"{plan.steps:,}", f"{plan.step_s:.2f}"),
            *(_duration(plan.days), f"{plan.memory_gib:.1f}", f"{plan.hours_seen:,.0f} h", f"{plan.passes:,.0f}"),
        )
    console.print(table)
    best = plans[0]
    console.print(f"the first is the plan: checkpoints take {best.disk_gib:.1f} GiB; it is limited by {best.limit}")
    if not best.fits:
        console.print(_too_large(best, memory), soft_wrap=True)


def _too_large(plan: Plan, memory: float) -> str:
    mend = f"set batch_seconds={plan.most_seconds:g} or less" if plan.most_seconds else "choose a smaller model"
    return (
        f"the batch does not fit: {plan.batch_seconds:g} s take {plan.memory_gib:.1f} GiB, and "
        f"{choose.FILL:.0%} of memory_gib={memory:.1f} may be filled; {mend}"
    )


def _commands(plan: Plan, labels_hours: float) -> list[str]:
    """What to run."""
    pretrain = ["speechssl", "pretrain", "data.train=DATA/train.jsonl", "run_dir=RUNS/pretrained", *plan.overrides]
    commands = [shlex.join(pretrain)]
    if labels_hours:
        task = _task(plan.model, labels_hours)
        tune = ["speechssl", "finetune", *task, "init=RUNS/pretrained", "data.train=DATA/labelled.jsonl"]
        commands.append(shlex.join([*tune, "data.skip_invalid=true", "run_dir=RUNS/ctc"]))
    return commands


def _task(model: str, labels_hours: float) -> list[str]:
    """The settings for so much transcribed speech: of the recipes for tiny, of the wav2vec 2.0 paper for the others."""
    if model == "tiny":
        steps = 1500 if labels_hours < 0.5 else 3000 if labels_hours < 2 else 6000
        return ["task=ctc_few", f"trainer.max_steps={steps}"]
    for least, task in ((50, "ctc_100h"), (5, "ctc_10h"), (0.5, "ctc_1h")):
        if labels_hours >= least:
            return [f"task={task}"]
    return ["task=ctc_10min"]


def _duration(days: float) -> str:
    hours = days * 24
    return f"{days:.1f} days" if hours >= 48 else f"{hours:.1f} h" if hours >= 2 else f"{hours * 60:.0f} min"
