"""Find the weights of a decoder that give the fewest errors on a validation set.

Examples:
  speechssl tune checkpoint=runs/ctc data.valid=data/valid.jsonl decoder.lm=words.arpa out=weights.json
  speechssl tune checkpoint=runs/ctc data.valid=data/valid.jsonl decoder=posterior decoder.lm=units.arpa by=cer \\
      out=weights.json

Every clip goes through the model once; then the weights are searched one after the other, first coarsely, then more
finely: lm_weight and, of decoder=beam with a lexicon, word_score, of decoder=posterior unit_bonus; last prior_weight,
the power of the symbols' mean probabilities on this data, `prior`, by which those of each frame are divided. Writes
out=, which decoder.weights= takes, and prints it. Use data that is neither trained nor tested on.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from speechssl.config import build, plain
from speechssl.data.text import normalize
from speechssl.decoding.beam import BeamDecoder
from speechssl.decoding.posterior import PosteriorDecoder
from speechssl.errors import UserError
from speechssl.evaluation.testset import run_over
from speechssl.evaluation.wer import count_edits
from speechssl.inference import load_model
from speechssl.manifest import Manifest
from speechssl.recognizer import Recognizer

log = logging.getLogger("speechssl")


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
    if not decoder.ranges():
        raise UserError(
            "tune searches the weights of beam search (give decoder.lm or decoder.lexicon, with flashlight-text) or of "
            "decoder=posterior (give decoder.lm)"
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


def search(
    decoder: BeamDecoder | PosteriorDecoder, logits: list[torch.Tensor], references: list[str], *, by: str
) -> dict[str, Any]:
    """The weights that do best, with the `wer` or `cer` that they give, and the prior; of equals the smaller."""
    tried: dict[tuple[tuple[str, float], ...], float] = {}
    prior = torch.cat(logits).float().softmax(-1).mean(0).clamp(min=1e-8).tolist()

    def cost(weights: dict[str, float]) -> None:
        key = tuple((name, round(value, 3)) for name, value in weights.items())
        if key not in tried:
            decoder.set_weights(**dict(key), prior=prior)
            texts = [decoder(clip).text for clip in logits]
            tried[key] = count_edits(references, texts, characters=by == "cer").rate or 0.0
            shown = ", ".join(f"{name} {value:g}" for name, value in key)
            log.info("%s: %s %.2f %%", shown, by.upper(), 100 * tried[key])

    def best() -> dict[str, float]:
        return dict(min(tried, key=lambda key: (tried[key], *(abs(value) for _, value in key))))

    cost(decoder.weights | {"prior_weight": 0.0})
    for finely in (False, True):
        for name, (coarse, step) in decoder.ranges().items():
            now = best()[name]
            for value in (now - step, now + step) if finely else coarse:
                cost(best() | {name: value if name == "word_score" else max(value, 0.0)})
    return {**best(), by: min(tried.values()), "prior": prior}
