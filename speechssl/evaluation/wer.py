"""Word and character error rates over a whole test set.

The rate of a set is the sum of its edits over the sum of its reference words (not the mean of the clips'
rates). Alignments are jiwer's. References and hypotheses are normalised alike: see normalisation.py.

A clip with an empty reference counts: every word recognised in it is an insertion. Where no reference of the
set holds a word, the rate is undefined: None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np

from speechssl.evaluation import significance
from speechssl.evaluation.normalisation import Normalisation

NUM_CONFUSIONS = 20


@dataclass(frozen=True)
class Edits:
    """Edits of each clip, in words or characters.

    Attributes:
        substitutions, deletions, insertions, lengths: int64 [clips]; lengths are the references'.
        confusions: how often each (reference, hypothesis) pair was substituted, and ("", word) inserted, (word, "")
            deleted.
    """

    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray
    lengths: np.ndarray
    confusions: Counter

    @property
    def totals(self) -> np.ndarray:
        """int64 [clips]: all edits of each clip."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Edits over reference length; None where the references are empty."""
        return float(self.totals.sum() / self.lengths.sum()) if self.lengths.sum() else None

    def of(self, clips: Sequence[int]) -> float | None:
        """The rate of some of the clips."""
        length = self.lengths[clips].sum()
        return float(self.totals[clips].sum() / length) if length else None


def count_edits(references: Sequence[str], hypotheses: Sequence[str], *, characters: bool = False) -> Edits:
    """The edits of normalised texts, clip by clip."""
    assert len(references) == len(hypotheses), (len(references), len(hypotheses))
    output = (jiwer.process_characters if characters else jiwer.process_words)(list(references), list(hypotheses))
    counts = {"substitute": [], "delete": [], "insert": []}
    confusions: Counter = Counter()
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        here = Counter()
        for chunk in chunks:
            if chunk.type == "equal":
                continue
            was = reference[chunk.ref_start_idx : chunk.ref_end_idx] or [""] * len(
                hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            )
            became = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx] or [""] * len(was)
            confusions.update(zip(was, became, strict=True))
            here[chunk.type] += len(was)
        for name, values in counts.items():
            values.append(here[name])
    columns = (np.array(counts[name], dtype=np.int64) for name in ("substitute", "delete", "insert"))
    return Edits(*columns, np.array([len(r) for r in output.references], dtype=np.int64), confusions)


def error_rates(
    references: Sequence[str], hypotheses: Sequence[str], *, normalisation: Normalisation | None = None
) -> dict[str, Any]:
    """WER and CER of a set of clips.

    Args:
        references: what was said, one text a clip.
        hypotheses: what was recognised, in the same order.
        normalisation: what is done to both first.

    Returns:
        `wer` and `cer` (fractions, can exceed 1; the space counts as a character), each with its 95 % interval
        `wer_interval`, `cer_interval` by a bootstrap over clips (None for a single clip); `substitutions`, `deletions`,
        `insertions` and `num_words` (of the reference) for words; `confusions`, the most frequent of words, and
        `character_confusions`: [reference, hypothesis, count], "" where one was inserted or deleted; `num_utterances`,
        and `normalisation`, in plain words.
    """
    normalisation = normalisation or Normalisation()
    references, hypotheses = ([normalisation(text) for text in texts] for texts in (references, hypotheses))
    words = count_edits(references, hypotheses)
    characters = count_edits(references, hypotheses, characters=True)
    return {
        "wer": words.rate,
        "wer_interval": significance.interval(words.totals, words.lengths),
        "cer": characters.rate,
        "cer_interval": significance.interval(characters.totals, characters.lengths),
        "substitutions": int(words.substitutions.sum()),
        "deletions": int(words.deletions.sum()),
        "insertions": int(words.insertions.sum()),
        "num_words": int(words.lengths.sum()),
        "num_utterances": len(references),
        "normalisation": str(normalisation),
        "confusions": _most(words.confusions),
        "character_confusions": _most(characters.confusions),
    }


def by_group(
    groups: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    normalisation: Normalisation | None = None,
) -> dict[str, float | None]:
    """WER of each group of clips (each speaker's, say), sorted by name; `groups` has one name a clip."""
    normalisation = normalisation or Normalisation()
    edits = count_edits([normalisation(text) for text in references], [normalisation(text) for text in hypotheses])
    clips: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        clips.setdefault(group, []).append(i)
    return {group: edits.of(clips[group]) for group in sorted(clips)}


def speaker_attributed(
    said: Sequence[Mapping[str, str]],
    who: Sequence[Mapping[str, str]],
    *,
    normalisation: Normalisation | None = None,
) -> float | None:
    """WER in which a word counts as right only where its clip's speaker is, too.

    Args:
        said: rows with `id`, `reference` and `hypothesis`.
        who: rows with `id`, `label` and `prediction`; clips that are not in both are left out.
        normalisation: what is done to the texts first.

    Returns:
        Edits, and in clips with a wrong speaker also the words that were right, over words; None without any.
    """
    normalisation = normalisation or Normalisation()
    is_right = {row["id"]: row["label"] == row["prediction"] for row in who}
    errors = num_words = 0
    for right in (True, False):
        rows = [row for row in said if is_right.get(row["id"]) is right]
        if rows:
            edits = count_edits(*([normalisation(row[key]) for row in rows] for key in ("reference", "hypothesis")))
            hits = edits.lengths - edits.substitutions - edits.deletions
            errors += int(edits.totals.sum() + (0 if right else hits.sum()))
            num_words += int(edits.lengths.sum())
    return errors / num_words if num_words else None


def sequence_rate(references: Iterable[Sequence[Hashable]], hypotheses: Iterable[Sequence[Hashable]]) -> float | None:
    """Edits over reference length of any symbols, phonemes for example."""
    from rapidfuzz.distance import Levenshtein

    pairs = list(zip(references, hypotheses, strict=True))
    length = sum(len(reference) for reference, _ in pairs)
    return sum(Levenshtein.distance(a, b) for a, b in pairs) / length if length else None


def _most(confusions: Counter) -> list[list]:
    """[reference, hypothesis, count] of the most frequent, equally frequent ones in order of spelling."""
    ranking = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    return [[*pair, count] for pair, count in ranking[:NUM_CONFUSIONS]]
