"""Build an n-gram language model for decoding from a text: interpolated modified Kneser-Ney, written as ARPA.

Examples:
  speechssl lm text=book.txt out=words.arpa
  speechssl lm text=data/train.jsonl order=3 lowercase=true out=words.arpa
  speechssl lm text=data/train.jsonl checkpoint=runs/ctc order=6 out=units.arpa

text= is a text file with a sentence a line, or a manifest, whose transcripts it takes. Without checkpoint= the model is
of words, and decoding with it writes only words of it. With checkpoint= it is of that model's own units (characters,
BPE or phonemes), and decoding with it can write any word, which suits languages with many forms or no fixed spelling.
Prints a line of JSON: sentences, tokens and n-grams of each order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from speechssl.data.text import Vocabulary, normalize
from speechssl.decoding.common import token_names
from speechssl.decoding.ngram import estimate
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import load_model
from speechssl.manifest import Manifest

log = logging.getLogger("speechssl")


def run(config: DictConfig) -> None:
    """Estimate and write as the config says."""
    if config.order < 2:
        raise UserError(f"order={config.order} must be 2 or more: the decoder takes no model without history")
    texts = [text for text in _texts(config.text) if text]
    if not texts:
        raise UserError(f"text={config.text} has no sentence in it; give a text file, or a manifest with transcripts")
    vocabulary, lowercase = None, config.lowercase
    if config.checkpoint is not None:
        recognizer = load_model(config.checkpoint, device="cpu").with_head(CTCObjective)
        if recognizer is None:
            raise UserError(
                f"checkpoint={config.checkpoint} has no CTC head, so it has no units; leave it out for words"
            )
        vocabulary = recognizer.objective.vocabulary
        lowercase = lowercase or recognizer.objective.lowercase
    sentences = [_tokens(normalize(text, lowercase=lowercase), vocabulary) for text in texts]
    kept = [sentence for sentence in sentences if sentence]
    if not kept:
        raise UserError(
            f"text={config.text} and the transcripts that {config.checkpoint} was trained on have no characters in "
            "common: no sentence can be written in its units"
        )
    if len(kept) < len(texts):
        log.warning(
            "%d of %d sentences cannot be written in the checkpoint's units; left out",
            len(texts) - len(kept),
            len(texts),
        )
    model = estimate(kept, order=config.order)
    model.write(config.out)
    sizes = [len(grams) for grams, _, _ in model.orders]
    print(json.dumps({"sentences": len(kept), "tokens": sum(map(len, kept)), "ngrams": sizes, "out": config.out}))


def _texts(path: str) -> Iterator[str]:
    """The sentences of a text file or a manifest, normalised."""
    if path.endswith(".jsonl"):
        yield from (normalize(utterance.text or "") for utterance in Manifest(path))
        return
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            yield from (normalize(line) for line in file)
    except OSError as error:
        raise UserError(f"text={path} cannot be read ({error.strerror}); correct the path") from None
    except UnicodeDecodeError:
        raise UserError(f"text={path} is no text in UTF-8; save it as such") from None


def _tokens(text: str, vocabulary: Vocabulary | None) -> list[str]:
    """Words, or the vocabulary's units; nothing where it lacks one."""
    if vocabulary is None:
        return text.split()
    return [] if vocabulary.outside(text) else token_names(vocabulary.split(text))
