"""Measure a fine-tuned checkpoint on a test set: WER and CER, or accuracy, EER and minDCF.

Examples:
  speechssl evaluate checkpoint=runs/ctc data.test=data/test.jsonl out=runs/ctc/test
  speechssl evaluate checkpoint=runs/ctc data.test=data/test.jsonl out=runs/lm decoder=beam decoder.lm=words.arpa
  speechssl evaluate checkpoint=runs/b data.test=data/test.jsonl out=runs/b/test against=runs/a/test/hypotheses.jsonl
  speechssl evaluate checkpoint=runs/speaker data.test=data/test.jsonl out=runs/speaker/test
  speechssl evaluate checkpoint=runs/speaker data.test=voxceleb1.jsonl trials=veri_test.txt cohort=other.jsonl out=veri

Writes out/metrics.json and, a line for each clip, out/hypotheses.jsonl (after task=ctc) or out/scores.jsonl
(after task=speaker or task=classify), or both (after task=ctc_speaker, with a speaker-attributed WER, in which a word
is right only where its speaker is, too); prints the main figures as one line of JSON. rtf is wall seconds per
audio second, from before the first clip is read until after the last result; loading the model is not
counted. EER and minDCF compare the test clips with each other by the cosine of their embeddings: all pairs,
or 1,000,000 drawn ones where there are more, or those of trials= in VoxCeleb's format; cohort= makes scores
comparable by AS-norm. The test speakers may be others than those of the training: then there is no accuracy.
calibration.json is what `identify` needs for a probability, det.svg shows both errors at every threshold.

With a CTC head: WER and CER with 95 % intervals (bootstrap over clips), edits, WER by speaker and by length of the
clip, the most frequent confusions, and what was done to the texts before (lowercase=, normalisation.punctuation=,
normalisation.accents=). against=OTHER/hypotheses.jsonl tests the difference to another system on the same clips.
Long clips are recognised as by transcribe.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from speechssl import cpu
from speechssl import manifest as manifests
from speechssl.config import plain
from speechssl.errors import UserError
from speechssl.evaluation import classification, recognition, wer
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.speaker import ClassifyObjective
from speechssl.inference import load_model
from speechssl.manifest import Manifest
from speechssl.training.files import replace_text

log = logging.getLogger("speechssl")


def run(config: DictConfig) -> None:
    """Evaluate as the config says."""
    manifest = Manifest(config.data.test)
    manifest.check_files()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(config.checkpoint, device=config.trainer.device)
    cpu.tune(model.device)
    recognizing, classifying = model.with_head(CTCObjective), model.with_head(ClassifyObjective)
    if recognizing is None and classifying is None:
        raise UserError(
            f"the checkpoint {model.source} has no head that could be evaluated: give it one with `speechssl "
            f"finetune init={model.source}` and task=ctc or task=speaker"
        )
    metrics, main, said, who = {}, (), [], []
    if classifying:
        metrics, who = classification.evaluate(config, classifying, manifest, out, **_data_options(config))
        main = ("accuracy", "eer", "min_dcf")
        manifests.write(out / "scores.jsonl", who)
    if recognizing:
        more, said = recognition.evaluate(config, recognizing, manifest, **_data_options(config))
        metrics, main = metrics | more, ("wer", "cer", *main)
        manifests.write(out / "hypotheses.jsonl", said)
    if recognizing and classifying:
        normalisation = recognition.normalisation_of(config, recognizing.objective)
        known = metrics["accuracy"] is not None  # else no word could be right
        attributed = wer.speaker_attributed(said, who, normalisation=normalisation) if known else None
        metrics["speaker_attributed_wer"] = attributed
        main = ("speaker_attributed_wer", *main)
    metrics["checkpoint"] = str(model.source.resolve())
    replace_text(out / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    shown = (*main, "num_utterances", "audio_seconds", "rtf")
    print(json.dumps({key: metrics[key] for key in shown}))


def _data_options(config: DictConfig) -> dict[str, Any]:
    options = plain(config.data)
    del options["test"]
    return options
