"""CTC and distillation in one batch: the divergence by its formula, the teachers untouched, and mistakes named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from speechssl import inference
from speechssl.data.text import BLANK
from speechssl.decoding.ngram import estimate
from speechssl.decoding.posterior import posteriors, read_graph
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.distil import DistilledObjective
from speechssl.heads.semi import _select
from speechssl.models.encoder import Encoder


def recogniser(config, seed, options):
    torch.manual_seed(seed)
    encoder = Encoder(config)
    objective = CTCObjective(encoder.config, **options)
    torch.nn.init.normal_(objective.linear.weight)
    shared = {"sample_rate": 16_000, "normalize": False, "device": torch.device("cpu")}
    return SimpleNamespace(encoder=encoder.eval(), objective=objective.eval(), **shared)


@pytest.fixture
def parts(small_config, ctc_options, monkeypatch):
    """A student, and its two teachers as the checkpoints "one" and "two"."""
    config = small_config()
    teachers = {"one": recogniser(config, 1, ctc_options), "two": recogniser(config, 2, ctc_options)}
    monkeypatch.setattr(inference, "load_model", lambda source, device: teachers[source])
    student = recogniser(config, 0, ctc_options)
    objective = DistilledObjective(config, teacher=["one", "two"], distil_weight=2.0, **ctc_options)
    objective.load_state_dict(student.objective.state_dict())
    objective.open_teachers(sample_rate=16_000, normalize=False)
    return student, objective, teachers


@pytest.fixture
def batch(make_batch):
    targets = [torch.tensor(x, dtype=torch.int64) for x in ([1, 2], [], [2], [])]
    return make_batch([10_000, 9_000, 8_000, 12_000], targets=targets)


def probabilities(model, waveform):
    output = model.encoder(waveform[None], torch.tensor([len(waveform)]))
    return model.objective.logits(output).softmax(-1)


def test_the_divergence_is_that_of_the_formula_clip_by_clip(parts, batch):
    student, objective, teachers = parts
    found = objective.train()(student.encoder.train(), batch)
    expected, frames = 0.0, 0
    for clip in (1, 3):
        waveform = batch.waveforms[clip, : batch.lengths[clip]]
        with torch.no_grad():
            p = sum(probabilities(teacher, waveform) for teacher in teachers.values()) / 2
            q = probabilities(student, waveform)
        expected += float((p * (p.log() - q.log())).sum())
        frames += len(p)
    assert found.terms["distil"].sum.item() == pytest.approx(expected, rel=1e-4)
    assert found.terms["distil"].count == frames and found.terms["distil"].weight == 2.0
    labelled = student.objective.train()(student.encoder, _select(batch, [0, 2]))
    assert found.terms["ctc"].sum.item() == pytest.approx(labelled.terms["ctc"].sum.item(), rel=1e-5)
    lengths = [student.encoder.feature_encoder.num_frames(n) for n in batch.lengths.tolist()]
    assert objective.counts(batch, lengths) == {name: term.count for name, term in found.terms.items()}


def test_an_ngram_weighs_what_the_teachers_say(parts, batch, tmp_path):
    _, objective, _ = parts
    unlabelled = _select(batch, [1, 3])
    plain = objective.taught(unlabelled)
    estimate([["a", "b"], ["b"], ["a", "b", "a"]], order=2).write(tmp_path / "lm.arpa")
    objective.lm, objective.prior_weight, objective.unit_bonus = str(tmp_path / "lm.arpa"), 0.5, 1.0
    objective.open_teachers(sample_rate=16_000, normalize=False)
    frames = [objective.teachers[0].encoder.feature_encoder.num_frames(n) for n in unlabelled.lengths.tolist()]
    emissions = (plain.log() - 0.5 * plain.mean(0).log()).split(frames)
    graph = read_graph(tmp_path / "lm.arpa", ["a", "b"], weight=1.0, bonus=1.0)
    torch.testing.assert_close(objective.taught(unlabelled), torch.cat(posteriors(graph, emissions)))


def test_teachers_neither_learn_nor_are_saved(parts, batch):
    student, objective, teachers = parts
    objective.train()(student.encoder.train(), batch).terms["distil"].sum.backward()
    assert student.objective is not objective and objective.linear.weight.grad.abs().sum() > 0
    for teacher in teachers.values():
        assert all(p.grad is None for p in (*teacher.encoder.parameters(), *teacher.objective.parameters()))
        assert not teacher.encoder.training
    assert set(objective.state_dict()) == set(student.objective.state_dict())


def test_its_own_teacher_has_nothing_to_say(parts, batch):
    student, objective, _ = parts
    objective.teachers = [student]
    found = objective.train().unlabelled(student.encoder, _select(batch, [1, 3]), None)
    assert found.terms["distil"].sum.item() == pytest.approx(0.0, abs=1e-4)


def test_validation_is_of_ctc_alone(parts, batch):
    student, objective, _ = parts
    assert set(objective.eval()(student.encoder, batch).terms) == {"ctc"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"teacher": None}, "give task.teacher=CHECKPOINT"),
        ({"teacher": "one", "vocabulary": [BLANK, "a", "c"]}, "other symbols"),
    ],
)
def test_teachers_that_do_not_fit(parts, small_config, ctc_options, given, sentence):
    objective = DistilledObjective(small_config(), **{"distil_weight": 1.0, **ctc_options, **given})
    with pytest.raises(UserError, match=sentence):
        objective.open_teachers(sample_rate=16_000, normalize=False)


def test_other_frames_or_no_transcripts(parts):
    _, objective, teachers = parts
    with pytest.raises(UserError, match="choose a teacher with the same frames"):
        objective.open_teachers(sample_rate=8_000, normalize=False)
    teachers["one"].objective = torch.nn.Module()
    with pytest.raises(UserError, match="writes no transcripts"):
        objective.open_teachers(sample_rate=16_000, normalize=False)
