"""Word and character error rates over a whole test set.

The rate of a set is the sum of its edits over the sum of its reference words (not the mean of the clips'
rates). Edit distances are jiwer's. References and hypotheses are normalised alike: see `NORMALISATION`.

A clip with an empty reference counts: every word recognised in it is an insertion. Where no reference of the
set holds a word, the rate is undefined: None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jiwer

from speechssl.data.text import normalize

NORMALISATION = "Unicode NFC, whitespace collapsed, case kept, punctuation kept"
NORMALISATION_LOWERCASE = "Unicode NFC, whitespace collapsed, lower-cased, punctuation kept"


def error_rates(references: Sequence[str], hypotheses: Sequence[str], *, lowercase: bool = False) -> dict[str, Any]:
    """WER and CER of a set of clips.

    Args:
        references: what was said, one text a clip.
        hypotheses: what was recognised, in the same order.
        lowercase: whether both are lower-cased first.

    Returns:
        `wer` and `cer` (fractions, can exceed 1; the space counts as a character), `substitutions`,
        `deletions`, `insertions` and `num_words` (of the reference) for words, `num_utterances`, and
        `normalisation`, in plain words.
    """
    assert len(references) == len(hypotheses), (len(references), len(hypotheses))
    references = [normalize(text, lowercase=lowercase) for text in references]
    hypotheses = [normalize(text, lowercase=lowercase) for text in hypotheses]
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    return {
        "wer": _rate(words),
        "cer": _rate(characters),
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "num_words": words.hits + words.substitutions + words.deletions,
        "num_utterances": len(references),
        "normalisation": NORMALISATION_LOWERCASE if lowercase else NORMALISATION,
    }


def by_group(
    groups: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], *, lowercase: bool = False
) -> dict[str, float | None]:
    """WER of each group of clips (each speaker's, say), sorted by name; `groups` has one name a clip."""
    clips: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        clips.setdefault(group, []).append(i)
    return {
        group: error_rates(
            [references[i] for i in clips[group]], [hypotheses[i] for i in clips[group]], lowercase=lowercase
        )["wer"]
        for group in sorted(clips)
    }


def _rate(output: jiwer.WordOutput | jiwer.CharacterOutput) -> float | None:
    num_reference = output.hits + output.substitutions + output.deletions
    if num_reference == 0:
        return None
    return (output.substitutions + output.deletions + output.insertions) / num_reference
