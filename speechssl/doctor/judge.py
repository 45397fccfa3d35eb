"""Rows of a run's figures in, findings out; no torch, so that a finished run is examined at once.

A finding opens when a rule has seen its evidence in so many rows in a row, and closes after as many without it, so
that a single odd row says nothing. Where a run was changed for a finding it is closed, and where a run went back to an
earlier step all are: what lasts opens again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from speechssl.doctor import healthy
from speechssl.doctor.healthy import Bands, Row
from speechssl.doctor.rules import APART, RULES, Case
from speechssl.training.rows import cost


@dataclass(frozen=True)
class Finding:
    """Something is wrong: what, since which step, the cause, the evidence and the mend (an override, or what to do)."""

    name: str
    step: int
    cause: str
    evidence: str
    mend: str

    def __str__(self) -> str:
        return f"{self.cause} ({self.name}, step {self.step}): {self.evidence}; mend: {self.mend}"


class Judge:
    """Rows in, findings out.

    Args:
        bands: the healthy curves of the objective.
        settings: the run's config, dotted.
        max_steps: the length of the run.
        patience: rows in a row that open or close a finding.
    """

    def __init__(self, *, bands: Bands, settings: dict[str, Any], max_steps: int, patience: int):
        self.bands, self.settings, self.max_steps, self.patience = bands, settings, max_steps, patience
        self.bad: dict[str, int] = {}
        self.good: dict[str, int] = {}
        self.open: dict[str, Finding] = {}
        self.facts: Row = {}
        self.parts: frozenset[str] | None = None
        self.rate_scales: dict[str, float] = {}  # how far optim.lr was lowered, by the kind of event

    def see(self, row: Row) -> list[Finding]:
        """The findings that this row opens; of an event, the one whose rows are gone since the run went back."""
        if "event" in row:
            return self._see_event(row)
        if "averaged" in row or not ("loss" in row or "valid_loss" in row):
            return []
        row = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}
        if row["step"] == 1 and "loss" in row:  # what is said once, and where some figures begin
            self.facts = {key: row[key] for key in ("listed_twice", "label_length_correlation") if key in row}
            self.facts |= {f"first_{key}": row[key] for key in ("blank_share", "code_usage") if key in row}
        gaps = [gap for gap in (row.get("energy_gap"), self.facts.get("highest_energy_gap")) if gap is not None]
        self.facts |= {"highest_energy_gap": max(gaps)} if gaps else {}
        self._see_validation(row)
        # A run of a few steps has not come as far as its share of them says: the curves are of SHORTEST or more.
        progress = row["step"] / max(self.max_steps, healthy.SHORTEST)
        rate_scale = math.prod(self.rate_scales.values())
        figures = healthy.derive({**self.facts, "rate_scale": rate_scale, **row}, self.settings)
        case = Case(figures, progress, self.bands, self.settings, self.parts)
        opened = []
        for rule in RULES:
            has_figure = figures.get(rule.figure) is not None if rule.figure else "loss" in row
            if not has_figure:
                continue
            evidence = None if self._explained(rule.tier) and rule.name not in self.open else rule.look(case)
            self.bad[rule.name] = self.bad.get(rule.name, 0) + 1 if evidence else 0
            self.good[rule.name] = 0 if evidence else self.good.get(rule.name, 0) + 1
            if rule.name in self.open and self.good[rule.name] >= self.patience:
                del self.open[rule.name]
            elif rule.name not in self.open and self.bad[rule.name] >= self.patience:
                finding = Finding(rule.name, row["step"], rule.cause, evidence, rule.mend(case))
                self.open[rule.name] = finding
                opened.append(finding)
        return opened

    def _see_validation(self, row: Row) -> None:
        """Keep the lowest loss on valid, and which step had the best of the figure that decides."""
        loss, value = row.get("valid_loss"), cost(row, self.settings.get("trainer.best", "loss"))
        if loss is not None:
            self.facts["lowest_valid_loss"] = min(loss, self.facts.get("lowest_valid_loss", math.inf))
        if value < self.facts.get("best_valid", math.inf):
            self.facts |= {"best_valid": value, "best_valid_step": row["step"]}

    def _see_event(self, event: Row) -> list[Finding]:
        if "parts" in event:  # of the event that a run begins with
            self.parts = frozenset(event["parts"])
        if "rate_scale" in event:
            self.rate_scales[event["event"]] = event["rate_scale"]
        if event["event"] == "rolled_back":
            self.bad, self.good, self.open = {}, {}, {}
            for name in ("highest_energy_gap", "lowest_valid_loss", "best_valid", "best_valid_step"):
                self.facts.pop(name, None)
        if event.get("acted"):
            self.open.pop(event["finding"], None)
            self.bad[event["finding"]] = 0
        if "found_at" not in event:
            return []
        cause, evidence, mend = (event[key] for key in ("cause", "evidence", "mend"))
        return [Finding(event["finding"], event["found_at"], cause, evidence, mend)]

    def _explained(self, tier: int) -> bool:
        """Whether an open finding may be the cause of what is found in this tier."""
        tiers = [rule.tier for rule in RULES if rule.name in self.open]
        return tier != APART and any(APART < other < tier for other in tiers)


def examine(
    rows: Iterable[Row], *, objective: str | None, settings: dict[str, Any], max_steps: int, patience: int
) -> list[Finding]:
    """All findings of a run that is finished or under way, in the order in which they opened."""
    judge = Judge(bands=healthy.load(objective), settings=settings, max_steps=max_steps, patience=patience)
    return [finding for row in rows for finding in judge.see(row)]
