"""CTC and the pretraining's loss in one batch: each clip in the loss that it is for."""

from __future__ import annotations

import pytest
import torch

from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.semi import SemiSupervisedObjective, _select
from speechssl.models.encoder import Encoder
from speechssl.objectives.wav2vec2 import Wav2Vec2Objective
from speechssl.types import Utterance


@pytest.fixture
def parts(small_config, wav2vec2_options, ctc_options):
    torch.manual_seed(0)
    encoder = Encoder(small_config())
    options = wav2vec2_options()
    joint = SemiSupervisedObjective(encoder.config, ssl={"name": "wav2vec2", **options}, ssl_weight=0.5, **ctc_options)
    ctc, ssl = CTCObjective(encoder.config, **ctc_options), Wav2Vec2Objective(encoder.config, **options)
    ctc.load_state_dict({k: v for k, v in joint.state_dict().items() if not k.startswith("ssl.")})
    ssl.load_state_dict(joint.ssl.state_dict())
    return encoder, joint, ctc, ssl


@pytest.fixture
def batch(make_batch):
    targets = [torch.tensor(x, dtype=torch.int64) for x in ([1, 2], [], [2], [])]
    return make_batch([10_000, 9_000, 8_000, 12_000], targets=targets)


def test_each_clip_is_in_the_loss_that_it_is_for(parts, batch):
    encoder, joint, ctc, ssl = parts
    found = joint.train()(encoder, batch)
    labelled = ctc.train()(encoder, _select(batch, [0, 2]))
    unlabelled = ssl.train()(encoder, _select(batch, [1, 3]))
    assert found.terms["ctc"].sum.item() == pytest.approx(labelled.terms["ctc"].sum.item(), rel=1e-5)
    for name, term in unlabelled.terms.items():
        assert found.terms[name].sum.item() == pytest.approx(term.sum.item(), rel=1e-4)
        assert found.terms[name].weight == pytest.approx(0.5 * term.weight)
    frames = [encoder.feature_encoder.num_frames(n) for n in batch.lengths.tolist()]
    counts = {name: term.count for name, term in found.terms.items()}
    assert joint.counts(batch, frames) == counts


def test_batches_of_one_kind_and_validation(parts, batch):
    encoder, joint, _, _ = parts
    assert set(joint.train()(encoder, _select(batch, [0, 2])).terms) == {"ctc"}
    assert "ctc" not in joint(encoder, _select(batch, [1, 3])).terms
    valid = joint.eval()(encoder, _select(batch, [0, 2]))
    assert set(valid.terms) == {"ctc"} and "cer" in valid.metrics


def test_a_clip_without_a_transcript_is_no_fault(parts, tmp_path):
    _, joint, _, _ = parts
    silent, said = (Utterance("a", tmp_path, 1.0, text=text) for text in (None, "ab"))
    assert joint.check(silent, 40) is None and len(joint.target(silent)) == 0
    assert joint.target(said).tolist() == [1, 2]
    assert "outside the vocabulary" in joint.check(Utterance("a", tmp_path, 1.0, text="x"), 40)


def test_labels_are_none_of_its_business(small_config, ctc_options):
    config = small_config()
    with pytest.raises(UserError, match="without labels"):
        SemiSupervisedObjective(config, ssl={"name": "ctc", **ctc_options}, ssl_weight=0.5, **ctc_options)
