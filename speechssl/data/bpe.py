"""Byte-pair encoding of words (Sennrich et al. 2016): trained by sentencepiece, encoded from the pieces alone.

A piece's place says when it was merged, so the vocabulary in a checkpoint is all that encoding needs, and whoever uses
a model needs no sentencepiece.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise

from speechssl.errors import UserError

SPACE = "▁"  # at the beginning of a word's first piece


def train(texts: Sequence[str], *, size: int) -> list[str]:
    """At most `size` pieces of normalised texts: their characters and the space, then the merges in their order.

    Raises:
        UserError: sentencepiece is not installed, or there are more characters than `size`.
    """
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "task.units=bpe is trained by sentencepiece, which is not installed: pip install sentencepiece"
        ) from None
    characters = sorted({character for text in texts for character in text if character != " "} | {SPACE})
    if size < len(characters):
        raise UserError(
            f"task.bpe_size={size} is less than the {len(characters)} characters of the transcripts, the space "
            "included: give more"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size + 1,  # "<unk>", which it must have, is not one of ours
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"sentencepiece cannot train on the transcripts ({error}); use task.units=characters") from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [trained.id_to_piece(i) for i in range(1, trained.get_piece_size())]
    # In the order of their scores, merges come first; characters that every merge swallowed are kept all the same.
    return characters + [piece for piece in pieces if len(piece) > 1]


def split(text: str, places: Mapping[str, int]) -> list[str]:
    """The pieces of a normalised text; a character without a place stays one.

    Neighbours whose union has the earliest place are merged, the leftmost first, until none has one.
    """
    pieces = []
    for word in text.split(" ") if text else []:
        parts = list(SPACE + word)
        while len(parts) > 1:
            ranks = [places.get(a + b, len(places)) for a, b in pairwise(parts)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(places):
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        pieces += parts
    return pieces
