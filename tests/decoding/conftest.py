"""A second opinion on language models: ARPA's definition of back-off, word by word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from speechssl.decoding.ngram import NGram


@pytest.fixture(scope="session")
def back_off() -> Callable[[NGram, Sequence[str], str], float]:
    """`back_off(model, history, word)`: log10 p(word | history)."""
    kept: dict[int, dict] = {}

    def table(model: NGram) -> dict:
        if id(model) not in kept:
            kept[id(model)] = {
                tuple(model.vocabulary[i] for i in gram): (p, b)
                for grams, probabilities, back_offs in model.orders
                for gram, p, b in zip(grams, probabilities, back_offs, strict=True)
            }
        return kept[id(model)]

    def score(model: NGram, history: Sequence[str], word: str) -> float:
        found = table(model)
        history = tuple(history)[max(len(history) - len(model.orders) + 1, 0) :]
        if (*history, word) in found:
            return found[(*history, word)][0]
        if not history:
            return found[("<unk>",)][0]
        return found.get(history, (0.0, 0.0))[1] + score(model, history[1:], word)

    return score
