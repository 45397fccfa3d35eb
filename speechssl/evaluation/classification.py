"""What `speechssl evaluate` measures of a classifier of clips: who it is, and whether two are the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from speechssl import audio
from speechssl.errors import UserError
from speechssl.evaluation import speaker, verification
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
    known = [u for u in manifest if str(u.fields.get(head.label_key)) in head.labels]

    def check(utterance: Utterance) -> str | None:
        return head.check(utterance, 0) if known else has_label(utterance, head.label_key)

    done, embeddings = embed(identifier, manifest, check=check, **data)
    found = identifier.classify_all(embeddings)
    labels = np.array([str(utterance.fields[head.label_key]) for utterance in done.utterances])
    if not known:
        log.info("the checkpoint knows none of these by name, so there is no accuracy, only whether two are the same")
    metrics = {
        "accuracy": speaker.accuracy(labels, [one.label for one in found]) if known else None,
        **_verify(config, identifier, done, embeddings, labels, out, **data),
        **done.metrics(),
    }
    rows = [
        {**names(utterance), "label": label, "prediction": one.label, "score": one.score}
        for utterance, label, one in zip(done.utterances, labels.tolist(), found, strict=True)
    ]
    return metrics, rows


def has_label(utterance: Utterance, column: str) -> str | None:
    """Why a clip cannot be compared: it has no label, or is too short for a voice; else None."""
    if utterance.fields.get(column) is None:
        return f"it has no {column!r}"
    short = utterance.duration_s < audio.VOICE_S
    return f"its {utterance.duration_s:.3f} s are too short for a voice" if short else None


def embed(identifier: Identifier, manifest: Manifest, *, check: Any, **data: Any) -> tuple[Pass, np.ndarray]:
    """A pass over a manifest, and the embedding of each of its clips, float32 [clips, E].

    Raises:
        UserError: as `run_over`, or a clip is silence.
    """

    def process(batch: Batch) -> list[np.ndarray]:
        for waveform, length, utterance in zip(batch.waveforms, batch.lengths.tolist(), batch.utterances, strict=True):
            reason = audio.voiceless(waveform[:length], identifier.model.sample_rate)
            if reason:
                raise UserError(f"{utterance.audio_path}: {reason}; take it out of {manifest.path}")
        return list(identifier.embed(batch.waveforms, batch.lengths).cpu().numpy())

    done = run_over(manifest, identifier.model, process, check=check, **data)
    return done, np.stack(done.results)


def _verify(
    config: DictConfig,
    identifier: Identifier,
    done: Pass,
    embeddings: np.ndarray,
    labels: np.ndarray,
    out: Path,
    **data: Any,
) -> dict[str, Any]:
    """The figures of verification."""
    if config.trials:
        ids, paths = [u.id for u in done.utterances], [u.audio_path for u in done.utterances]
        first, second, is_target = verification.read_trials(Path(config.trials), verification.trial_names(ids, paths))
        _check_labels(config.trials, is_target, labels[first], labels[second])
    else:
        first, second, is_target = verification.draw_trials(labels)
    if config.cohort:
        cohort = Manifest(config.cohort)
        cohort.check_files()
        _, others = embed(identifier, cohort, check=lambda _: None, **data)
        scores = verification.as_norm(embeddings, first, second, others, top=config.cohort_top)
    else:
        scores = speaker.cosine_scores(embeddings, first, second)
    sides = np.stack([labels[first], labels[second]])
    figures = verification.figures(scores, is_target, sides, p_target=config.p_target)
    if figures["eer"] is not None:
        verification.det_chart(out / "det.svg", scores, is_target)
        if not config.cohort:  # `identify` compares plain cosines
            fitted = verification.calibrate(scores, is_target, p_target=config.p_target)
            write_json(out / CALIBRATION, fitted.to_dict())
    return {**figures, "score": "AS-norm" if config.cohort else "cosine"}


def _check_labels(trials: str, is_target: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    wrong = np.flatnonzero((first == second) != is_target)
    if len(wrong):
        one, other = str(first[wrong[0]]), str(second[wrong[0]])
        raise UserError(
            f"{trials} calls a pair {'the same' if is_target[wrong[0]] else 'different'} that data.test gives to "
            f"{one!r} and {other!r} ({len(wrong)} such pairs); correct one of them"
        )
