"""speechssl compare, as a user runs it: every figure of every objective in the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from speechssl.errors import UserError
from speechssl.evaluation.comparison import Measured, run_measured, table
from speechssl.manifest import Manifest


def test_columns_are_those_that_any_row_has():
    rows = [{"objective": "random", "cer": 0.912345}, {"objective": "byol", "cer": 0.5, "seconds": 1234.5, "x": None}]
    assert table(rows).splitlines() == [
        "| objective | cer | seconds | x |",
        "| --- | --- | --- | --- |",
        "| random | 0.912 | – | – |",
        "| byol | 0.5 | 1234 | – |",
    ]


@pytest.fixture
def record(monkeypatch):
    """Commands that are not run: what they would be, and made-up figures in the files that they would write."""
    from speechssl.commands import compare

    commands, steps_done = [], {}

    def run(path, verb, overrides, model=None):
        commands.append((verb, overrides))
        values = dict(override.split("=", 1) for override in overrides)
        steps = int(values.get("trainer.max_steps", 0))
        folder = Path(values["run_dir"] if "run_dir" in values else values["out"])
        folder.mkdir(parents=True, exist_ok=True)
        if verb == "evaluate":
            (folder / "metrics.json").write_text(json.dumps({"cer": 0.25, "wer": 0.5}))
        elif verb == "probe":
            results = [{"layer": "0", "test": 0.125}, {"layer": "weighted", "test": 0.75}]
            (folder / "probe.json").write_text(json.dumps({"results": results}))
        else:
            row = {"step": steps, "valid_loss": 1.0, "valid_effective_rank": 7.0, "valid_energy_gap": 0.5}
            (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        # 6 s of preparation in a new run, 2 s before the first step, then half a second each.
        before = steps_done.get(folder)
        steps_done[folder] = steps
        cpu_s = (6.0 if before is None else 0.0) + 2.0 + 0.5 * (steps - (before or 0))
        return Measured(cpu_s=cpu_s, wall_s=99.0, memory_mib=300.0)

    monkeypatch.setattr(compare, "run_measured", run)
    return commands


def test_budget_decides_the_steps_and_the_table_has_every_figure(speechssl, record, write_corpus, tmp_path):
    train, labelled, voices = write_corpus(), write_corpus("ten"), write_corpus("voices")
    result = speechssl(
        "compare",
        "objectives=[hubert,'byol teacher=none optim.lr=3e-4']",
        "budget=20",
        f"data.train={train}",
        f"data.valid={train}",
        f"data.test={labelled}",
        f"data.labelled=[{labelled}]",
        f"out={tmp_path / 'out'}",
        "finetune=['data.batch_seconds=10','encoder.dropout=0.25']",
        f"data.speakers_test={voices}",
        "finetunings=[ctc,selftrain,semi]",
        "trainer.device=cpu",
    )
    assert result.code == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["objective"] for row in rows] == ["random", "hubert", "byol_teacher-none_optim.lr-3e-4"]
    for row in rows[1:]:
        assert (row["steps"], row["pretrain_s"], row["memory_mib"]) == (24, 20.0, 300.0)  # (20 - 6 - 2) / 0.5
        # Clips of 2.3 s in all are one batch, so an hour is 3600 / 2.3 steps.
        assert row["seconds_per_hour"] == pytest.approx(0.5 * 3600 / 2.3, rel=1e-4)
        assert (row["cer_ten"], row["wer_ten"], row["speaker_accuracy"]) == (0.25, 0.5, 0.75)
        assert (row["effective_rank"], row["energy_gap"]) == (7.0, 0.5)
    assert result.out == (tmp_path / "out" / "table.md").read_text()
    trained = [overrides for verb, overrides in record if verb == "pretrain"]
    assert any({"objective.teacher=none", "optim.lr=3e-4"} <= set(overrides) for overrides in trained)
    assert rows[1]["cer_ten_semi"] is None  # HuBERT's labels belong to its run
    assert (rows[2]["cer_ten_semi"], rows[2]["cer_ten_selftrain"]) == (0.25, 0.25)
    tuned = [overrides for verb, overrides in record if verb in ("finetune", "selftrain")]
    unlabelled = tmp_path / "out" / "unlabelled.jsonl"
    assert [clip.text for clip in Manifest(unlabelled)] == [None] * len(Manifest(train))
    audio = [{clip.audio_path.resolve() for clip in Manifest(path)} for path in (unlabelled, train)]
    assert audio[0] == audio[1]
    steps = "trainer.max_steps=500"
    assert {"task=ctc", f"data.train={labelled}", steps} <= set(tuned[-3])
    assert {"task=ctc", f"data.unlabelled={unlabelled}", "rounds=1", "trainer.max_steps=250"} <= set(tuned[-2])
    assert {"task=semi", f"data.train=['{labelled}','{unlabelled}']", steps} <= set(tuned[-1])
    tested = [overrides[0] for verb, overrides in record if verb == "evaluate"][-3:]
    assert [Path(checkpoint).name for checkpoint in tested] == ["ctc_ten", "round_1", "semi_ten"]
    assert len(tuned) == 8 and all("encoder.dropout=0.25" in overrides for overrides in tuned)
    probed = next(overrides for verb, overrides in record if verb == "probe")
    assert {f"data.train={labelled}", f"data.valid={train}", f"data.test={voices}"} <= set(probed)


def test_steps_that_do_not_show_are_measured_over_more_of_them(speechssl, record, write_corpus, tmp_path, monkeypatch):
    """Seconds of a noisy machine: the 36 steps to the third stop seem to take less than none."""
    from speechssl.commands import compare

    seconds, made_up = {4: 7.2, 8: 6.7, 44: 6.1, 176: 9.3}, compare.run_measured

    def run(path, verb, overrides, model=None):
        measured = made_up(path, verb, overrides, model)
        stop = path.stem.removeprefix("speed_")
        return replace(measured, cpu_s=seconds[int(stop)]) if stop.isdigit() else measured

    monkeypatch.setattr(compare, "run_measured", run)
    train = write_corpus()
    manifests = [f"data.{key}={train}" for key in ("train", "valid", "test")] + [f"data.labelled=[{train}]"]
    given = ("objectives=[hubert]", "random=false", "budget=20", f"out={tmp_path / 'out'}", "trainer.device=cpu")
    assert speechssl("compare", *given, *manifests).code == 0
    [row] = json.loads((tmp_path / "out" / "results.json").read_text())
    step_s = (9.3 - 6.7) / (176 - 44 - 4)
    assert row["steps"] == int((20 - (7.2 - 4 * step_s)) / step_s)


def test_mistakes_are_one_sentence(speechssl, write_corpus, tmp_path):
    train = write_corpus()
    shared = [f"data.{key}={train}" for key in ("train", "valid", "test")]
    shared += [f"data.labelled=[{train}]", f"out={tmp_path / 'out'}"]
    assert "did you mean hubert?" in speechssl("compare", "objectives=[huber]", *shared).sentence
    assert "did you mean semi?" in speechssl("compare", "finetunings=[semj]", *shared).sentence
    for same in ("[hubert,hubert]", "['hubert num_clusters=4','hubert objective.num_clusters=4']"):
        assert "names one twice" in speechssl("compare", f"objectives={same}", *shared).sentence
    twice = f"data.labelled=[{train},{tmp_path / 'elsewhere' / train.name}]"
    assert "two files of one name" in speechssl("compare", *shared, twice).sentence


def test_figures_of_other_settings_are_not_taken_for_these(tmp_path):
    record = tmp_path / "pretrained.json"
    took = {"cpu_s": 1.0, "wall_s": 2.0, "memory_mib": 3.0}
    record.write_text(json.dumps({"command": ["pretrain", "trainer.max_steps=36"], "took": took}))
    assert run_measured(record, "pretrain", ["trainer.max_steps=36"]) == Measured(**took)
    for other, words in ((["trainer.max_steps=72"], "max_steps=36, where now is"), ([], "where now is nothing there")):
        with pytest.raises(UserError, match=words):
            run_measured(record, "pretrain", other)


@pytest.mark.slow
def test_a_real_comparison(speechssl, small_overrides, write_corpus, tmp_path):
    train, labelled = write_corpus(), write_corpus("ten")
    model = [override for override in small_overrides if override.startswith("model")]
    command = ("compare", "objectives=['hubert num_clusters=4']", "budget=40", f"data.train={train}")
    command += (f"data.valid={train}", f"data.test={labelled}", f"data.labelled=[{labelled}]")
    command += (f"out={tmp_path / 'out'}", *model)
    command += ("finetunings=[ctc,selftrain,semi]", "data.batch_seconds=2.0", "finetune_steps=4", "probe_steps=4")
    command += ("trainer.device=cpu",)
    assert speechssl(*command).code == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["objective"] for row in rows] == ["random", "hubert_num_clusters-4"]
    assert all(row["cer_ten"] >= 0 and row["speaker_accuracy"] >= 0 for row in rows)
    assert all(row["cer_ten_selftrain"] >= 0 for row in rows)
    assert rows[0]["cer_ten_semi"] >= 0 and rows[1]["cer_ten_semi"] is None
    assert (tmp_path / "out" / "cer_ten_semi.png").is_file()
