"""Self-training: a model transcribes unlabelled audio, keeps what it is sure of, and learns from that; and again.

Examples:
  speechssl selftrain init=runs/first data.train=labelled.jsonl data.unlabelled=audio.jsonl data.valid=valid.jsonl \\
      run_dir=runs/selftrained
  speechssl selftrain init=runs/first data.train=labelled.jsonl data.unlabelled=audio.jsonl run_dir=runs/lm \\
      decoder=beam decoder.lm=words.arpa rounds=2 keep_share=0.3

Round 0 fine-tunes on the transcripts alone. Each further round transcribes the unlabelled clips with the model of the
round before (with decoder=, so that a language model can help), keeps the keep_share that it is surest of, and
fine-tunes anew from init= on these and the real transcripts, which are repeated until they make up labelled_share of
the seconds. Everything that finetune takes applies to each round. Prints a line of JSON a round; what is done is
skipped, so the same command goes on after an interruption. (Yarowsky 1995; Kahn et al. 2020; Xu et al. 2020.)
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speechssl import manifest as manifests
from speechssl.commands import finetune
from speechssl.config import build, compose, plain
from speechssl.data.text import normalize
from speechssl.decoding.transcript import Transcript
from speechssl.errors import UserError
from speechssl.evaluation.testset import run_over
from speechssl.evaluation.wer import count_edits
from speechssl.inference import load_model
from speechssl.manifest import Manifest, ManifestSet
from speechssl.recognizer import Recognizer
from speechssl.training.files import write_json
from speechssl.training.run import open_manifest
from speechssl.types import Utterance

log = logging.getLogger("speechssl")

NEEDS_WORDS = (
    "selftrain learns from words, and a model of phonemes writes none by itself: give decoder=beam with "
    "decoder.lexicon or a decoder.lm of words, and install flashlight-text"
)


def run(config: DictConfig) -> None:
    """All rounds."""
    folder = Path(config.run_dir)
    labelled, unlabelled = open_manifest(config.data.train), Manifest(config.data.unlabelled)
    if config.task.get("units") == "phonemes" and not (config.decoder.get("lm") or config.decoder.get("lexicon")):
        raise UserError(NEEDS_WORDS)  # before a round is trained
    _finetune(config, folder / "round_0", plain(config.data)["train"])
    print(json.dumps({"round": 0, **_best(folder / "round_0")}), flush=True)
    for number in range(1, config.rounds + 1):
        here = folder / f"round_{number}"
        found = pseudo_label(config, folder / f"round_{number - 1}", unlabelled, here)
        rows = mix(labelled, found["rows"], labelled_share=config.labelled_share, folder=here)
        _finetune(config, here, write_rows(here, rows, name="train"))
        print(json.dumps({"round": number, **found["figures"], **_best(here)}), flush=True)


def pseudo_label(config: DictConfig, teacher: Path, unlabelled: Manifest, here: Path) -> dict[str, Any]:
    """The clips that the teacher is surest of, as rows of a manifest in `here`, and figures about them.

    Where the unlabelled clips have a transcript after all, the figures hold the error rate of what was kept.
    """
    done_before, settings = here / "pseudo.json", _settings(config, unlabelled)
    if done_before.is_file():
        found = json.loads(done_before.read_text(encoding="utf-8"))
        _check_settings(found.get("settings", {}), settings, done_before)
        return found
    recognizer = _recognizer(config, teacher)
    head = recognizer.model.objective
    log.info("transcribing %d clips with %s", len(unlabelled), teacher)
    done = run_over(
        unlabelled,
        recognizer.model,
        lambda batch: recognizer.decode(batch.waveforms, batch.lengths),
        check=lambda utterance: None,
        batch_seconds=config.data.batch_seconds,
        skip_invalid=True,
        max_broken_share=config.data.max_broken_share,
        num_workers=0,
    )
    scored = [
        (confidence(transcript), utterance, transcript.text)
        for utterance, transcript in zip(done.utterances, done.results, strict=True)
        if transcript.text
    ]
    scored.sort(key=lambda item: (-item[0], item[1].id))
    kept = [item for item in scored[: math.ceil(config.keep_share * len(scored))] if item[0] >= config.min_confidence]
    if not kept:
        raise UserError(
            f"{teacher} is sure of none of the {len(unlabelled)} unlabelled clips: lower min_confidence, or give more "
            "transcripts or steps"
        )
    rows = [
        {**row_in(utterance, here), "id": f"pseudo-{utterance.id}", "text": text, "confidence": round(sure, 4)}
        for sure, utterance, text in kept
    ]
    figures = {
        "kept": len(kept),
        "of": len(unlabelled),
        "hours": sum(utterance.duration_s for _, utterance, _ in kept) / 3600,
        "lowest_confidence": kept[-1][0],
    }
    if all(utterance.text for _, utterance, _ in kept):
        said = [normalize(utterance.text, lowercase=head.lowercase) for _, utterance, _ in kept]
        figures["cer_of_kept"] = count_edits(said, [text for _, _, text in kept], characters=True).rate
    here.mkdir(parents=True, exist_ok=True)
    found = {"rows": rows, "figures": figures, "settings": settings}
    write_json(done_before, found)
    return found


def _recognizer(config: DictConfig, teacher: Path) -> Recognizer:
    """The teacher, whose hypotheses are words."""
    recognizer = Recognizer(load_model(teacher, device=config.trainer.device))
    vocabulary = recognizer.model.objective.vocabulary
    recognizer.decoder = build(config.decoder, vocabulary=vocabulary)
    if vocabulary.units == "phonemes" and not recognizer.decoder.has_lexicon:
        raise UserError(NEEDS_WORDS)
    return recognizer


def _settings(config: DictConfig, unlabelled: Manifest) -> dict[str, Any]:
    """What decides which clips are kept, besides the teacher."""
    decoder = plain(config.decoder)
    name = decoder.pop("_target_").split(".")[-2]  # its module is called as the option is
    return {
        "data.unlabelled": str(unlabelled.path),
        "decoder": name,
        **{f"decoder.{key}": value for key, value in decoder.items()},
        "keep_share": config.keep_share,
        "min_confidence": config.min_confidence,
    }


def _check_settings(before: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    for key, value in settings.items():
        if before.get(key) != value:
            raise UserError(
                f"{path} was made with {key}={before.get(key)}, not {value}: give that again, or another run_dir"
            )


def confidence(transcript: Transcript) -> float:
    """How sure a transcript is: the geometric mean of its symbols' probabilities."""
    values = [max(c.confidence, 1e-6) for c in transcript.characters if c.end > c.start]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else 0.0


def mix(
    labelled: Manifest | ManifestSet, pseudo: list[dict[str, Any]], *, labelled_share: float, folder: Path
) -> list[dict[str, Any]]:
    """Rows to train on: the real transcripts as often as gives them their share of the seconds, and the others once.

    Copies have names of their own, so that their masks differ; clips of two manifests may be called alike.
    """
    real_s = sum(float(x) for x in labelled.durations_s)
    other_s = sum(row["duration"] for row in pseudo)
    wanted_s = other_s * labelled_share / max(1 - labelled_share, 1e-6)
    copies = max(round(wanted_s / real_s), 1)
    rows, times = [], Counter()
    for utterance in labelled:
        row = row_in(utterance, folder)
        for _ in range(copies):
            number = times[utterance.id]
            rows.append(row | ({"id": f"{utterance.id}#{number}"} if number else {}))
            times[utterance.id] += 1
    return rows + pseudo


def write_rows(folder: Path, rows: Sequence[dict[str, Any]], *, name: str) -> str | list[str]:
    """Write the rows as one manifest or, where some are parts of shards, as two, since none may hold both."""
    parts = {
        f"{name}.jsonl": [row for row in rows if "bytes" not in row],
        f"{name}_shards.jsonl": [row for row in rows if "bytes" in row],
    }
    paths = [str(folder / file) for file, part in parts.items() if part]
    for path in paths:
        manifests.write(path, parts[Path(path).name])
    return paths if len(paths) > 1 else paths[0]


def row_in(utterance: Utterance, folder: Path) -> dict[str, Any]:
    """A clip's line in a manifest of `folder`; a URL stays as it is."""
    path = utterance.audio_path
    if isinstance(path, Path):
        path = os.path.relpath(path.resolve(), folder.resolve())
    return {**utterance.fields, "id": utterance.id, "audio_filepath": path}


def _finetune(config: DictConfig, run_dir: Path, train: str | list[str]) -> None:
    values = plain(config)
    for key in ("rounds", "keep_share", "min_confidence", "labelled_share", "decoder"):
        del values[key]
    del values["data"]["unlabelled"]
    values["run_dir"], values["data"]["train"] = str(run_dir), train
    # What fine-tuning takes besides has its default.
    defaults = plain(compose("finetune", ["run_dir=-", "init=-", "data.train=-"]))
    values["data"] = defaults["data"] | values["data"]
    finetune.run(OmegaConf.create(defaults | values))


def _best(run_dir: Path) -> dict[str, Any]:
    """The lowest error rates of a run's validations."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "valid_cer" in row]
    if not rows:
        return {}
    best = min(rows, key=lambda row: row["valid_cer"])
    return {"valid_cer": best["valid_cer"], "valid_wer": best["valid_wer"]}
