"""What `speechssl evaluate` measures of a classifier of clips: who it is, and whether two are the same."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from speechssl import audio
from speechssl.enrolment import fingerprint
from speechssl.errors import UserError
from speechssl.evaluation import speaker, verification
from speechssl.evaluation.cohort import Cohort, as_norm
from speechssl.evaluation.testset import Pass, names, run_over
from speechssl.identifier import Identifier
from speechssl.inference import SpeechModel
from speechssl.manifest import Manifest
from speechssl.training.files import write_json
from speechssl.types import Batch, Utterance

log = logging.getLogger("speechssl")

CALIBRATION = "calibration.json"


def evaluate(
    config: DictConfig, model: SpeechModel, manifest: Manifest, out: Path, **data: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and a row for each clip; writes calibration.json and det.svg where there are trials of both kinds."""
    head, identifier = model.objective, Identifier(model)
    known = [u for u in manifest if u.label(head.label_key) in head.labels]

    def check(utterance: Utterance) -> str | None:
        return head.check(utterance, 0) if known else has_label(utterance, head.label_key)

    trials = _trials(config, manifest, head.label_key)
    cohort = open_cohort(config.cohort, beside={"data.test": manifest}, column=head.label_key)
    done, embeddings = embed(identifier, manifest, check=check, **data)
    found = identifier.classify_all(embeddings)
    labels = np.array([utterance.label(head.label_key) for utterance in done.utterances])
    if not known:
        log.info("the checkpoint knows none of these by name, so there is no accuracy, only whether two are the same")
    metrics = {
        "accuracy": speaker.accuracy(labels, [one.label for one in found]) if known else None,
        **_verify(config, identifier, done, embeddings, labels, trials, cohort, out, **data),
        **done.metrics(),
    }
    rows = [
        {**names(utterance), "label": label, "prediction": one.label, "score": one.score}
        for utterance, label, one in zip(done.utterances, labels.tolist(), found, strict=True)
    ]
    return metrics, rows


def has_label(utterance: Utterance, column: str) -> str | None:
    """Why a clip cannot be compared: it has no label, or is too short for a voice; else None."""
    if utterance.label(column) is None:
        return f"it has no {column!r}"
    short = utterance.duration_s < audio.VOICE_S
    return f"its {utterance.duration_s:.3f} s are too short for a voice" if short else None


def embed(identifier: Identifier, manifest: Manifest, *, check: Any, **data: Any) -> tuple[Pass, np.ndarray]:
    """A pass over a manifest, and the embedding of each of its clips, float32 [clips, E].

    Raises:
        UserError: as `run_over`; silence counts as a clip that cannot be read.
    """

    def process(batch: Batch) -> list[np.ndarray]:
        return list(identifier.embed(batch.waveforms, batch.lengths).cpu().numpy())

    done = run_over(manifest, identifier.model, process, check=check, **data)
    return done, np.stack(done.results)


def _verify(
    config: DictConfig,
    identifier: Identifier,
    done: Pass,
    embeddings: np.ndarray,
    labels: np.ndarray,
    trials: list[tuple[str, str, bool]] | None,
    cohort: Manifest | None,
    out: Path,
    **data: Any,
) -> dict[str, Any]:
    """The figures of verification."""
    if trials is None:
        first, second, is_target = verification.draw_trials(labels)
    else:
        places = {utterance.id: place for place, utterance in enumerate(done.utterances)}
        kept = [x for x in trials if x[0] in places and x[1] in places]
        if len(kept) < len(trials):
            log.warning("%d of %d trials left out, with their clips", len(trials) - len(kept), len(trials))
        first, second = (np.array([places[x[side]] for x in kept], dtype=np.int64) for side in (0, 1))
        is_target = np.array([x[2] for x in kept], dtype=bool)
    scores = speaker.cosine_scores(embeddings, first, second)
    others = cohort_of(identifier, cohort, top=config.cohort_top, **data) if cohort else None
    if others:
        statistics = others.statistics(embeddings)
        scores = as_norm(scores, statistics[:, first], statistics[:, second])
    sides = np.stack([labels[first], labels[second]])
    figures = verification.figures(scores, is_target, sides, p_target=config.p_target)
    if figures["eer"] is not None:
        verification.det_chart(out / "det.svg", scores, is_target)
        fitted = verification.calibrate(scores, is_target, p_target=config.p_target)
        fitted = replace(
            fitted, fingerprint=fingerprint(identifier.model), cohort_top=config.cohort_top if others else 0
        )
        write_json(out / CALIBRATION, fitted.to_dict())
        if others:
            others.save(out)
        if fitted.doubt:
            log.warning("`identify` with this calibration: %s", fitted.doubt)
    return {**figures, "score": "AS-norm" if cohort else "cosine"}


def cohort_of(identifier: Identifier, manifest: Manifest, *, top: int, **data: Any) -> Cohort:
    """The cohort of a manifest's clips, whose labels are not asked for."""
    _, embeddings = embed(identifier, manifest, check=lambda _: None, **data)
    return Cohort.of(embeddings, top=top)


def _trials(config: DictConfig, manifest: Manifest, column: str) -> list[tuple[str, str, bool]] | None:
    """The pairs of trials= by the ids of their clips, and whether they are alike; None where there is no list.

    Raises:
        UserError: as `verification.read_trials`, or the list and the manifest disagree.
    """
    if not config.trials:
        return None
    clips = list(manifest)
    names = verification.trial_names([u.id for u in clips], [u.audio_path for u in clips])
    pairs = zip(*verification.read_trials(Path(config.trials), names), strict=True)
    found = [(clips[i], clips[j], bool(alike)) for i, j, alike in pairs]
    labelled = [(one.label(column), other.label(column), alike) for one, other, alike in found]
    wrong = [(a, b, alike) for a, b, alike in labelled if None not in (a, b) and (a == b) != alike]
    if wrong:
        one, other, alike = wrong[0]
        raise UserError(
            f"{config.trials} calls a pair {'the same' if alike else 'different'} that data.test gives to {one!r} and "
            f"{other!r} ({len(wrong)} such pairs); correct one of them"
        )
    return [(one.id, other.id, alike) for one, other, alike in found]


def open_cohort(path: str | None, *, beside: dict[str, Manifest], column: str) -> Manifest | None:
    """The manifest of cohort=, whose labels must not be in the one `beside` it, given by its option; None without."""
    if not path:
        return None
    cohort = Manifest(path)
    cohort.check_files()
    check_apart({**beside, "cohort": cohort}, column)
    return cohort


def check_apart(manifests: dict[str, Manifest], column: str) -> None:
    """UserError if two manifests, given by the name of their option, have a label in common."""
    (one, first), (other, second) = manifests.items()
    common = sorted({u.label(column) for u in first} & {u.label(column) for u in second} - {None})
    if common:
        raise UserError(
            f"{one} and {other} must have no {column} in common, and {common[0]!r} is in both ({len(common)} in all); "
            f"take them out of {second.path}"
        )
