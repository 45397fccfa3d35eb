"""Find the weights of beam search that give the fewest errors on a validation set.

Examples:
  speechssl tune checkpoint=runs/ctc data.valid=data/valid.jsonl decoder.lm=words.arpa out=weights.json

Every clip goes through the model once; then lm_weight, word_score (with a lexicon) and prior_weight are searched one
after the other, first coarsely, then more finely. prior_weight is the power of the symbols' mean probabilities on this
data, `prior`, by which those of each frame are divided. Writes out=, which decoder.weights= takes, and prints it. Use
data that is neither trained nor tested on.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from speechssl.config import build, plain
from speechssl.data.text import normalize
from speechssl.decoding.beam import BeamDecoder
from speechssl.errors import UserError
from speechssl.evaluation.testset import run_over
from speechssl.evaluation.wer import count_edits
from speechssl.inference import load_model
from speechssl.manifest import Manifest
from speechssl.recognizer import Recognizer

log = logging.getLogger("speechssl")

LM_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
WORD_SCORES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
PRIOR_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8)


class Weights(NamedTuple):
    """What is searched, as `BeamDecoder.set_weights` takes it."""

    lm_weight: float
    word_score: float
    prior_weight: float


def run(config: DictConfig) -> None:
    """Search as the config says."""
    if config.by not in ("wer", "cer"):
        raise UserError(f"by={config.by} must be wer or cer")
    manifest = Manifest(config.data.valid)
    manifest.check_files()
    model = load_model(config.checkpoint, device=config.trainer.device)
    recognizer = Recognizer(model, window_s=None)
    head = recognizer.model.objective
    decoder = build(config.decoder, vocabulary=head.vocabulary)
    if not isinstance(decoder, BeamDecoder) or (decoder.lm is None and not decoder.has_lexicon):
        raise UserError(
            "tune searches weights of beam search: give decoder.lm or decoder.lexicon, with flashlight-text"
        )
    options = plain(config.data)
    del options["valid"]
    done = run_over(
        manifest,
        model,
        lambda batch: recognizer.logits(batch.waveforms, batch.lengths),
        check=lambda utterance: None if utterance.text else "it has no `text`",
        **options,
    )
    references = [normalize(u.text, lowercase=head.lowercase) for u in done.utterances]
    if head.vocabulary.units == "phonemes" and not decoder.has_lexicon:
        references = [head.vocabulary.reference(text) for text in references]
    found = search(decoder, done.results, references, by=config.by)
    path = Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))


def search(decoder: BeamDecoder, logits: list[torch.Tensor], references: list[str], *, by: str) -> dict[str, Any]:
    """The weights that do best, with the `wer` or `cer` that they give, and the prior; of equals the smaller."""
    tried: dict[Weights, float] = {}
    prior = torch.cat(logits).float().softmax(-1).mean(0).clamp(min=1e-8).tolist()

    def cost(weights: Weights) -> None:
        weights = Weights(*(round(value, 3) for value in weights))
        if weights not in tried:
            decoder.set_weights(**weights._asdict(), prior=prior)
            texts = [decoder(clip).text for clip in logits]
            tried[weights] = count_edits(references, texts, characters=by == "cer").rate or 0.0
            shown = ", ".join(f"{name} {value:g}" for name, value in weights._asdict().items())
            log.info("%s: %s %.2f %%", shown, by.upper(), 100 * tried[weights])

    def best() -> Weights:
        return min(tried, key=lambda weights: (tried[weights], *map(abs, weights)))

    values = {
        "lm_weight": (LM_WEIGHTS, 0.25),
        "word_score": (WORD_SCORES, 0.25),
        "prior_weight": (PRIOR_WEIGHTS, 0.1),
    }
    if not decoder.lm:
        del values["lm_weight"]
    if not decoder.has_lexicon:
        del values["word_score"]
    cost(Weights(decoder.options["lm_weight"] if decoder.lm else 1.0, decoder.options["word_score"], 0.0))
    for finely in (False, True):
        for name, (coarse, step) in values.items():
            now = getattr(best(), name)
            for value in (now - step, now + step) if finely else coarse:
                cost(best()._replace(**{name: value if name == "word_score" else max(value, 0.0)}))
    return {**best()._asdict(), by: tried[best()], "prior": prior}
