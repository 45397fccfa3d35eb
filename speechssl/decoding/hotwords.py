"""Words and phrases that are likelier than the language model knows: a bonus while they are being said.

The bonus is paid bit by bit, so that a phrase survives the beam until it is complete, and taken back where it is broken
off. Imported only where flashlight-text is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torchaudio.models.decoder import CTCDecoderLM, CTCDecoderLMState


@dataclass
class _Node:
    """A place within phrases: what may follow, and whether one is complete here."""

    children: dict[int, _Node] = field(default_factory=dict)
    is_end: bool = False
    bonus: float = 0.0  # of the step to here


class HotwordLM(CTCDecoderLM):
    """A language model with bonuses.

    Args:
        lm: scores everything.
        phrases: each a sequence of the model's indexes (words of a lexicon, or tokens).
        weight: times the scores of `lm`; the search then weighs all by 1, so that a weight of 0 leaves the bonus.
        bonus: of a whole phrase, nats.
        boundary: the token that ends words, where the indexes are tokens: phrases begin and end beside it.
    """

    def __init__(
        self, lm, phrases: Iterable[Sequence[int]], *, weight: float, bonus: float, boundary: int | None = None
    ):
        super().__init__()
        self.lm, self.weight, self.boundary = lm, weight, boundary
        self.root = _Node()
        for phrase in phrases:
            node = self.root
            steps = [*phrase, *([] if boundary is None else [boundary])]
            for index in steps:
                node = node.children.setdefault(index, _Node())
                node.bonus = max(node.bonus, bonus / len(steps))
            node.is_end = True
        self.places: dict[CTCDecoderLMState, tuple[_Node, float, bool]] = {}

    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        """The state before the first word."""
        state = self.lm.start(start_with_nothing)
        self.places = {state: (self.root, 0.0, True)}
        return state

    def score(self, state: CTCDecoderLMState, usr_token_idx: int) -> tuple[CTCDecoderLMState, float]:
        """The state after a word or token, and its score."""
        after, score = self.lm.score(state, usr_token_idx)
        score *= self.weight
        node, pending, is_beginning = self.places[state]
        following = node.children.get(usr_token_idx) if node is not self.root or is_beginning else None
        if following is None:
            score -= pending
            pending = 0.0
            may_begin = self.boundary is None and node is not self.root
            following = self.root.children.get(usr_token_idx, self.root) if may_begin else self.root
        score += following.bonus
        pending = 0.0 if following.is_end else pending + following.bonus
        if following.is_end and not following.children:
            following = self.root
        self.places[after] = following, pending, self.boundary is None or usr_token_idx == self.boundary
        return after, score

    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        """The state after the end, and its score; a phrase that lacks only its boundary counts."""
        after, score = self.lm.finish(state)
        score *= self.weight
        node, pending, _ = self.places[state]
        following = node.children.get(self.boundary) if self.boundary is not None else None
        return after, score + (following.bonus if following and following.is_end else -pending)
