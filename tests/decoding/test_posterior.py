"""Frames under an n-gram, against every alignment of a short clip, one by one."""

from __future__ import annotations

import json
import math
import random
from itertools import groupby, product

import pytest
import torch

from speechssl.data.text import BLANK, Vocabulary
from speechssl.decoding.ngram import estimate
from speechssl.decoding.posterior import PosteriorDecoder, posteriors, read_graph
from speechssl.errors import UserError

UNITS = ["a", "b", "c"]
VOCABULARY = Vocabulary((BLANK, *UNITS))


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


def test_the_decoder_reads_the_likeliest_symbol_of_each_frame(model, tmp_path, back_off):
    model.write(tmp_path / "lm.arpa")
    prior = [0.4, 0.3, 0.2, 0.1]
    found = {"lm_weight": 0.7, "unit_bonus": 0.4, "prior_weight": 0.5, "prior": prior, "cer": 0.1}
    (tmp_path / "weights.json").write_text(json.dumps(found))
    decoder = PosteriorDecoder(VOCABULARY, lm=str(tmp_path / "lm.arpa"), weights=str(tmp_path / "weights.json"))
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        logits = 2 * torch.randn(6, 4, generator=generator)
        emissions = logits.log_softmax(-1) - 0.5 * torch.tensor(prior).log()
        expected = every_alignment(model, emissions, back_off, weight=0.7, bonus=0.4)
        path = expected.argmax(1).tolist()
        transcript = decoder(logits)
        assert transcript.text == "".join(UNITS[i - 1] for i, _ in groupby(path) if i)
        assert transcript.num_blank_frames == path.count(0)
        for character in transcript.characters:
            symbol, frames = UNITS.index(character.symbol) + 1, slice(character.start, character.end)
            assert set(path[frames]) == {symbol}
            assert character.confidence == pytest.approx(expected[frames, symbol].mean().item(), abs=1e-4)
    assert decoder(torch.zeros(0, 4)).text == ""


def test_the_decoder_wants_an_ngram_and_weights_of_its_own(tmp_path):
    with pytest.raises(UserError, match=r"decoder=posterior .* give decoder\.lm"):
        PosteriorDecoder(VOCABULARY, lm=None)
    estimate([list("abc")] * 3, order=2).write(tmp_path / "lm.arpa")
    (tmp_path / "weights.json").write_text('{"lm_weight": 1.0, "word_score": 0.0}')
    with pytest.raises(UserError, match=r"no weights of this decoder .*unit_bonus"):
        PosteriorDecoder(VOCABULARY, lm=str(tmp_path / "lm.arpa"), weights=str(tmp_path / "weights.json"))
