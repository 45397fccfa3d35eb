"""Rows of a run's figures in, findings out; no torch, so that a finished run is examined at once.

A finding opens when a rule has seen its evidence in so many rows in a row, and closes after as many without it, so
that a single odd row says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from speechssl.doctor import healthy
from speechssl.doctor.healthy import Bands, Row
from speechssl.doctor.rules import APART, RULES, Case


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

    def see(self, row: Row) -> list[Finding]:
        """The findings that this row opens."""
        if "parts" in row:  # of the event that a run begins with
            self.parts = frozenset(row["parts"])
        if "loss" not in row:
            return []
        if row["step"] == 1:  # what is said once, and where some figures begin
            self.facts = {key: row[key] for key in ("listed_twice", "label_length_correlation") if key in row}
            self.facts |= {f"first_{key}": row[key] for key in ("blank_share", "code_usage") if key in row}
        # A run of a few steps has not come as far as its share of them says: the curves are of SHORTEST or more.
        progress = row["step"] / max(self.max_steps, healthy.SHORTEST)
        figures = healthy.derive({**self.facts, **row}, self.settings)
        case = Case(figures, progress, self.bands, self.settings, self.parts)
        opened = []
        for rule in RULES:
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
