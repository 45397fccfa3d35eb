"""The doctor in a run: measures, has each row judged, says what is wrong and what mends it, and acts where it may.

A finding is said once, or again when what was done about it has not helped, and kept as an event in metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechssl.doctor import actions, healthy
from speechssl.doctor.healthy import Row
from speechssl.doctor.judge import Judge
from speechssl.doctor.probe import Probe, data_facts, part_of
from speechssl.training.rows import read_rows
from speechssl.types import Batch

if TYPE_CHECKING:
    from speechssl.training.trainer import Trainer

log = logging.getLogger("speechssl")


class Doctor:
    """What the trainer talks to: measures, judges, and acts where it may.

    Args:
        act: "off" measures nothing; "warn" says what it finds; "adjust" also changes what can be changed in a run;
            "rollback" goes back to the last checkpoint instead, or to the beginning, and on at half the rate.
        patience: see Judge.
        objective: name of the objective or task, for its healthy curves.
        settings: the run's config, dotted.
    """

    def __init__(
        self, *, act: str, patience: int = 3, objective: str | None = None, settings: dict[str, Any] | None = None
    ):
        self.act, self.patience = act, patience
        self.objective, self.settings = objective, settings or {}
        self.probe = None if act == "off" else Probe()
        self.found: list[Row] = []  # the events of the findings so far

    def attend(self, trainer: Trainer) -> None:
        """Begin with a run, or go on with one that is resumed."""
        if not self.probe:
            return
        self.trainer = trainer
        self.probe.attach(trainer.encoder)
        self.facts = data_facts(trainer.loader)
        self.judging = Judge(
            bands=healthy.load(self.objective),
            settings=self.settings,
            max_steps=trainer.options.max_steps,
            patience=self.patience,
        )
        if trainer.step == 0:
            trainer.note(_beginning(trainer.model))
        rows = trainer.world.agree(read_rows(trainer.monitor.path) if trainer.monitor else [])
        self.first_rate = trainer.base_lrs[0]
        for row in rows:
            self.judging.see(row)
            if row.get("acted"):
                actions.adjust(trainer, row["finding"])
        self.found = [row for row in rows if row.get("event") == "finding"]

    def begin_step(self, batches: Sequence[Batch], *, is_logged: bool) -> None:
        """A step begins with these clips; `is_logged` says whether it ends with a row."""
        if self.probe:
            self.probe.armed = is_logged
            self.probe.clips(batches)

    def updating(self, model: nn.Module) -> AbstractContextManager:
        """Around clipping and the optimiser's step."""
        return self.probe.updating(model) if self.probe else contextlib.nullcontext()

    def figures(self) -> dict[str, float]:
        """What a row says besides the objective's figures."""
        if not self.probe:
            return {}
        return {**self.probe.take(), **(self.facts if self.trainer.step == 1 else {})}

    def judge(self, row: Row) -> str | None:
        """Say what this row shows, and act; a reason where the run has to go back to its last checkpoint."""
        if not self.probe:
            return None
        world = self.trainer.world
        findings = world.agree(self.judging.see(row) if world.rank == 0 else [])
        back = None
        for finding in findings:
            log.warning("doctor: %s", finding)
            event = {"event": "finding", **dataclasses.asdict(finding)}
            event["finding"] = event.pop("name")
            if self.act == "rollback" and finding.name in actions.BY_FINDING:
                back = str(finding)
            elif self.act in ("adjust", "rollback"):
                event["acted"] = self._adjust(finding.name)
                event["rate_scale"] = self.trainer.base_lrs[0] / self.first_rate
                log.warning("doctor: %s", event["acted"] or "nothing can be changed in a run")
            self._keep(event)
        return back

    def went_back(self, event: Row) -> None:
        """The run has gone back to an earlier step: judge it anew, and keep what was found after that step."""
        if not self.probe:
            return
        self.judging.see(event)
        lost = [finding for finding in self.found if finding["step"] > event["step"]]
        self.found = [finding for finding in self.found if finding["step"] <= event["step"]]
        for finding in lost:  # their lines are gone with the rows of those steps
            self._keep({"found_at": finding["step"], **finding, "step": event["step"]})

    def _adjust(self, name: str) -> str | None:
        """Change what mends a finding, unless that has been done often enough; what was done, in words."""
        done = sum(bool(event.get("acted")) for event in self.found if event["finding"] == name)
        return actions.adjust(self.trainer, name) if done < actions.MOST_TIMES else None

    def _keep(self, event: Row) -> None:
        """An event goes to the run's file, and to the judge as if it were read there."""
        self.found.append(event)
        self.judging.see(event)
        self.trainer.note(event)


def _beginning(model: nn.Module) -> Row:
    """The event that says by which command, versions and machine a run was begun, and which parts its model has."""
    versions = {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("speechssl", "torch", "torchaudio", "numpy")
    }
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}"
    command = shlex.join(["speechssl", *sys.argv[1:]])
    parts = sorted({part_of(name) for name, _ in model.named_parameters()})
    return {
        "step": 0,
        "event": "began",
        "command": command,
        "versions": versions,
        "machine": machine,
        "parts": parts,
    }
