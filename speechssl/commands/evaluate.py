"""Measure a fine-tuned checkpoint on a test set: WER and CER, or accuracy, EER and minDCF.

Examples:
  speechssl evaluate checkpoint=runs/ctc data.test=data/test.jsonl out=runs/ctc/test
  speechssl evaluate checkpoint=runs/speaker data.test=data/test.jsonl out=runs/speaker/test

Writes out/metrics.json and, a line for each clip, out/hypotheses.jsonl (after task=ctc) or out/scores.jsonl
(after task=speaker or task=classify); prints the main figures as one line of JSON. rtf is wall seconds per
audio second, from before the first clip is read until after the last result; loading the model is not
counted. EER and minDCF compare the test clips with each other by the cosine of their embeddings: all pairs,
or 1,000,000 drawn ones where there are more. With a CTC head, clips longer than window_s are recognised in windows,
as by transcribe; a small window_s measures what that costs.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from speechssl import manifest as manifests
from speechssl.config import build, plain
from speechssl.data.text import describe, normalize
from speechssl.errors import UserError
from speechssl.evaluation import speaker, wer
from speechssl.evaluation.testset import run_over
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.speaker import ClassifyObjective
from speechssl.identifier import Identifier
from speechssl.inference import SpeechModel, load_model
from speechssl.manifest import Manifest
from speechssl.recognizer import Recognizer
from speechssl.types import Batch, Utterance

log = logging.getLogger("speechssl")

MAX_TRIALS = 1_000_000


def run(config: DictConfig) -> None:
    """Evaluate as the config says."""
    manifest = Manifest(config.data.test)
    manifest.check_files()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(config.checkpoint, device=config.trainer.device)
    if isinstance(model.objective, CTCObjective):
        name, main = "hypotheses.jsonl", ("wer", "cer")
        metrics, rows = evaluate_recognition(config, model, manifest)
    elif isinstance(model.objective, ClassifyObjective):
        name, main = "scores.jsonl", ("accuracy", "eer", "min_dcf")
        metrics, rows = evaluate_classification(config, model, manifest)
    else:
        raise UserError(
            f"the checkpoint {model.source} has no head that could be evaluated: give it one with `speechssl "
            f"finetune init={model.source}` and task=ctc or task=speaker"
        )
    metrics["checkpoint"] = str(model.source.resolve())
    manifests.write(out / name, rows)
    _write_json(out / "metrics.json", metrics)
    shown = (*main, "num_utterances", "audio_seconds", "rtf")
    print(json.dumps({key: metrics[key] for key in shown}))


def evaluate_recognition(
    config: DictConfig, model: SpeechModel, manifest: Manifest
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and a row for each clip, with a CTC head."""
    decoder = build(config.decoder, vocabulary=model.objective.vocabulary)
    recognizer = Recognizer(model, decoder, window_s=config.window_s, context_s=config.context_s)
    lowercase = config.lowercase or model.objective.lowercase
    done = run_over(
        manifest,
        model,
        lambda batch: recognizer.decode(batch.waveforms, batch.lengths),
        check=lambda utterance: "it has no `text`" if utterance.text is None else None,
        **_data_options(config),
    )
    references = [utterance.text for utterance in done.utterances]
    hypotheses = [transcript.text for transcript in done.results]
    _warn_of_unknown_characters(references, model.objective, lowercase=lowercase)
    if not any(hypotheses):
        log.warning("every hypothesis is empty: the checkpoint has learned no character yet; train it longer")
    num_frames = sum(transcript.num_frames for transcript in done.results)
    metrics = {
        **wer.error_rates(references, hypotheses, lowercase=lowercase),
        **done.metrics(),
        "blank_share": sum(transcript.num_blank_frames for transcript in done.results) / num_frames,
    }
    speakers = [utterance.speaker for utterance in done.utterances]
    known = [i for i, name in enumerate(speakers) if name is not None]
    if known:
        columns = ([column[i] for i in known] for column in (speakers, references, hypotheses))
        metrics["wer_by_speaker"] = wer.by_group(*columns, lowercase=lowercase)
    rows = [
        {**_names(utterance), "reference": reference, "hypothesis": hypothesis}
        for utterance, reference, hypothesis in zip(done.utterances, references, hypotheses, strict=True)
    ]
    return metrics, rows


def evaluate_classification(
    config: DictConfig, model: SpeechModel, manifest: Manifest
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and a row for each clip, with a classifier."""
    identifier = Identifier(model)

    def process(batch: Batch) -> list[tuple[np.ndarray, Any]]:
        embeddings = identifier.embed(batch.waveforms, batch.lengths)
        return list(zip(embeddings.cpu().numpy(), identifier.classify(embeddings), strict=True))

    done = run_over(
        manifest,
        model,
        process,
        check=lambda utterance: model.objective.check(utterance, 0),
        **_data_options(config),
    )
    embeddings, found = zip(*done.results, strict=True)
    labels = [str(utterance.fields[model.objective.label_key]) for utterance in done.utterances]
    metrics = {
        "accuracy": speaker.accuracy(labels, [one.label for one in found]),
        **verification(np.stack(embeddings), np.array(labels)),
        **done.metrics(),
    }
    rows = [
        {**_names(utterance), "label": label, "prediction": one.label, "score": one.score}
        for utterance, label, one in zip(done.utterances, labels, found, strict=True)
    ]
    return metrics, rows


def verification(embeddings: np.ndarray, labels: np.ndarray, *, max_trials: int = MAX_TRIALS) -> dict[str, Any]:
    """EER and minDCF of telling pairs of clips with one label from pairs with two.

    Args:
        embeddings: [clips, E].
        labels: [clips].
        max_trials: bound on the pairs; see `speaker.trial_pairs`.

    Returns:
        `eer` and `min_dcf`, None (and a warning) where only one kind of pair exists; `num_trials` and
        `num_target_trials`.
    """
    first, second = speaker.trial_pairs(len(labels), max_trials=max_trials, rng=np.random.default_rng(0))
    is_target = labels[first] == labels[second]
    counts = {"num_trials": len(is_target), "num_target_trials": int(is_target.sum())}
    if is_target.all() or not is_target.any():
        log.warning("no EER and minDCF: they need two test clips with the same label, and one with another")
        return {"eer": None, "min_dcf": None, **counts}
    scores = speaker.cosine_scores(embeddings, first, second)
    return {"eer": speaker.eer(scores, is_target), "min_dcf": speaker.min_dcf(scores, is_target), **counts}


def _data_options(config: DictConfig) -> dict[str, Any]:
    options = plain(config.data)
    del options["test"]
    return options


def _warn_of_unknown_characters(references: list[str], head: CTCObjective, *, lowercase: bool) -> None:
    texts = [normalize(text, lowercase=lowercase) for text in references]
    outside = sorted({character for text in texts for character in head.vocabulary.outside(text)})
    if outside:
        log.warning(
            "the checkpoint cannot write some characters of the references, which count as errors: %s",
            describe(outside),
        )


def _names(utterance: Utterance) -> dict[str, str]:
    return {"id": utterance.id, "audio_filepath": str(utterance.audio_path)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all: into a neighbour file that then takes its name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
