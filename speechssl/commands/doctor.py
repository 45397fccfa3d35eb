"""Say what is wrong with a run, why, and what mends it; or what of the installation works.

Examples:
  speechssl doctor run_dir=runs/first
  speechssl doctor run_dir=wav2vec2-finetuned/trainer_state.json    # of Hugging Face's Trainer
  speechssl doctor run_dir=outputs/hydra_train.log    # of fairseq
  speechssl doctor what=env

Finished and running runs alike. Every run is watched by the same rules while it trains (doctor.act); the figures are
held against healthy runs of the same objective, which this project has measured.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from speechssl.doctor import healthy, install, logs
from speechssl.doctor.judge import Judge
from speechssl.errors import UserError


def run(config: DictConfig) -> None:
    """Examine a run or the installation."""
    if config.what == "env":
        _examine_installation()
    elif config.run_dir is None:
        raise UserError("speechssl doctor needs run_dir=DIR (a run, or another toolkit's log), or what=env")
    else:
        _examine_run(config.run_dir, config.patience)


def _examine_installation() -> None:
    checks = install.examine()
    for check in checks:
        state = {True: "works", False: "BROKEN", None: "-"}[check.works]
        print(f"{check.name:<22} {state:<7} {check.found}")
        if check.mend and not check.works:
            print(f"{'':<30} mend: {check.mend}")
    if any(check.works is False for check in checks):
        print("something is broken; the mend is beside it", file=sys.stderr)


def _examine_run(run_dir: str, patience: int) -> None:
    log = logs.read(run_dir)
    bands = healthy.load(log.objective)
    judge = Judge(bands=bands, settings=log.settings, max_steps=log.max_steps, patience=patience)
    findings = [finding for row in log.rows for finding in judge.see(row)]
    rows = [row for row in log.rows if "loss" in row]
    last = rows[-1]
    objective = log.objective or "objective unknown"
    print(f"{log.path}: {len(rows)} rows, step {last['step']:.0f} of {log.max_steps}, {objective}")
    for finding in findings:
        state = "open" if finding.name in judge.open else "over"
        print(f"\n{finding.name} ({state}, since step {finding.step:.0f}): {finding.cause}")
        print(f"  evidence: {finding.evidence}")
        print(f"  mend:     {finding.mend}")
    if not findings:
        print("no finding")
    if not bands.ranges:
        known = ", ".join(sorted(path.stem for path in healthy.FOLDER.glob("*.json")))
        print(f"\nno healthy curves are known for this objective (they are for {known}): only plain faults can show")
        return
    print(f"\n{'at the last row':<32} {'here':>10}   healthy")
    progress = last["step"] / max(log.max_steps, healthy.SHORTEST)
    for name, value in healthy.derive(last, log.settings).items():
        band = bands.at(name, progress)
        if band and value is not None:
            print(f"{name:<32} {value:>10.4g}   {band[0]:.4g} to {band[1]:.4g}")
