"""What can be wrong with a run: for each disease how it shows, what causes it and what mends it.

A rule looks at one row of figures and answers with its evidence in words, or None. Rules stand in the order of cause
and effect: while one is open, those that could be its consequence (a higher `tier`) are not looked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from speechssl.doctor.healthy import Bands, Row

DATA, NUMBERS, PARTS, OUTCOME = range(4)
APART = -1  # neither cause nor consequence of another

# Of a run, where what has not begun yet will not; of the highest energy gap, where it is as good as none.
LATE, CLOSED = 0.5, 0.05

# Share of blank frames from which on a CTC head has not begun to say anything.
BLANK = 0.98
# By when it has left that stage; 500 steps of 10 s did in recipes/mboshi.
PLATEAU_STEPS = 2000

# The loss on valid of clips that are learned by heart, against its lowest. CTC's rises a little while readings improve.
RISEN = 1.5

# What shows that numbers overflow.
NOT_FINITE = {"loss": "loss", "grad_norm": "gradient"}

# Parts of the encoder; a fine-tuning may freeze them on purpose.
ENCODER = ("feature_encoder", "feature_norm", "projection", "mask_vector", "context")


@dataclass
class Case:
    """A row to judge.

    Attributes:
        row: its figures, `healthy.derive`d; what is not finite is None.
        progress: how much of the run is done, 0 to 1.
        bands: the healthy curves of this objective.
        settings: the run's config, dotted; empty where it is not known.
        parts: that the model has, by the names of `update_ratio/`; None where that is not known.
    """

    row: Row
    progress: float
    bands: Bands
    settings: dict[str, Any] = field(default_factory=dict)
    parts: frozenset[str] | None = None

    def get(self, name: str) -> float | None:
        """A figure, None where the row has none."""
        return self.row.get(name)

    def setting(self, *names: str) -> Any:
        """The first of these settings that the run has."""
        return next((self.settings[name] for name in names if self.settings.get(name) is not None), None)

    def outside(self, name: str, *, below: float = 0.0, above: float = math.inf, ever: bool = False) -> str | None:
        """Evidence that a figure is under `below` x the lowest or over `above` x the highest healthy value."""
        value = self.get(name)
        band = self.bands.ever(name) if ever else self.bands.at(name, self.progress)
        if value is None or band is None or band[0] * below <= value <= band[1] * above:
            return None
        return f"{name} is {value:.3g}; healthy runs have {band[0]:.3g} to {band[1]:.3g} here"


@dataclass(frozen=True)
class Rule:
    """A disease.

    Attributes:
        name: by which it is found.
        tier: where it stands among causes and effects.
        look: Case -> evidence, or None.
        cause: in words.
        mend: Case -> the override to set, or what to do.
        figure: that it is told by, where not every row has it; rows without it say nothing. "" is any row of training.
    """

    name: str
    tier: int
    look: Callable[[Case], str | None]
    cause: str
    mend: Callable[[Case], str]
    figure: str = ""


def _silent(case: Case) -> str | None:
    level = case.get("input_level")
    return f"the clips' level is {level:.1e} of full scale" if level is not None and level < 1e-4 else None


def _repeated(case: Case) -> str | None:
    for name, limit, what in (
        ("repeat_share", 0.3, "of the clips in a batch occur twice in it"),
        ("listed_twice", 0.9, "of the manifest's lines repeat another"),
    ):
        if (case.get(name) or 0.0) > limit:
            return f"{case.get(name):.0%} {what}"
    return None


def _shuffled(case: Case) -> str | None:
    correlation = case.get("label_length_correlation")
    if correlation is None or correlation > 0.25:
        return None
    return f"long clips do not have long transcripts (correlation {correlation:.2f}; matching ones have 0.5 to 1)"


def _skipped(case: Case) -> str | None:
    share = case.get("skipped_steps") or 0.0
    if share >= 0.2:
        return f"{share:.0%} of the steps had a gradient that is not finite and were skipped"
    # Other toolkits go on with such a step, and log it.
    bad = [what for name, what in NOT_FINITE.items() if name in case.row and case.get(name) is None]
    return f"the {' and the '.join(bad)} of this row {'are' if len(bad) > 1 else 'is'} not finite" if bad else None


def _cold(case: Case) -> str | None:
    """A temperature so low that similarities overflow or one choice takes all."""
    for key, value, least in (
        ("objective.temperature", case.setting("objective.temperature"), 0.005),
        ("objective.gumbel_end", case.setting("objective.gumbel_end"), 0.02),
        ("gumbel_temperature", case.get("gumbel_temperature"), 0.02),
    ):
        bad = _skipped(case) or case.outside("loss_contrastive", above=3, ever=True)
        if bad and value is not None and value < least:
            return f"{key} is {value:g}, and {bad}"
    return None


def _half(case: Case) -> str | None:
    half = case.setting("trainer.precision") not in (None, "fp32")
    return _skipped(case) if half and not _cold(case) else None


def _overflow(case: Case) -> str | None:
    return None if _cold(case) or _half(case) else _skipped(case)


def _fast(case: Case) -> str | None:
    """Updates far larger than healthy ones, against the weights."""
    names = ("update_ratio/context", *sorted(name for name in case.row if name.startswith("update_ratio/")))
    found = [case.outside(name, above=3, ever=True) for name in names]
    return next((evidence for evidence in found if evidence), None) if sum(map(bool, found)) > 1 else None


def _frozen(case: Case) -> str | None:
    """A part that learns in every healthy run and does not here; the encoder may be frozen on purpose."""
    moving = [name for name in case.row if name.startswith("update_ratio/")]
    if not moving:
        return None
    for name in case.bands.ranges:
        part = name.removeprefix("update_ratio/")
        if part == name or part in ENCODER or (case.parts is not None and part not in case.parts):
            continue
        band = case.bands.at(name, case.progress)
        if band and band[0] > 0 and not case.get(name):
            return f"{part} does not change; in healthy runs it moves by {band[0]:.1e} to {band[1]:.1e} a step"
    return None


def _no_diversity(case: Case) -> str | None:
    """Codes that are used no more than at first, with nothing that would make them."""
    usage, first = case.get("code_usage"), case.get("first_code_usage")
    if case.setting("objective.diversity_weight") != 0 or usage is None or usage > 1.5 * (first or 0.0):
        return None
    return f"objective.diversity_weight is 0, and code_usage, {first:.2g} at first, is {usage:.2g}"


def _collapsed_codes(case: Case) -> str | None:
    # A batch of a few seconds has fewer masked frames than there are codewords, and short words do not need all.
    if (case.setting("data.batch_seconds") or 60) < 10 or (case.get("code_usage") or 0.0) > 1 / 8:
        return None
    return case.outside("code_usage", below=0.5)


def _collapsed(case: Case) -> str | None:
    band = case.bands.at("effective_rank", case.progress)
    # Loudness, one direction, is most of what APC's outputs say at first: half way from there to none is too little.
    rank = min(1.2, (1 + band[0]) / 2) if band else 1.2
    for name, least in (("output_variance", 1e-3), ("target_variance", 1e-3), ("effective_rank", rank)):
        value = case.get(name)
        if value is not None and value < least:
            return f"{name} is {value:.2g}: every frame gives the same"
    return None


def _alike(case: Case) -> str | None:
    """Pairs that belong together are no nearer than others, though they were, or never were until late in the run."""
    gap, highest = case.get("energy_gap"), max(case.get("highest_energy_gap") or 0.0, 0.0)
    # Batches of one clip have no other pairs, and a gap of just 0.
    if case.progress < LATE or gap is None or not (gap < 0 or gap < CLOSED * highest):
        return None
    return f"energy_gap is {gap:.2g}, and was {highest:.2g} at most"


def _wordless(case: Case) -> str | None:
    """No word right in any validation so far, as when the answers are empty."""
    count = case.get("wordless_validations") or 0
    return f"not one word was right in {count} validations" if count >= 3 and case.progress >= LATE else None


def _blank(case: Case) -> str | None:
    """Nothing but blanks: from the first step on, or when healthy runs have left that stage."""
    share, first = case.get("blank_share"), case.get("first_blank_share")
    if share is None:
        return _wordless(case)
    if share < BLANK:
        return None
    if first is not None and first >= BLANK:
        return f"{first:.0%} of the frames are blank from the first step on; healthy heads begin with 0 to 15 %"
    # Healthy curves are of short runs, in which the plateau is a large share.
    if case.get("step") >= PLATEAU_STEPS:
        return f"{share:.0%} of the frames are blank, after {case.get('step'):,} steps"
    return case.outside("blank_share", above=1.02)


def _stuck(case: Case) -> str | None:
    """The contrastive task at chance when healthy runs have long left it."""
    band = case.bands.at("accuracy_over_chance", case.progress)
    value = case.get("accuracy_over_chance")
    if value is None or band is None or band[0] < 1.5 or value > 1.2:
        return None
    return f"the accuracy is {value:.2f} times chance; healthy runs have {band[0]:.1f} to {band[1]:.1f} here"


def _waiting(case: Case) -> str | None:
    share = case.get("loader_share")
    if share is None or share < 0.4 or case.get("step") == 1:  # the first step waits for the workers to start
        return None
    return f"{share:.0%} of the time goes into waiting for data"


def _by_heart(case: Case) -> str | None:
    """A fine-tuning whose loss on valid rises, while the figure that decides gets no better."""
    value, lowest, since = (case.get(name) for name in ("valid_loss", "lowest_valid_loss", "best_valid_step"))
    # The targets of a pretraining may grow, and its loss with them.
    supervised = case.setting("task.name") is not None
    if not supervised or None in (value, lowest, since) or since == case.get("step") or value < RISEN * lowest:
        return None
    return f"the loss on valid is {value:.3g}, and was {lowest:.3g}; none was better than at step {since:,}"


def _full(case: Case) -> str | None:
    share = case.get("memory_share")
    return f"{share:.0%} of the memory is in use at the peak" if share is not None and share > 0.95 else None


def _lower_rate(case: Case) -> str:
    rate = (case.setting("optim.lr") or 0.0) * (case.get("rate_scale") or 1.0) or case.get("lr")
    band, value = case.bands.ever("update_ratio/context"), case.get("update_ratio/context")
    factor = max(value / band[1], 2.0) if band and value else 3.0
    return f"optim.lr={rate / factor:.1g}" if rate else "a lower optim.lr"


def _unlearn(case: Case) -> str:
    if case.setting("task.mask_start_probability") is None:
        return "encoder.dropout=0.1 augment=speech"
    return "encoder.dropout=0.1 task.mask_start_probability=0.08, which task=ctc_few has for small encoders"


def _more_codes(case: Case) -> str:
    """A weight where the objective has one; a log of another toolkit does not say its settings."""
    if case.settings and "objective.diversity_weight" not in case.settings:
        return "labels made of other features (objective.labels), or fewer of them (objective.num_clusters)"
    return f"objective.diversity_weight={max(2 * (case.setting('objective.diversity_weight') or 0), 0.1):g}"


def _leave_chance(case: Case) -> str:
    if case.setting("model.encoder.conv_init") in (None, "average"):
        return "twice the data.batch_seconds, or a longer run (trainer.max_steps)"
    return "model.encoder.conv_init=average, with which convolutions begin as filters"


RULES = (
    Rule("silent_data", DATA, _silent, "the recordings are silent", lambda _: "prepare the data again from audio"),
    Rule(
        "repeated_clips",
        DATA,
        _repeated,
        "the same recording comes again and again",
        lambda _: "a manifest that lists each recording once (data.train)",
    ),
    Rule(
        "shuffled_labels",
        DATA,
        _shuffled,
        "the transcripts belong to other recordings",
        lambda _: "a manifest whose text is that of its own audio (data.train)",
    ),
    Rule(
        "temperature",
        NUMBERS,
        _cold,
        "a temperature is so low that the loss cannot be computed",
        lambda _: "objective.temperature=0.1 objective.gumbel_end=0.5",
    ),
    Rule("half_precision", NUMBERS, _half, "half precision overflows", lambda _: "trainer.precision=fp32"),
    Rule("non_finite", NUMBERS, _overflow, "the gradient overflows", _lower_rate),
    Rule("rate_too_high", NUMBERS, _fast, "the learning rate is too high", _lower_rate),
    Rule(
        "frozen_part",
        PARTS,
        _frozen,
        "a part that has to learn gets no gradient or is kept from moving",
        lambda _: "requires_grad on it, and a loss that reaches it",
    ),
    Rule(
        "diversity_off",
        PARTS,
        _no_diversity,
        "nothing keeps the codes in use",
        lambda _: "objective.diversity_weight=0.1",
    ),
    Rule(
        "codebook_collapse",
        OUTCOME,
        _collapsed_codes,
        "nearly all frames get the same few codes",
        _more_codes,
        figure="code_usage",
    ),
    Rule(
        "collapse",
        OUTCOME,
        _collapsed,
        "the encoder answers the same to everything",
        lambda case: f"a lower rate, {_lower_rate(case)}, and a longer optim.warmup",
    ),
    Rule(
        "pairs_alike",
        OUTCOME,
        _alike,
        "pairs that belong together are no nearer than pairs that do not",
        lambda case: f"a lower rate, {_lower_rate(case)}, and a longer optim.warmup",
        figure="energy_gap",
    ),
    Rule(
        "blank_plateau",
        OUTCOME,
        _blank,
        "the head answers blank to everything",
        lambda _: "task.freeze_encoder=0.1, so that the head learns first, a smaller data.batch_seconds and more steps",
    ),
    Rule(
        "not_learning",
        OUTCOME,
        _stuck,
        "the contrastive task stays at guessing",
        _leave_chance,
    ),
    Rule(
        "loader_starved",
        APART,
        _waiting,
        "reading audio is slower than training",
        lambda case: f"data.num_workers={max(2 * (case.setting('data.num_workers') or 1), 2)}",
    ),
    Rule(
        "learned_by_heart",
        APART,
        _by_heart,
        "the training clips are learned by heart",
        _unlearn,
        figure="valid_loss",
    ),
    Rule("memory_full", APART, _full, "the batch hardly fits", lambda _: "half of data.batch_seconds, and accumulate"),
)
