"""What `speechssl evaluate` measures of a recogniser: error rates, how sure they are, and where the errors are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from speechssl.config import build, plain
from speechssl.data.text import describe, normalize
from speechssl.errors import UserError
from speechssl.evaluation import significance, wer
from speechssl.evaluation.normalisation import Normalisation
from speechssl.evaluation.testset import Pass, names, run_over
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import SpeechModel
from speechssl.manifest import Manifest
from speechssl.recognizer import Recognizer

log = logging.getLogger("speechssl")

LENGTHS_S = (2.0, 5.0, 10.0, 20.0)  # the edges of wer_by_length


def evaluate(
    config: DictConfig, model: SpeechModel, manifest: Manifest, **data: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and a row for each clip, with a CTC head."""
    head = model.objective
    normalisation = normalisation_of(config, head)
    _check_symbols(manifest, head)
    other = _other(config.against, manifest) if config.against else None
    decoder = build(config.decoder, vocabulary=head.vocabulary)
    recognizer = Recognizer(model, decoder, window_s=config.window_s, context_s=config.context_s)
    done = run_over(
        manifest,
        model,
        lambda batch: recognizer.decode(batch.waveforms, batch.lengths),
        check=lambda utterance: "it has no `text`" if utterance.text is None else None,
        **data,
    )
    references = [_reference(head, decoder, utterance.text) for utterance in done.utterances]
    hypotheses = [transcript.text for transcript in done.results]
    if not any(hypotheses):
        log.warning("every hypothesis is empty: the checkpoint has learned no character yet; train it longer")
    num_frames = sum(transcript.num_frames for transcript in done.results)
    metrics = {
        **wer.error_rates(references, hypotheses, normalisation=normalisation),
        **done.metrics(),
        "blank_share": sum(transcript.num_blank_frames for transcript in done.results) / num_frames,
        "decoder": type(decoder).__name__,
        **_breakdown(done, references, hypotheses, normalisation),
    }
    if head.vocabulary.units == "phonemes":
        said = ([s for s in head.vocabulary.split(u.text) if s != " "] for u in done.utterances)
        metrics["per"] = wer.sequence_rate(said, (transcript.symbols() for transcript in done.results))
    if other is not None:
        theirs = [_in(other, utterance.id, config.against) for utterance in done.utterances]
        metrics["against"] = compare(references, hypotheses, theirs, normalisation=normalisation)
        metrics["against"]["file"] = str(config.against)
    rows = [
        {**names(utterance), "reference": reference, "hypothesis": transcript.text, **_alternatives(transcript)}
        for utterance, reference, transcript in zip(done.utterances, references, done.results, strict=True)
    ]
    return metrics, rows


def normalisation_of(config: DictConfig, head: CTCObjective) -> Normalisation:
    """What the config does to texts; always lower-casing where the checkpoint was trained on lower case."""
    return Normalisation(**{**plain(config.normalisation), "lowercase": config.lowercase or head.lowercase})


def compare(
    references: list[str], ours: list[str], theirs: list[str], *, normalisation: Normalisation
) -> dict[str, dict[str, Any]]:
    """For `wer` and `cer`: the difference of two systems on the same clips, see `significance.compare`."""
    references, ours, theirs = ([normalisation(text) for text in texts] for texts in (references, ours, theirs))
    found = {}
    for name, characters in (("wer", False), ("cer", True)):
        mine, other = (wer.count_edits(references, texts, characters=characters) for texts in (ours, theirs))
        found[name] = {"theirs": other.rate, **significance.compare(mine.totals, other.totals, mine.lengths)}
    return found


def _breakdown(
    done: Pass, references: list[str], hypotheses: list[str], normalisation: Normalisation
) -> dict[str, dict[str, float | None]]:
    """WER by speaker, where speakers are known, and by the clips' length."""
    edges = (0.0, *LENGTHS_S)
    labels = [f"{low:g} to {high:g} s" for low, high in zip(edges, LENGTHS_S, strict=False)]
    labels.append(f"over {LENGTHS_S[-1]:g} s")
    places = np.searchsorted(LENGTHS_S, [utterance.duration_s for utterance in done.utterances], side="left")
    options = {"normalisation": normalisation}
    rates = wer.by_group([labels[place] for place in places], references, hypotheses, **options)
    found = {"wer_by_length": {label: rates[label] for label in labels if label in rates}}
    known = [i for i, utterance in enumerate(done.utterances) if utterance.speaker is not None]
    if known:
        speakers = [done.utterances[i].speaker for i in known]
        columns = ([column[i] for i in known] for column in (references, hypotheses))
        found["wer_by_speaker"] = wer.by_group(speakers, *columns, **options)
    return found


def _reference(head: CTCObjective, decoder: Any, text: str) -> str:
    """A transcript as it is compared: in phonemes, where the decoder writes them."""
    if head.vocabulary.units != "phonemes" or decoder.has_lexicon:
        return text
    return head.vocabulary.reference(normalize(text, lowercase=head.lowercase))


def _alternatives(transcript: Any) -> dict[str, Any]:
    if len(transcript.alternatives) < 2:
        return {}
    return {"alternatives": [{"text": a.text, "score": a.score} for a in transcript.alternatives]}


def _other(path: str, manifest: Manifest) -> dict[str, str]:
    """The hypotheses of another system by clip."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        found = {str(row["id"]): str(row["hypothesis"]) for row in rows}
    except OSError as error:
        raise UserError(f"against={path} cannot be read ({error.strerror}); correct the path") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"against={path} is no hypotheses.jsonl of evaluate: its lines need `id` and `hypothesis`"
        ) from None
    if not any(utterance.id in found for utterance in manifest):
        raise UserError(f"against={path} has none of the clips of {manifest.path}: give one of the same test set")
    return found


def _in(other: dict[str, str], clip: str, path: str) -> str:
    if clip not in other:
        raise UserError(f"against={path} lacks the clip {clip}: a paired test needs the same clips")
    return other[clip]


def _check_symbols(manifest: Manifest, head: CTCObjective) -> None:
    """A warning of what the checkpoint cannot write; UserError if that is all of the references."""
    wanted: set[str] = set()
    for utterance in manifest:
        if utterance.text:
            wanted |= set(head.vocabulary.split(normalize(utterance.text, lowercase=head.lowercase)))
    wanted -= {" ", "▁"}
    outside = sorted(wanted - set(head.vocabulary.symbols))
    # Letter case can be chosen away (lowercase=true), a script cannot.
    if wanted and not {s.casefold() for s in wanted} & {s.casefold() for s in head.vocabulary.symbols}:
        raise UserError(
            f"{manifest.path} and the transcripts that the checkpoint was trained on have no {head.vocabulary.units} "
            f"in common (the checkpoint's begin {' '.join(head.vocabulary.symbols[1:9])!r}); give a test set that fits"
        )
    if outside:
        log.warning(
            "the checkpoint cannot write some %s of the references, which count as errors: %s",
            head.vocabulary.units,
            describe(outside),
        )
