"""speechssl benchmark as it is run: its JSON and table, the peer's part in it, and what it refuses."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from speechssl import cli
from speechssl.benchmarks import turns, worker
from speechssl.config import compose, plain

TINY = (
    "model=tiny",
    "model.encoder.conv_channels=[8,8,8,8,8,8,8]",
    "model.encoder.conv_kernels=[10,3,3,3,3,2,2]",
    "model.encoder.conv_strides=[5,2,2,2,2,2,2]",
    "model.encoder.hidden_size=32",
    "model.encoder.num_layers=1",
    "model.encoder.feed_forward_size=32",
    "steps=2",
    "warmup_steps=1",
    "threads=1",
    "trainer.device=cpu",
)
SIDE_KEYS = {
    "audio_seconds_per_second",
    "step_seconds",
    "step_seconds_spread",
    "step_seconds_all",
    "peak_memory_bytes",
    "parameters",
    "flops",
    "mfu",
    "shares",
}

FORWARD_PARTS = {"feature_encoder", "positions", "transformer", "quantizer_and_loss"}
PRETRAIN_PARTS = {"masks_and_distractors", "optimizer", "other", *FORWARD_PARTS}
PRETRAIN_PARTS |= {f"{part}_backward" for part in FORWARD_PARTS}

has_transformers = importlib.util.find_spec("transformers") is not None


def benchmark(tmp_path, *overrides):
    """The report, from the JSON that the command wrote."""
    assert cli.main(["benchmark", *TINY, f"json={tmp_path}/deep/report.json", *overrides]) == 0
    return json.loads((tmp_path / "deep" / "report.json").read_text())


needs_transformers = pytest.mark.skipif(not has_transformers, reason="transformers is not installed")


@needs_transformers
def test_against_the_peer(tmp_path, capfd):
    report = benchmark(tmp_path, "batch=[0.5,0.3]", "peer=transformers")
    for side in (report, report["peer"]):
        assert set(side) >= SIDE_KEYS
        assert len(side["step_seconds_all"]) == 2
        assert side["audio_seconds_per_second"] == pytest.approx(0.8 / side["step_seconds"])
        assert sum(side["shares"].values()) == pytest.approx(1)
        assert set(side["shares"]) == PRETRAIN_PARTS
        assert side["peak_memory_bytes"] > 0
        assert side["flops"] > 0
    assert report["parameters"] == report["peer"]["parameters"]
    assert report["ratio"]["audio_seconds_per_second"] > 0
    assert report["ratio"]["spread"] >= 0
    assert report["ratio"]["peak_memory"] > 0
    assert report["padding_share"] == pytest.approx(0.2)  # 0.8 of 1.0 seconds
    assert 1 < report["padding_cost"] < 1.5  # frames: 24 twice in place of 24 and 14
    assert (report["model"], report["batch"], report["threads"]) == ("tiny", "[0.5,0.3]", 1)
    assert set(report["versions"]) == {"python", "speechssl", "torch", "transformers"}
    out, err = capfd.readouterr()
    assert "audio seconds per second" in out
    assert err == ""


def test_alone_with_a_process_for_each_step(tmp_path, capfd):
    report = benchmark(tmp_path, "batch=1x0.5", "trainer.precision=bf16", "fresh=true")
    assert not {"peer", "ratio", "verify"} & set(report)
    assert report["precision"] == "bf16"
    assert len(report["step_seconds_all"]) == 2
    assert set(report["shares"]) == PRETRAIN_PARTS


@needs_transformers
@pytest.mark.parametrize("extra", [("what=finetune",), ("what=inference",), ("what=inference", "at_once=2")])
def test_both_sides_do_the_same_work(extra):
    settings = plain(compose("benchmark", [*TINY, "batch=[0.6,0.6,0.6]", *extra]))
    facts = {}
    for side in (worker.OURS, worker.PEER):
        process = worker.Worker(side, settings)
        assert process.step() > 0
        facts[side] = process.facts()
    ours, peer = facts.values()
    assert ours["parameters"] == peer["parameters"]
    # Ours computes whole windows of half a second and rounds rows up, which shows in clips as short as these.
    assert 1 <= ours["flops"] / peer["flops"] < 2.5
    backward = {f"{part}_backward" for part in ("transformer", "positions", "head_and_loss")}
    assert ("what=finetune" in extra) == (backward <= set(ours["shares"]))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("batch=4y5",), "batch=4y5 is no batch: give CLIPSxSECONDS such as 4x5"),
        (("batch=[]",), "batch=[] is no batch"),
        (("batch=1x0.02",), "batch=1x0.02 has a clip of 0.02 s, too short to give 10 frames"),
        (("what=inference", "batch=1x0.02"), "too short to give 1 frames"),
        (("what=training",), "what=training must be pretrain, finetune, inference or data"),
        (("peer=fairseq",), "peer=fairseq is not known: give peer=transformers"),
        (("verify=true",), "verify=true compares with a peer: add peer=transformers"),
        (("steps=0",), "steps=0 must be a number, more than 0"),
        (("threads=0",), "threads=0 must be a number, more than 0"),
        (("threads=1.5",), "threads=1.5 must be a whole number"),
        (("what=inference", "at_once=1.5"), "at_once=1.5 must be a whole number"),
        (("batch=10000000000x1",), "more than a day of audio"),
        (("json=/proc/x/y.json",), "json=/proc/x/y.json cannot be written"),
        (("json=/tmp",), "it is a folder); give a file"),
        (("what=data", "data.workers=[]"), "data.workers=[] must be numbers of workers"),
        (("what=data", "data.workers=[-1]"), "data.workers=[-1] must be"),
        (("what=data", "data.batches=0"), "data.batches=0 must be a number, more than 0"),
    ],
)
def test_what_is_refused(overrides, part, capsys):
    assert cli.main(["benchmark", *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert err.count("\n") == 1


@needs_transformers
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model.encoder.hourglass=2", "the encoder is an hourglass, and transformers has none like it"),
        ("feature_encoder=fbank40", "the encoder begins with a log-mel spectrum, and transformers has none like it"),
        ("objective.num_masks=2", "transformers has one mask a clip and no decoder"),
    ],
)
def test_a_peer_that_would_not_do_the_same_is_refused(option, words, capsys):
    assert cli.main(["benchmark", "model=tiny", "peer=transformers", option]) == 2
    assert words in capsys.readouterr().err


def test_without_transformers_the_mend_is_a_pip_command(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["benchmark", "peer=transformers"]) == 2
    assert "-m pip install 'transformers>=5,<6'`" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_mistake_that_shows_in_a_process_is_one_sentence_too(capsys):
    assert cli.main(["benchmark", *TINY, "trainer.device=cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


class Killed:
    """A worker that the system kills when it works."""

    def __init__(self, _side, _settings):
        pass

    def step(self):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_the_system_kills_is_explained(monkeypatch):
    with turns.Child(Killed, "speechssl", {}) as child, pytest.raises(turns.UserError, match="memory runs out"):
        child.ask("step")
