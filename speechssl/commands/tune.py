"""Find the weights of beam search that give the fewest errors on a validation set.

Examples:
  speechssl tune checkpoint=runs/ctc data.valid=data/valid.jsonl decoder.lm=words.arpa out=weights.json

Every clip goes through the model once; then lm_weight and, with a lexicon, word_score are searched one after the other,
first coarsely, then more finely. Writes out=, which decoder.weights= takes, and prints it. Use data that is neither
trained nor tested on.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

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


def search(decoder: BeamDecoder, logits: list[torch.Tensor], references: list[str], *, by: str) -> dict[str, float]:
    """The best `lm_weight` and `word_score`, with the `wer` or `cer` that they give; of equals the smaller."""
    tried: dict[tuple[float, float], float] = {}

    def cost(lm_weight: float, word_score: float) -> float:
        pair = round(lm_weight, 3), round(word_score, 3)
        if pair not in tried:
            decoder.set_weights(lm_weight=pair[0], word_score=pair[1])
            texts = [decoder(clip).text for clip in logits]
            tried[pair] = count_edits(references, texts, characters=by == "cer").rate or 0.0
            log.info("lm_weight %g, word_score %g: %s %.2f %%", *pair, by.upper(), 100 * tried[pair])
        return tried[pair]

    def best() -> tuple[float, float]:
        return min(tried, key=lambda pair: (tried[pair], abs(pair[0]), abs(pair[1])))

    cost(decoder.options["lm_weight"] if decoder.lm else 1.0, decoder.options["word_score"])
    for width in (1.0, 0.25):
        if decoder.lm:
            for weight in LM_WEIGHTS if width == 1.0 else _around(best()[0], width):
                cost(max(weight, 0.0), best()[1])
        if decoder.has_lexicon:
            for score in WORD_SCORES if width == 1.0 else _around(best()[1], width):
                cost(best()[0], score)
    lm_weight, word_score = best()
    return {"lm_weight": lm_weight, "word_score": word_score, by: tried[best()]}


def _around(value: float, width: float) -> list[float]:
    return [value - width, value + width]
