"""What an n-gram of a recogniser's units makes of its frames: forward-backward over CTC's alignments.

CTC takes the symbols of frames as independent, so its probabilities know little of which follow each other. Here they
are weighed with an n-gram over all alignments at once, and come back as probabilities of each frame: a search without a
decision, for students of a recogniser to learn from and for `PosteriorDecoder` to read. (Baum-Welch over the graph of
Graves et al. 2006, section 4.1, with the n-gram in it, as the denominator of Povey et al. 2016 has it; for unlabelled
speech, Manohar et al. 2018.)
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.data.text import Vocabulary
from speechssl.decoding.common import PRIOR_WEIGHTS, discount, read_weights, token_names
from speechssl.decoding.greedy import greedy
from speechssl.decoding.ngram import BEGIN, END, UNKNOWN, read_arpa
from speechssl.decoding.transcript import Transcript
from speechssl.errors import UserError

Gram = tuple[str, ...]


@dataclass
class Graph:
    """An n-gram as a graph. A state is as much of what was written last as the n-gram knows; clips begin in the first.

    The n-gram lists few units after each state and backs off for all others. So weights first flow from states to their
    shorter histories, and then along what is listed, where each arc makes up for what flows by its back-off: some 5
    times fewer products than from every state to every unit.

    Attributes:
        last: int64 [S] the unit that led into each state.
        shorter: [S, S] sparse, of back-offs: from a state (column) to its shorter histories (rows).
        arcs: [S, S] sparse: from a state to that after the next unit.
        again: [S, S] sparse: that of the arcs by the unit that was written last, back-offs in it. CTC wants a blank
            before these.
        longer, back, back_again: their transposes.
        members: [units, S] sparse: one where the unit led into the state.
        final: [S] weight of a clip's end.
    """

    last: Tensor
    shorter: Tensor
    arcs: Tensor
    again: Tensor
    longer: Tensor
    back: Tensor
    back_again: Tensor
    members: Tensor
    final: Tensor

    def to(self, device: torch.device) -> Graph:
        """The same on another device."""
        return Graph(*(getattr(self, field.name).to(device) for field in fields(self)))


class _BackOff:
    """An n-gram's states and weights, as ARPA defines them."""

    def __init__(self, path: str | os.PathLike[str], units: Sequence[str], power: float):
        self.logs, self.back_offs = read_arpa(path)
        missing = {gram[0] for gram in self.logs if len(gram) == 1} - {*units, BEGIN, END, UNKNOWN}
        if missing:
            raise UserError(
                f"{path} is no language model of the recogniser's units, which lack {min(missing)!r}: build it with "
                "`speechssl lm checkpoint=` of that recogniser"
            )
        unknown = self.logs.get((UNKNOWN,), -99.0)
        self.logs |= {(unit,): unknown for unit in units if (unit,) not in self.logs}
        self.power = power * math.log(10)
        self.states: list[Gram] = [(BEGIN,), (), *((unit,) for unit in units)]
        self.states += [gram for gram in self.back_offs if len(gram) > 1 and gram[-1] != END]
        self.index = {state: i for i, state in enumerate(self.states)}

    def shorter(self, state: Gram) -> Iterator[tuple[Gram, float]]:
        """Each shorter history that is a state, the longest first, and the weight that backs off to it."""
        weight = 1.0
        while state:
            weight *= math.exp(self.power * self.back_offs.get(state, 0.0))
            state = state[1:]
            if state in self.index:
                yield state, weight

    def weight(self, state: Gram, unit: str) -> float:
        """Of a unit after a state."""
        for history, backed_off in ((state, 1.0), *self.shorter(state)):
            if (*history, unit) in self.logs:
                return backed_off * math.exp(self.power * self.logs[(*history, unit)])
        return 0.0

    def after(self, state: Gram, unit: str) -> int:
        """The number of the state that a unit leads to."""
        found = (*state, unit)
        while found not in self.index:
            found = found[1:]
        return self.index[found]

    def arcs(self) -> Iterator[tuple[int, int, float]]:
        """(to, from, weight) of what is listed, less what comes there by the state's back-off."""
        for *before, unit in self.logs:
            state = tuple(before)
            if state in self.index and unit not in (BEGIN, END, UNKNOWN):
                yield self.after(state, unit), self.index[state], self.weight(state, unit)
                for history, backed_off in islice(self.shorter(state), 1):
                    yield self.after(history, unit), self.index[state], -backed_off * self.weight(history, unit)


def read_graph(path: str | os.PathLike[str], units: Sequence[str], *, weight: float, bonus: float) -> Graph:
    """The graph of an ARPA file.

    Args:
        path: as `speechssl lm checkpoint=` writes it.
        units: of the recogniser, without the blank, as the file names them.
        weight: power of the n-gram's probabilities.
        bonus: nats for each unit that is written.

    Raises:
        UserError: the file cannot be read, is broken, or is of other units.
    """
    ngram, gain = _BackOff(path, units, weight), math.exp(bonus)
    states, index = ngram.states, ngram.index
    written = [state for state in states if state and state[-1] != BEGIN]
    shorter = [(index[short], index[state], x) for state in states for short, x in ngram.shorter(state)]
    arcs = [(end, start, gain * x) for end, start, x in ngram.arcs()]
    again = [(ngram.after(s, s[-1]), index[s], gain * ngram.weight(s, s[-1])) for s in written]
    number = {unit: i for i, unit in enumerate(units)}
    members = [(number[state[-1]], index[state], 1.0) for state in written]
    last = torch.zeros(len(states), dtype=torch.int64)
    for unit, state, _ in members:
        last[state] = unit
    square = len(states), len(states)
    return Graph(
        last=last,
        shorter=_sparse(shorter, *square),
        arcs=_sparse(arcs, *square),
        again=_sparse(again, *square),
        longer=_sparse([(j, i, x) for i, j, x in shorter], *square),
        back=_sparse([(j, i, x) for i, j, x in arcs], *square),
        back_again=_sparse([(j, i, x) for i, j, x in again], *square),
        members=_sparse(members, len(units), len(states)),
        final=torch.tensor([ngram.weight(state, END) for state in states]),
    )


def _sparse(entries: Sequence[tuple[int, int, float]], rows: int, columns: int) -> Tensor:
    """[rows, columns] float32 of (row, column, value); values of one place add up."""
    i, j, values = zip(*entries, strict=True)
    places, values = torch.tensor([i, j]), torch.tensor(values, dtype=torch.float64)
    with torch.sparse.check_sparse_tensor_invariants(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        found = torch.sparse_coo_tensor(places, values, (rows, columns)).coalesce().float().to_sparse_csr()
        # Indices as MKL takes them, which else are copied for each product.
        indices = found.crow_indices().int(), found.col_indices().int()
        return torch.sparse_csr_tensor(*indices, found.values(), (rows, columns))


def posteriors(graph: Graph, emissions: Sequence[Tensor]) -> list[Tensor]:
    """Probabilities of each frame's symbols, given all of its clip and the n-gram.

    Args:
        graph: of the n-gram.
        emissions: float32 [T, 1 + units] of each clip: log weights, the blank's first; a constant of a frame is no
            matter.

    Returns:
        float32 [T, 1 + units] of each clip; rows sum to one.
    """
    padded = pad_sequence(list(emissions))  # [T, B, 1 + units]
    scores = (padded - padded.amax(-1, keepdim=True)).exp().transpose(1, 2).contiguous()
    blanks, units = scores[:, :1], scores[:, 1:]
    forward = _forward(graph, blanks, units)
    found = torch.zeros_like(scores)
    ends = graph.final[:, None].repeat(1, len(emissions))
    on_unit, on_blank = ends, ends
    for t in reversed(range(len(scores))):
        if t + 1 < len(scores):
            entered = on_unit * units[t + 1].index_select(0, graph.last)
            written = graph.back @ entered
            written += graph.longer @ written
            on_blank = on_blank * blanks[t + 1] + written
            on_unit = (on_blank - graph.back_again @ entered).clamp(min=0) + entered
            scale = on_blank.sum(0)
            on_unit, on_blank = on_unit / scale, on_blank / scale
            ending = [i for i, clip in enumerate(emissions) if len(clip) == t + 1]
            if ending:
                on_unit[:, ending] = on_blank[:, ending] = ends[:, ending]
        unit, blank = forward[t]
        found[t, 1:] = graph.members @ (unit * on_unit)
        found[t, 0] = (blank * on_blank).sum(0)
    found /= found.sum(1, keepdim=True)
    return [found[: len(clip), :, i] for i, clip in enumerate(emissions)]


def _forward(graph: Graph, blanks: Tensor, units: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each frame, [S, B] weights of having come to a state, by its unit in this frame and with blanks since."""
    size, batch = len(graph.last), units.shape[2]
    unit, blank = units.new_zeros(size, batch), units.new_zeros(size, batch)
    blank[0] = 1.0
    found = []
    for t in range(len(units)):
        both = unit + blank
        written = graph.arcs @ (both + graph.shorter @ both) - graph.again @ unit
        unit = (written.clamp(min=0) + unit) * units[t].index_select(0, graph.last)
        blank = both * blanks[t]
        scale = (unit + blank).sum(0)
        unit, blank = unit / scale, blank / scale
        found.append((unit, blank))
    return found


class PosteriorDecoder:
    """The likeliest symbol of each frame, given its clip and an n-gram (posterior decoding, Durbin et al. 1998, 3.2).

    Beam search finds the likeliest text, right or wrong as a whole; this has the fewest frames wrong that are to be
    expected, which serves characters the better the more of them are in doubt. It writes any sequence of units. Time
    and memory grow with the n-gram's histories: on a CPU's core 20,000 of them (five characters, a text of 4,300
    sentences) take 0.04 s and 4 MB for a second of 25 frames.

    Args:
        vocabulary: the model's symbols.
        lm: an ARPA file of the model's units, as `speechssl lm checkpoint=` writes it.
        lm_weight: power of the n-gram's probabilities.
        unit_bonus: nats for each unit that is written, against the n-gram's liking for few.
        weights: a file of `speechssl tune`, whose weights take the place of the others.

    Raises:
        UserError: a file cannot be read, or is of other units.
    """

    has_lexicon: ClassVar[bool] = False  # as BeamDecoder's

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        lm: str | None,
        lm_weight: float = 0.75,
        unit_bonus: float = 1.5,
        weights: str | None = None,
    ):
        if lm is None:
            raise UserError(
                "decoder=posterior weighs frames with an n-gram of the model's units: give decoder.lm, as `speechssl "
                "lm checkpoint=` writes it"
            )
        self.vocabulary, self.lm = vocabulary, lm
        chosen = {"lm_weight": lm_weight, "unit_bonus": unit_bonus}
        self.set_weights(**(chosen if weights is None else read_weights(weights, tuple(chosen), len(vocabulary))))

    def set_weights(
        self, *, lm_weight: float, unit_bonus: float, prior_weight: float = 0.0, prior: Sequence[float] = ()
    ) -> None:
        """Decode with other weights from now on; `prior` has the mean probability of each symbol."""
        self.weights = {"lm_weight": lm_weight, "unit_bonus": unit_bonus, "prior_weight": prior_weight}
        self.discount = discount(prior_weight, prior)
        units = token_names(self.vocabulary.symbols[1:])
        self.graph = read_graph(self.lm, units, weight=lm_weight, bonus=unit_bonus)

    def ranges(self) -> dict[str, tuple[Sequence[float], float]]:
        """What `speechssl tune` tries: coarse values, and a step to try beside the best."""
        return {
            "lm_weight": ((0.5, 0.75, 1.0, 1.5, 2.0), 0.125),
            "unit_bonus": ((0.0, 0.5, 1.0, 1.5, 2.0), 0.25),
            "prior_weight": PRIOR_WEIGHTS,
        }

    def __call__(self, logits: Tensor) -> Transcript:
        """Decode one clip: logits [T, V]."""
        log_probs = logits.detach().float().cpu().log_softmax(-1)
        [found] = posteriors(self.graph, [log_probs - self.discount])
        return greedy(found.log(), self.vocabulary)
