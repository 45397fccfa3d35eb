"""wav2vec's and CPC's losses against loops over frames, steps and candidates; contexts that see the past alone."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder
from speechssl.objectives.wav2vec import CPCObjective, Wav2VecObjective

LENGTHS = [9_000, 6_000, 400]
OPTIONS = {"num_steps": 4, "num_distractors": 3, "feature_gradient_scale": 1.0}


def build(small_config, kind):
    torch.manual_seed(0)
    encoder = Encoder(small_config(**kind.encoder_needs)).eval()
    return encoder, kind(encoder.config, **OPTIONS).eval()


@pytest.mark.parametrize("kind", [Wav2VecObjective, CPCObjective])
def test_loss_is_that_of_a_loop(small_config, make_batch, kind):
    encoder, objective = build(small_config, kind)
    batch = make_batch(LENGTHS)
    features, frame_lengths = encoder.features(batch.waveforms, batch.lengths)
    normed = encoder.feature_norm(features)
    contexts = encoder.contextualize(normed, frame_lengths).packed[-1].split(frame_lengths)
    false, start = objective.draw(batch, frame_lengths), 0
    total, count, right = 0.0, 0, 0
    for frames, context in zip(frame_lengths, contexts, strict=True):
        for step in range(1, 5):
            for t in range(frames - step):
                predicted = objective.projections[step - 1](context[t])
                places = [start + t + step, *false[start + t + step].tolist()]
                assert all(start <= place < start + frames for place in places)
                assert places[0] not in places[1:]
                scores = [float(predicted @ normed[place]) / 8**0.5 for place in places]
                if kind is Wav2VecObjective:
                    total += log(1 + exp(-scores[0])) + sum(log(1 + exp(x)) for x in scores[1:])
                else:
                    total += log(sum(exp(x) for x in scores)) - scores[0]
                count, right = count + 1, right + (scores[0] > max(scores[1:]))
        start += frames
    found = objective(encoder, batch)
    assert found.terms["future"].sum.item() == pytest.approx(total, rel=1e-4)
    assert found.terms["future"].count == count
    assert float(found.metrics["accuracy"][0]) == right


@pytest.mark.parametrize("changes", [{"context": "convolutions"}, {"context": "recurrent"}, {"causal": True}])
def test_no_frame_sees_a_later_one(small_config, changes):
    torch.manual_seed(0)
    encoder = Encoder(small_config(**changes)).eval()
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[15:25] = 5.0
    ours, theirs = (encoder.contextualize(y, [25, 15]).packed for y in (x, changed))
    assert len(ours) == encoder.config.num_layers + 1
    torch.testing.assert_close(ours[-1][:15], theirs[-1][:15])
    torch.testing.assert_close(ours[-1][25:], theirs[-1][25:])
    assert not torch.allclose(ours[-1][15:25], theirs[-1][15:25])


def test_the_transformer_sees_the_future_unless_it_is_causal(small_config):
    torch.manual_seed(0)
    encoder = Encoder(small_config()).eval()
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    changed = torch.cat([x[:19], x[19:] + 5])
    ours, theirs = (encoder.contextualize(y, [20]).packed[-1] for y in (x, changed))
    assert not torch.allclose(ours[0], theirs[0])


def test_unknown_contexts_are_one_sentence(small_config):
    with pytest.raises(UserError, match="'transformer' or one of 'convolutions', 'recurrent'"):
        small_config(context="lstm")
    with pytest.raises(UserError, match="one positional convolution"):
        small_config(causal=True, position_layers=3)
