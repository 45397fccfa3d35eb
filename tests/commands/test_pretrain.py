"""speechssl pretrain, as a user runs it."""

from __future__ import annotations

import json
import os
import shlex
import signal

import pytest
import torch
import yaml

from speechssl.manifest import Manifest
from speechssl.planning import machine
from speechssl.training.checkpoint import load_checkpoint
from speechssl.training.trainer import Trainer

REQUIRED = {
    "step",
    "loss",
    "loss_contrastive",
    "accuracy",
    "chance",
    "code_perplexity",
    "grad_norm",
    "lr",
    "audio_seconds_per_second",
}


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def test_a_run_leaves_what_the_contract_says(pretrain, write_corpus, read_rows, tmp_path):
    train, valid = write_corpus(), write_corpus("valid", seconds=(0.5, 0.7))
    result = pretrain(train, f"data.valid={valid}", "trainer.max_steps=11", "trainer.valid_every=6")
    assert (result.code, result.out) == (0, "")
    run = tmp_path / "pretrained"
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["max_steps"], config["model"]["encoder"]["hidden_size"]) == (11, 16)

    rows = [row for row in read_rows("pretrained") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 10, 11]
    for row in rows:
        assert row.keys() >= REQUIRED
        assert row["code_perplexity"] <= 640
    validation = [row for row in read_rows("pretrained") if "valid_loss" in row]
    assert [row["step"] for row in validation] == [6, 11]
    assert not any("loss" in row for row in validation)

    found = load_checkpoint(run, prefer="best")
    plain = {"format", "version", "sample_rate", "normalize", "encoder", "objective", "step"}
    assert found.config.keys() == plain
    assert found.config["objective"]["name"] == "wav2vec2"
    assert {name.split(".")[0] for name in found.tensors} == {"encoder", "objective"}


def test_a_finished_run_is_left_as_it_is(pretrain, write_corpus, tmp_path):
    train = write_corpus()
    pretrain(train)
    before = contents(tmp_path / "pretrained")
    again = pretrain(train, "optim.lr=0.5")
    assert (again.code, "is finished at step 3; nothing to do" in again.err) == (0, True)
    assert contents(tmp_path / "pretrained") == before
    refused = pretrain(train, "trainer.resume=never")
    assert (refused.code, "trainer.resume=auto" in refused.sentence) == (2, True)
    assert contents(tmp_path / "pretrained") == before


def test_an_interrupted_run_says_how_to_go_on(pretrain, speechssl, write_corpus, monkeypatch, tmp_path):
    train = write_corpus("name with space")
    run_step = Trainer.run_step

    def interrupted(trainer, stream):
        run_step(trainer, stream)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", interrupted)
        stopped = pretrain(train, "trainer.resume=never")
    assert stopped.code == 1
    assert "Traceback" not in stopped.err
    said, command = stopped.err.splitlines()[-1].split("; to go on: ")
    assert said == f"{tmp_path / 'pretrained'} was interrupted and is saved at step 1 of 3"

    program, *arguments = shlex.split(command)
    assert program == "speechssl"
    resumed = speechssl(*arguments)
    assert (resumed.code, "resumed" in resumed.err) == (0, True)
    assert load_checkpoint(tmp_path / "pretrained").config["step"] == 3


def test_init_goes_on_from_weights(pretrain, write_corpus, tmp_path):
    train = write_corpus()
    pretrain(train)
    more = pretrain(
        train, f"init={tmp_path / 'pretrained'}", "optim.lr=1e-30", "trainer.max_steps=1", "trainer.seed=5", run="more"
    )
    assert more.code == 0
    first, second = (load_checkpoint(tmp_path / run).tensors for run in ("pretrained", "more"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("model.encoder.hidden_size=32", "encoder.hidden_size is 32 here and 16 there"),
        ("model.normalize=true", "normalize is True here and False there"),
    ],
)
def test_init_with_another_encoder_is_refused(pretrain, write_corpus, tmp_path, override, difference):
    train = write_corpus()
    pretrain(train)
    refused = pretrain(train, f"init={tmp_path / 'pretrained'}", override, run="more")
    assert refused.code == 2
    assert difference in refused.sentence
    assert not (tmp_path / "more").exists()


def test_a_broken_clip_is_named_counted_and_skipped(pretrain, write_corpus):
    train = write_corpus(seconds=[0.5] * 12)
    cut(Manifest(train)[3].audio_path)
    result = pretrain(train, "trainer.max_steps=5")
    assert result.code == 0
    assert "clip 3 skipped" in result.err
    assert "3.wav" in result.err
    assert "(1 so far)" in result.err


def test_too_many_broken_clips_stop_the_run(pretrain, write_corpus, tmp_path):
    train = write_corpus(seconds=[0.5] * 12)
    for i in (3, 4, 5):
        cut(Manifest(train)[i].audio_path)
    result = pretrain(train, "trainer.max_steps=9")
    assert result.code == 2
    assert ".wav" in result.sentence
    assert "data.max_broken_share" in result.sentence


def test_faults_of_the_data_are_one_sentence_that_names_the_file(pretrain, write_corpus, tmp_path):
    short = pretrain(write_corpus("short", seconds=(0.5, 0.02)))
    assert short.code == 2
    assert "short/1.wav" in short.sentence
    assert "receptive field" in short.sentence

    missing = write_corpus("missing")
    Manifest(missing)[2].audio_path.unlink()
    assert "missing/2.wav" in pretrain(missing).sentence

    assert "gone.jsonl" in pretrain(tmp_path / "gone.jsonl").sentence

    (tmp_path / "text.jsonl").write_text(json.dumps({"audio_filepath": "a.wav", "duration": 1}) + "\nhello\n")
    assert "text.jsonl:2" in pretrain(tmp_path / "text.jsonl").sentence
    assert not (tmp_path / "pretrained").exists()


def test_clips_too_short_for_a_mask_cannot_choose_the_best(pretrain, write_corpus):
    """0.1 s are 4 frames, fewer than a span: there is no contrastive loss to choose by."""
    train, valid = write_corpus(), write_corpus("valid", seconds=(0.1, 0.1))
    result = pretrain(train, f"data.valid={valid}")
    assert result.code == 2
    assert "valid_loss_contrastive" in result.sentence


def test_an_unknown_key_names_the_nearest(pretrain, write_corpus):
    result = pretrain(write_corpus(), "trainer.max_step=5")
    assert result.code == 2
    assert "trainer.max_steps" in result.sentence


def test_layers_run_again_where_memory_is_bounded(pretrain, write_corpus, read_rows, monkeypatch):
    """Values of 1 MiB each: without running any layer again a step would take 158 GiB, with both 145."""
    monkeypatch.setattr(machine, "known", lambda *_: machine.Machine("test", "fp32", (), (0.0, 2.0**20, 0.0), 0.0, ""))
    train = write_corpus()
    losses = {}
    for name, budget in (("free", "null"), ("bounded", "150")):
        result = pretrain(train, f"trainer.memory_gib={budget}", run=name)
        assert result.code == 0
        losses[name] = [row["loss"] for row in read_rows(name) if "loss" in row]
    assert "of 2 layers run again" in result.err and " 0 of 2" not in result.err
    assert losses["bounded"] == losses["free"]
    assert "trainer.memory_gib=0.01 is too little" in pretrain(train, "trainer.memory_gib=0.01", run="x").sentence


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(pretrain, write_corpus, read_rows):
    train = write_corpus()
    for name in ("eager", "compiled"):
        result = pretrain(train, f"trainer.compile={str(name == 'compiled').lower()}", run=name)
        assert result.code == 0, result.err
    losses = [[row["loss"] for row in read_rows(name) if "loss" in row] for name in ("eager", "compiled")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_compiling_needs_a_compiler(pretrain, write_corpus, monkeypatch):
    train = write_corpus()
    monkeypatch.setattr("shutil.which", lambda *_: None)
    result = pretrain(train, "trainer.compile=true")
    assert (result.code, "install g++ or leave it out" in result.err) == (2, True)
