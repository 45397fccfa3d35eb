"""speechssl cluster and speechssl hubert, as a user runs them."""

from __future__ import annotations

import json

import numpy as np


def test_two_iterations_by_one_command(speechssl, small_overrides, write_corpus, tmp_path):
    train, valid = write_corpus(), write_corpus("valid", seconds=(0.5, 0.7))
    command = ("hubert", f"data.train={train}", f"data.valid={valid}", f"run_dir={tmp_path / 'run'}")
    command += (*small_overrides, "clusters=[4,6]")
    result = speechssl(*command)
    assert (result.code, result.out) == (0, "")
    run = tmp_path / "run"
    for number, clusters in ((1, 4), (2, 6)):
        info = json.loads((run / f"labels_{number}" / "clusters.json").read_text())
        assert (info["num_clusters"], info["num_clips"]) == (clusters, 6)  # of training and validation
        assert np.load(run / f"labels_{number}" / "labels.npy").max() < clusters
        rows = [json.loads(line) for line in (run / f"iteration_{number}" / "metrics.jsonl").open()]
        first = next(row for row in rows if "loss" in row)
        assert {"loss_masked", "accuracy", "chance", "code_usage", "energy_gap"} <= first.keys()
        assert any("valid_loss_masked" in row for row in rows)
    assert (run / "last").resolve() == run / "iteration_2"
    first, second = (json.loads((run / f"labels_{i}" / "clusters.json").read_text()) for i in (1, 2))
    assert (first["source"], second["source"], second["layer"]) == ("mfcc", str(run / "iteration_1"), 1)
    before = (run / "labels_2" / "labels.npy").stat().st_mtime_ns
    assert speechssl(*command).code == 0
    assert (run / "labels_2" / "labels.npy").stat().st_mtime_ns == before


def test_pretraining_alone_clusters_mfcc_and_resumes(pretrain, write_corpus, read_rows, tmp_path):
    train = write_corpus()
    options = ("objective=hubert", "objective.num_clusters=4")
    assert pretrain(train, *options, "trainer.max_steps=2").code == 0
    labels = tmp_path / "pretrained" / "labels" / "labels.npy"
    before = labels.stat().st_mtime_ns
    assert pretrain(train, *options, "trainer.max_steps=4").code == 0
    assert labels.stat().st_mtime_ns == before
    whole = pretrain(train, *options, "trainer.max_steps=4", f"objective.labels={labels.parent}", run="whole")
    assert whole.code == 0
    assert read_rows("whole")[-1]["loss"] > 0


def test_mistakes_are_one_sentence(speechssl, small_overrides, write_corpus, tmp_path):
    train = write_corpus()
    command = ("hubert", f"data.train={train}", f"run_dir={tmp_path / 'run'}", *small_overrides)
    assert "not best_rq; use speechssl pretrain" in speechssl(*command, "objective=best_rq").sentence
    (tmp_path / "full").mkdir()
    result = speechssl("cluster", f"data.train={train}", f"out={tmp_path / 'full'}", "model=tiny")
    assert "is there already and holds no labels" in result.sentence
