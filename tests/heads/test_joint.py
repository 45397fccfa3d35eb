"""Both heads together: the sum of what each is alone, one pass of the encoder, commands that find theirs."""

from __future__ import annotations

import json

import pytest
import torch

from speechssl import cli
from speechssl.heads.joint import JointObjective
from speechssl.models.encoder import Encoder
from speechssl.types import Utterance

CTC = {"lowercase": False, "dropout": 0.0, "mask_start_probability": 0.0, "mask_span": 10}
SHARED = {"freeze_feature_encoder": True, "freeze_encoder": 0.0}
VOCABULARY, LABELS = ["<blank>", "a", "b"], ["ann", "bob"]


@pytest.fixture
def build(small_config):
    def make():
        torch.manual_seed(0)
        encoder = Encoder(small_config())
        heads = {"vocabulary": VOCABULARY, "labels": LABELS, "label": "speaker"}
        options = {"speaker_weight": 0.3, "ctc": CTC, "speaker": {"dropout": 0.0}}
        return encoder.eval(), JointObjective(encoder.config, **heads, **SHARED, **options).eval()

    return make


@pytest.fixture
def batch(make_batch):
    """Who speaks, then what is said."""
    return make_batch([10_000, 8_000], targets=[torch.tensor([1, 1, 2]), torch.tensor([0, 2])])


def test_the_loss_is_the_weighted_sum_of_both_alone(build, batch, make_batch):
    encoder, objective = build()
    output = objective(encoder, batch)
    said = make_batch([10_000, 8_000], targets=[torch.tensor([1, 2]), torch.tensor([2])])
    who = make_batch([10_000, 8_000], targets=[torch.tensor([1]), torch.tensor([0])])
    ctc, speaker = objective.ctc(encoder, said), objective.speaker(encoder, who)
    assert output.terms["ctc"].sum.item() == pytest.approx(ctc.terms["ctc"].sum.item(), rel=1e-6)
    alone = speaker.terms["cross_entropy"].sum.item()
    assert output.terms["cross_entropy"].sum.item() == pytest.approx(alone, rel=1e-6)
    assert (output.terms["ctc"].weight, output.terms["cross_entropy"].weight) == (1.0, 0.3)
    counts = {name: term.count for name, term in output.terms.items()}
    assert counts == {"ctc": 3, "cross_entropy": 2} == objective.counts(batch, [31, 24])
    assert {"accuracy", "cer", "wer", "blank_share"} <= output.metrics.keys()


def test_the_encoder_runs_once_and_learns_from_both(build, batch, monkeypatch):
    encoder, objective = build()
    runs = []
    features = encoder.features
    monkeypatch.setattr(encoder, "features", lambda *given: runs.append(1) or features(*given))
    terms = objective(encoder, batch).terms
    assert len(runs) == 1
    weight = encoder.context.layers[0].feed_in.weight
    parts = [torch.autograd.grad(terms[name].sum, weight, retain_graph=True)[0] for name in ("ctc", "cross_entropy")]
    assert all(part.abs().max() > 0 for part in parts)


def test_labels_and_checks_are_both_heads(build, tmp_path):
    encoder, objective = build()
    fields = {"speaker": "bob", "text": "ab"}
    clip = Utterance("x", tmp_path / "x.wav", 1.0, text="ab", speaker="bob", fields=fields)
    assert objective.target(clip).tolist() == [1, 1, 2] and objective.check(clip, 50) is None
    assert "no 'speaker'" in objective.check(Utterance("x", tmp_path / "x.wav", 1.0, text="ab"), 50)
    assert "no `text`" in objective.check(Utterance("x", tmp_path / "x.wav", 1.0, fields=fields), 50)
    other = Utterance("y", tmp_path / "y.wav", 1.0, text="c", fields={"speaker": "ann"})
    found = JointObjective.data_options([clip, other], label="speaker", ctc=CTC)
    vocabulary = ["<blank>", "a", "b", "c"]
    assert found == {"vocabulary": vocabulary, "labels": ["ann", "bob"], "clip_seconds": [1.0, 1.0, 1.0]}
    heads = {**SHARED, "label": "speaker", "ctc": CTC, "speaker": {"dropout": 0.0}, "speaker_weight": 0.5}
    assert JointObjective(encoder.config, **heads | found).ctc.clip_seconds == [1.0, 1.0, 1.0]


def test_one_checkpoint_for_evaluate_transcribe_and_identify(speechssl_joint, write_corpus, tmp_path):
    run, main = speechssl_joint
    test = write_corpus("test")
    code, out = main("evaluate", f"checkpoint={run}", f"data.test={test}", f"out={tmp_path / 'out'}")
    assert code == 0 and {"wer", "accuracy", "speaker_attributed_wer"} <= json.loads(out).keys()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["speaker_attributed_wer"] >= metrics["wer"] and set(metrics["wer_by_speaker"]) == {"ann", "bob"}
    others = write_corpus("others", speaker="eve")  # whom no output stands for
    assert main("evaluate", f"checkpoint={run}", f"data.test={others}", f"out={tmp_path / 'others'}")[0] == 0
    assert json.loads((tmp_path / "others" / "metrics.json").read_text())["speaker_attributed_wer"] is None
    for name in ("hypotheses.jsonl", "scores.jsonl"):
        assert len((tmp_path / "out" / name).read_text().splitlines()) == 4
    audio = f"audio={tmp_path / 'test' / '0.wav'}"
    assert main("transcribe", f"checkpoint={run}", audio)[0] == 0
    code, out = main("identify", f"checkpoint={run}", audio)
    assert code == 0 and out.split()[0] in ("ann", "bob")


@pytest.fixture
def speechssl_joint(write_run, capsys):
    """A checkpoint of task=ctc_speaker with random weights, and the command line."""
    heads = {"vocabulary": VOCABULARY, "labels": LABELS, "label": "speaker", "speaker_weight": 0.5}
    run = write_run("ctc_speaker", **heads, **SHARED, ctc=CTC, speaker={"dropout": 0.0})

    def main(verb, *arguments):
        capsys.readouterr()
        code = cli.main([verb, *arguments, "trainer.device=cpu"])
        return code, capsys.readouterr().out

    return run, main
