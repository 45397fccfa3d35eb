"""n-gram language models: interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3) written as ARPA.

No tool that estimates n-grams installs by pip alone, so this is one: counts are arrays sorted by numpy, some 200 bytes
of memory for each token and order. It suits texts of up to some ten million words; use KenLM's lmplz beyond that, whose
ARPA and binary files are read as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TextIO

import numpy as np

from speechssl.errors import UserError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
RESERVED = (BEGIN, END, UNKNOWN)
# For counts so few that their statistics say nothing, the discounts that KenLM falls back to.
FALLBACK = (0.5, 1.0, 1.5)


@dataclass
class _Order:
    """The distinct n-grams of one length.

    Attributes:
        ids: [positions] which of them begins at each position of the text, -1 where none fits.
        words: int64 [n] last word of each.
        prefix, suffix: int64 [n] the n-gram one shorter without its last word, and without its first.
        counts: int64 [n] adjusted counts.
    """

    ids: np.ndarray
    words: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    counts: np.ndarray


@dataclass
class NGram:
    """An estimated model.

    Attributes:
        vocabulary: the words; begin, end and unknown first.
        orders: for each length (int64 [n, length] words, log10 probabilities [n], log10 back-off weights [n]).
    """

    vocabulary: list[str]
    orders: list[tuple[np.ndarray, np.ndarray, np.ndarray]]

    def write(self, path: str | os.PathLike[str]) -> None:
        """As ARPA, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                self._write(file)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, file: TextIO) -> None:
        file.write("\\data\\\n")
        file.writelines(f"ngram {i}={len(grams)}\n" for i, (grams, _, _) in enumerate(self.orders, start=1))
        for i, (grams, log_probabilities, back_offs) in enumerate(self.orders, start=1):
            file.write(f"\n\\{i}-grams:\n")
            for gram, probability, back_off in zip(
                grams.tolist(), log_probabilities.tolist(), back_offs.tolist(), strict=True
            ):
                words = " ".join(self.vocabulary[word] for word in gram)
                end = f"\t{back_off:.6f}" if i < len(self.orders) else ""
                file.write(f"{probability:.6f}\t{words}{end}\n")
        file.write("\n\\end\\\n")


def estimate(sentences: Iterable[Sequence[str]], *, order: int) -> NGram:
    """The model of sentences, each a sequence of words (or other tokens).

    Args:
        sentences: the text; empty sentences are left out.
        order: length of the longest n-grams.

    Raises:
        UserError: there is no word, or a word is one of those that ARPA reserves.
    """
    index = {word: i for i, word in enumerate(RESERVED)}
    text: list[int] = []
    for sentence in sentences:
        if sentence:
            text += [0, *(index.setdefault(word, len(index)) for word in sentence), 1]
            if any(word in RESERVED for word in sentence):
                raise UserError(f"the text of the language model holds one of {', '.join(RESERVED)}: take it out")
    if not text:
        raise UserError("the text of the language model is empty: give one with words")
    orders = _count(np.array(text, dtype=np.int64), order=order, vocabulary_size=len(index))
    return NGram(list(index), _probabilities(orders, vocabulary_size=len(index)))


def _count(text: np.ndarray, *, order: int, vocabulary_size: int) -> list[_Order]:
    """All n-grams within sentences, with Kneser-Ney's adjusted counts."""
    ends = text == 1
    orders: list[_Order] = []
    for length in range(1, order + 1):
        if length == 1:
            keys, inside = text.copy(), np.ones(len(text), dtype=bool)
        else:
            before = orders[-1].ids
            keys = np.full(len(text), -1, dtype=np.int64)
            number = len(text) - length + 1
            # An n-gram ends with its sentence: none of its words but the last is the end.
            inside = np.zeros(len(text), dtype=bool)
            if number > 0:
                inside[:number] = (before[:number] >= 0) & ~ends[length - 2 : length - 2 + number]
                keys[:number] = before[:number] * vocabulary_size + text[length - 1 :]
        places = np.flatnonzero(inside)
        unique, first, inverse, counts = np.unique(
            keys[places], return_index=True, return_inverse=True, return_counts=True
        )
        ids = np.full(len(text), -1, dtype=np.int64)
        ids[places] = inverse
        suffix = np.zeros(0, dtype=np.int64) if length == 1 else orders[-1].ids[places[first] + 1]
        orders.append(_Order(ids, unique % vocabulary_size, unique // vocabulary_size, suffix, counts))
    for lower, higher in pairwise(orders):
        # How many different words precede it; what begins a sentence has none, and keeps its count.
        preceded = np.bincount(higher.suffix, minlength=len(lower.counts))
        lower.counts = np.where(preceded > 0, preceded, lower.counts)
    return orders


def _probabilities(orders: list[_Order], *, vocabulary_size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each order's n-grams, log10 probabilities and log10 back-off weights."""
    words = np.concatenate([orders[0].words, [2]])  # the unknown word has no count
    counts = np.concatenate([np.where(orders[0].words == 0, 0, orders[0].counts), [0]])
    taken, gamma = _discount(counts, np.zeros(len(counts), dtype=np.int64), num_contexts=1)
    # Below the unigrams is the uniform distribution over all that may come next: every word but the begin.
    probabilities = taken + gamma[0] / (vocabulary_size - 1)
    probabilities[words == 0] = 1e-99
    grams, found = words[:, None], []
    for higher in orders[1:]:
        taken, gamma = _discount(higher.counts, higher.prefix, num_contexts=len(grams))
        found.append((grams, np.log10(probabilities), np.log10(np.where(gamma > 0, gamma, 1.0))))
        probabilities = taken + gamma[higher.prefix] * probabilities[higher.suffix]
        grams = np.concatenate([grams[higher.prefix], higher.words[:, None]], axis=1)
    found.append((grams, np.log10(probabilities), np.zeros(len(grams))))
    return found


def _discount(counts: np.ndarray, contexts: np.ndarray, *, num_contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Discounted relative frequencies [n] and what each context [contexts] keeps for the order below."""
    discounts = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    totals = np.bincount(contexts, weights=counts, minlength=num_contexts)
    kept = np.bincount(contexts, weights=discounts, minlength=num_contexts)
    safe = np.where(totals > 0, totals, 1.0)
    return (counts - discounts) / safe[contexts], kept / safe


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """Discounts of n-grams seen once, twice, and more often (Chen and Goodman's equation 26)."""
    once, twice, thrice, four_times = (int((counts == i).sum()) for i in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return FALLBACK
    y = once / (once + 2 * twice)
    found = 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four_times / thrice
    return found if all(0 < value < i for i, value in enumerate(found, start=1)) else FALLBACK


def arpa_words(path: str | os.PathLike[str]) -> list[str]:
    """The words of an ARPA file, those that it reserves left out; of a binary file of KenLM none can be told.

    Raises:
        UserError: the file cannot be read, or is not ARPA.
    """
    words = [gram[0] for gram, _, _ in takewhile(lambda entry: len(entry[0]) == 1, _entries(path))]
    return [word for word in words if word.lower() not in RESERVED]


def read_arpa(
    path: str | os.PathLike[str],
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """log10 probabilities of all n-grams of an ARPA file, and log10 back-off weights of those that have one.

    Raises:
        UserError: the file cannot be read, or is not ARPA.
    """
    logs, back_offs = {}, {}
    for gram, probability, back_off in _entries(path):
        logs[gram] = probability
        if back_off is not None:
            back_offs[gram] = back_off
    return logs, back_offs


def _entries(path: str | os.PathLike[str]) -> Iterator[tuple[tuple[str, ...], float, float | None]]:
    """Each n-gram of an ARPA file, its log10 probability, and its log10 back-off weight where it has one."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            lines = (line.strip() for line in file)
            if next((line for line in lines if line), "") != "\\data\\":
                raise UserError(f"{path} is no language model in ARPA format: it does not begin with \\data\\")
            length, has_words = 0, False
            for line in lines:
                if line.startswith("\\"):
                    number = line[1:].removesuffix("-grams:")
                    length = int(number) if number.isdecimal() else 0
                    if length > 1 and not has_words:
                        break
                elif line and length:
                    columns = line.split()
                    numbers = columns[:1] + columns[1 + length :]
                    if len(numbers) > 2 or len(columns) <= length or not all(map(_is_number, numbers)):
                        raise UserError(f"{path} is a broken ARPA file: a line of its {length}-grams is {line[:60]!r}")
                    has_words = True
                    back_off = float(numbers[1]) if len(numbers) == 2 else None
                    yield tuple(columns[1 : 1 + length]), float(numbers[0]), back_off
            if not has_words:
                raise UserError(f"{path} is a broken ARPA file: it has no 1-grams; build it again with `speechssl lm`")
    except OSError as error:
        raise UserError(f"{path}: this language model cannot be read ({error.strerror}); correct the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no language model in ARPA format: it is not text in UTF-8") from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) or text.startswith("-inf")
    except ValueError:
        return False
