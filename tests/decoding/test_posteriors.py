"""Frames under an n-gram, against every alignment of a short clip, one by one."""

from __future__ import annotations

import math
import random
from itertools import groupby, product

import pytest
import torch

from speechssl.decoding.ngram import estimate
from speechssl.decoding.posteriors import posteriors, read_graph
from speechssl.errors import UserError

UNITS = ["a", "b", "c"]


@pytest.fixture(params=[2, 3, 4])
def model(request):
    rng = random.Random(request.param)
    return estimate([rng.choices("aabbc", k=rng.randint(1, 6)) for _ in range(12)], order=request.param)


def every_alignment(model, emissions, back_off, *, units=UNITS, weight, bonus):
    """[T, 1 + units]: probabilities of the frames' symbols, summed over all paths."""
    found = torch.zeros(emissions.shape, dtype=torch.float64)
    for path in product(range(emissions.shape[1]), repeat=len(emissions)):
        written = [units[i - 1] for i, _ in groupby(path) if i]
        score = sum(float(emissions[t, i]) for t, i in enumerate(path)) + bonus * len(written)
        for i, unit in enumerate([*written, "</s>"]):
            score += weight * math.log(10) * back_off(model, ["<s>", *written[:i]], unit)
        for t, i in enumerate(path):
            found[t, i] += math.exp(score)
    return (found / found.sum(1, keepdim=True)).float()


def test_they_are_sums_over_every_alignment(model, tmp_path, back_off):
    model.write(tmp_path / "lm.arpa")
    graph = read_graph(tmp_path / "lm.arpa", UNITS, weight=0.7, bonus=0.4)
    generator = torch.Generator().manual_seed(0)
    clips = [2 * torch.randn(length, 4, generator=generator) for length in (5, 1, 6, 2)]
    for found, emissions in zip(posteriors(graph, clips), clips, strict=True):
        expected = every_alignment(model, emissions, back_off, weight=0.7, bonus=0.4)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_unit_that_the_text_lacks_is_unknown(tmp_path, back_off):
    model = estimate([list("aab"), list("ba")], order=2)
    model.write(tmp_path / "lm.arpa")
    emissions = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    found = posteriors(read_graph(tmp_path / "lm.arpa", UNITS, weight=1.0, bonus=0.0), [emissions])[0]
    expected = every_alignment(model, emissions, back_off, weight=1.0, bonus=0.0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_long_clip_of_sure_frames_stays_what_it_is(tmp_path):
    estimate([list("abc")] * 3, order=2).write(tmp_path / "lm.arpa")
    sure = torch.full((3000, 4), -200.0)
    sure[torch.arange(3000), torch.arange(3000) // 7 % 4] = 0.0
    found = posteriors(read_graph(tmp_path / "lm.arpa", UNITS, weight=1.0, bonus=0.0), [sure])[0]
    torch.testing.assert_close(found, sure.exp())


def test_a_model_of_other_units(tmp_path):
    estimate([["word", "a"]], order=2).write(tmp_path / "lm.arpa")
    with pytest.raises(UserError, match=r"lm\.arpa is no language model of the recogniser's units, which lack 'word'"):
        read_graph(tmp_path / "lm.arpa", UNITS, weight=1.0, bonus=0.0)
