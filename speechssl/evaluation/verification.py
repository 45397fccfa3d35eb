"""Speaker verification: which pairs to try, scores as probabilities, intervals.

The error rates themselves are in evaluation.speaker. The prior that minDCF and the threshold are for is stated beside
them; EER has none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.errors import UserError
from speechssl.evaluation import speaker
from speechssl.reporting.svg import chart

log = logging.getLogger("speechssl")

MAX_TRIALS = 1_000_000
NUM_RESAMPLES = 200
# Trials that the resampled intervals are taken of, at most.
MAX_RESAMPLED = 200_000


@dataclass(frozen=True)
class Calibration:
    """From a score to a probability: log likelihood ratio = scale * score + offset, in nats.

    Attributes:
        scale, offset: as said.
        p_target: share of pairs by one speaker in the intended use.
        num_trials, num_target_trials: what it was fitted on.
        fingerprint: of the model that the scores are by.
        cohort_top: what AS-norm measured each clip against, see evaluation.cohort; 0 where the scores are cosines.
    """

    scale: float
    offset: float
    p_target: float
    num_trials: int
    num_target_trials: int
    fingerprint: str = ""
    cohort_top: int = 0

    @property
    def threshold(self) -> float:
        """The score from which on the same speaker is likelier than not, given the prior."""
        return (-_logit(self.p_target) - self.offset) / self.scale

    @property
    def doubt(self) -> str | None:
        """Why no recording could pass, in words, or None: the threshold may lie above what a cosine can be."""
        if self.cohort_top or self.threshold <= 1:
            return None
        return (
            f"no recordings are alike enough to be called one voice: at p_target={self.p_target:g} that would take a "
            f"cosine of {self.threshold:.2f}, since these scores hardly tell voices apart; give a larger p_target, "
            "train the head longer, or calibrate on more clips"
        )

    def probability(self, score: float) -> float:
        """That a pair with this score is by one speaker."""
        return float(_sigmoid(np.array(self.scale * score + self.offset + _logit(self.p_target))))

    def to_dict(self) -> dict[str, float | int]:
        """Plain data, the threshold beside what it follows from."""
        return {**asdict(self), "threshold": self.threshold}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object) -> Calibration:
        """What `to_dict` gave; anything else is a UserError."""
        try:
            found = cls(**{key: value for key, value in values.items() if key != "threshold"})
            fits = found.scale > 0 and 0 < found.p_target < 1 and math.isfinite(found.scale + found.offset)
            fits = fits and found.cohort_top >= 0
        except TypeError:
            fits = False
        if not fits:
            raise UserError(f"{source} is no calibration; use the calibration.json that `speechssl evaluate` wrote")
        return found


def calibrate(scores: np.ndarray, is_target: np.ndarray, *, p_target: float) -> Calibration:
    """Logistic regression in which targets weigh `p_target` together (Brummer and du Preez 2006).

    A slight pull on the scale keeps it finite where a threshold divides the trials without error.

    Args:
        scores: float [trials].
        is_target: bool [trials], of both kinds.
    """
    from scipy.optimize import minimize

    scores, is_target = np.asarray(scores, dtype=np.float64), np.asarray(is_target, dtype=bool)
    speaker.operating_points(scores, is_target)  # complains if one kind is missing
    spread = max(float(scores.std()), 1e-12)
    x = (scores - scores.mean()) / spread
    weights = np.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    signs = np.where(is_target, 1.0, -1.0)

    def cost(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margin = signs * (parameters[0] * x + parameters[1] + _logit(p_target))
        slope = -weights * signs * _sigmoid(-margin)
        value = weights @ np.logaddexp(0, -margin) + 1e-4 * parameters[0] ** 2
        return value, np.array([slope @ x + 2e-4 * parameters[0], slope.sum()])

    scale, offset = minimize(cost, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    scale = max(scale, 1e-6) / spread  # scores that say the opposite say nothing
    counts = {"num_trials": len(scores), "num_target_trials": int(is_target.sum())}
    return Calibration(float(scale), float(offset - scale * scores.mean()), p_target, **counts)


def read_trials(path: Path, names: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A trial list in VoxCeleb's format: `1 ONE OTHER` for one speaker, `0 ONE OTHER` for two.

    Args:
        path: the list.
        names: the place of each clip by every name that a list may call it (`trial_names`).

    Returns:
        first, second int64 [trials] and is_target bool [trials].

    Raises:
        UserError: a line that is none, or a clip that is not there; names FILE:LINE.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read these trials ({error}); correct the path") from None
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 3 or parts[0] not in ("0", "1"):
            raise UserError(f"{path}:{number}: is not `1 CLIP CLIP` or `0 CLIP CLIP`; correct the list")
        for name in parts[1:]:
            if name not in names:
                raise UserError(
                    f"{path}:{number}: the clip {name} is not in data.test (neither as an `id` nor as the end of an "
                    "`audio_filepath`); add it there or take the trial out"
                )
        rows.append((names[parts[1]], names[parts[2]], parts[0] == "1"))
    if not rows:
        raise UserError(f"{path}: has no trial in it; write `1 CLIP CLIP` or `0 CLIP CLIP` a line")
    first, second, is_target = (np.array(column) for column in zip(*rows, strict=True))
    if (first == second).any():
        log.warning("%s: %d trials are of a clip with itself, which is no test", path, (first == second).sum())
    return first, second, is_target


def trial_names(ids: Sequence[str], paths: Sequence[Path | str]) -> dict[str, int]:
    """Every name that a trial list may call a clip: its id, and each end of its path that is its alone."""
    names: dict[str, int] = {}
    shared = set()
    for place, path in enumerate(paths):
        parts = Path(path).parts
        for start in range(len(parts)):
            name = str(Path(*parts[start:]))
            if names.setdefault(name, place) != place:
                shared.add(name)
    for name in shared:
        del names[name]
    return names | {name: place for place, name in enumerate(ids)}


def draw_trials(labels: np.ndarray, *, max_trials: int = MAX_TRIALS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of clips, or `max_trials` drawn ones: first, second int64 [trials], is_target bool [trials]."""
    first, second = speaker.trial_pairs(len(labels), max_trials=max_trials, rng=np.random.default_rng(0))
    return first, second, labels[first] == labels[second]


def figures(scores: np.ndarray, is_target: np.ndarray, sides: np.ndarray, *, p_target: float) -> dict[str, Any]:
    """EER and minDCF with intervals; None (and a warning) where only one kind of trial exists.

    Args:
        scores: float [trials].
        is_target: bool [trials].
        sides: [2, trials], the speakers of both clips.
        p_target: the prior of minDCF, whose two costs are 1.

    Returns:
        `eer`, `min_dcf`, `eer_interval`, `min_dcf_interval` (95 %, resampling speakers), `p_target`, `num_trials`,
        `num_target_trials`.
    """
    counts = {"p_target": p_target, "num_trials": len(is_target), "num_target_trials": int(is_target.sum())}
    if is_target.all() or not is_target.any():
        log.warning("no EER and minDCF: they need two clips of data.test with the same label, and one with another")
        return {"eer": None, "min_dcf": None, **counts}
    found = {"eer": speaker.eer(scores, is_target), "min_dcf": speaker.min_dcf(scores, is_target, p_target=p_target)}
    return {**found, **intervals(scores, is_target, sides, p_target=p_target), **counts}


def intervals(scores: np.ndarray, is_target: np.ndarray, sides: np.ndarray, *, p_target: float) -> dict[str, Any]:
    """95 % bootstrap intervals of EER and minDCF.

    Speakers are drawn with replacement, not trials, because trials of one speaker go together: a trial counts as often
    as its speakers were drawn.
    """
    rng = np.random.default_rng(0)
    if len(scores) > MAX_RESAMPLED:
        # The work is bounded: of the rarer kind half of it at most, of the other what is left.
        kinds = np.flatnonzero(is_target), np.flatnonzero(~is_target)
        rarer = min(*map(len, kinds), MAX_RESAMPLED // 2)
        keep = np.concatenate(
            [rng.choice(kind, min(len(kind), MAX_RESAMPLED - rarer), replace=False) for kind in kinds]
        )
        scores, is_target, sides = scores[keep], is_target[keep], sides[:, keep]
    order = np.argsort(-scores)  # sorted once, each resampling sorts in one pass
    scores, is_target, sides = scores[order], is_target[order], sides[:, order]
    names, places = np.unique(sides, return_inverse=True)
    first, second = places.reshape(2, -1)
    drawn: dict[str, list[float]] = {"eer": [], "min_dcf": []}
    for _ in range(NUM_RESAMPLES):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(is_target, times[first], times[first] * times[second])
        if not (weights[is_target].any() and weights[~is_target].any()):
            continue
        drawn["eer"].append(speaker.eer(scores, is_target, weights=weights))
        drawn["min_dcf"].append(speaker.min_dcf(scores, is_target, p_target=p_target, weights=weights))
    return {
        f"{name}_interval": [float(np.quantile(values, q)) for q in (0.025, 0.975)] if values else None
        for name, values in drawn.items()
    }


def det_chart(path: Path, scores: np.ndarray, is_target: np.ndarray) -> None:
    """The detection error tradeoff as SVG, both rates on the normal deviate scale (Martin et al. 1997)."""
    from scipy.stats import norm

    low, high = 0.001, 0.6
    miss, false_alarm = speaker.operating_points(scores, is_target)
    inside = (false_alarm >= low / 2) & (false_alarm <= high) & (miss >= low / 2) & (miss <= high)
    places = np.flatnonzero(inside)
    places = places[np.linspace(0, len(places) - 1, min(len(places), 400)).astype(int)] if len(places) else places
    points = list(zip(norm.ppf(false_alarm[places]), norm.ppf(miss[places]), strict=True))
    ticks = [(float(norm.ppf(x)), f"{100 * x:g} %") for x in (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6)]
    labels = {"x_label": "other speakers accepted", "y_label": "same speaker missed"}
    chart(path, {"trials": points}, title="Detection error tradeoff", **labels, x_ticks=ticks, y_ticks=ticks)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
