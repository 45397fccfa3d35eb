"""Logs of others with our names and units, and the installation's checks."""

from __future__ import annotations

import json
import math
import re

import pytest

from speechssl import cli
from speechssl.doctor import healthy, install, judge, logs
from speechssl.errors import UserError

FAIRSEQ = """\
[2021-05-01 10:00:00,1][fairseq_cli.train][INFO] - {'optimization': {'max_update': 400000, 'lr': [0.0005]}}
[2021-05-01 10:05:00,1][train_inner][INFO] - {"epoch": 1, "loss": "6.658", "loss_0": "6.658", \
"code_perplexity": "3.2", "temp": "1.9", "num_updates": "200000", "lr": "0.0003", "gnorm": "0.01", "accuracy": "0.01"}
[2021-05-01 10:06:00,1][valid][INFO] - {"epoch": 1, "valid_loss": "6.6", "valid_num_updates": "200000"}
"""


def test_fairseq_counts_in_bits(tmp_path):
    (tmp_path / "hydra_train.log").write_text(FAIRSEQ)
    log = logs.read(tmp_path / "hydra_train.log")
    assert (log.objective, log.max_steps) == ("wav2vec2", 400_000)
    row = log.rows[0]
    assert row["loss_contrastive"] == pytest.approx(6.658 * math.log(2))  # 4.615 nats: chance among 101
    assert (row["step"], row["code_usage"], row["grad_norm"]) == (200_000, pytest.approx(0.005), 0.01)
    assert log.rows[1]["step"] == 200_000


def test_validation_losses_of_fairseq_are_nats_too(tmp_path):
    line = (
        '[2021-05-01 10:06:00,1][valid][INFO] - {"epoch": 1, "valid_loss": "6.6", "valid_loss_0": "6.5", '
        '"valid_nll_loss": "6.4", "valid_best_loss": "6.3", "valid_loss_scale": "128", "valid_num_updates": "200000"}\n'
    )
    (tmp_path / "hydra_train.log").write_text(FAIRSEQ + line)
    row = logs.read(tmp_path).rows[-1]
    for name, bits in (("loss", 6.6), ("loss_contrastive", 6.5), ("nll_loss", 6.4), ("best_loss", 6.3)):
        assert row[f"valid_{name}"] == pytest.approx(bits * math.log(2))
    assert row["valid_loss_scale"] == 128
    assert "loss" not in row


def fairseq(folder, settings="", **changes):
    """A log at half of the run whose codes are in use, but for the changes."""
    lines = FAIRSEQ.splitlines()
    row = json.loads(lines[1].partition(" - ")[2]) | {"code_perplexity": "400", **changes}
    rows = [f"[x][train_inner][INFO] - {json.dumps(row | {'num_updates': str(200_000 + i)})}" for i in range(5)]
    path = folder / "hydra_train.log"
    path.write_text("\n".join([lines[0] + settings, *rows]))
    return path


def test_chance_in_a_log_of_fairseq_is_not_learning(tmp_path):
    assert "not_learning" in found(fairseq(tmp_path))
    assert found(fairseq(tmp_path, accuracy="0.3", loss="4.0", loss_0="4.0")) == {}
    # Among 11 candidates 0.1 is chance, among 101 it is not.
    assert "not_learning" in found(fairseq(tmp_path, "{'num_negatives': 10}", accuracy="0.1", loss="3.46"))
    assert found(fairseq(tmp_path, accuracy="0.1", loss="3.46")) == {}


def test_a_loss_of_fairseq_that_is_not_finite_is_found(tmp_path):
    assert found(fairseq(tmp_path, loss="nan", loss_0="nan")) == {"non_finite": "the loss of this row is not finite"}


def test_fairseq_without_hydra_is_the_same_log(tmp_path):
    hydra, plain = tmp_path / "hydra.log", tmp_path / "plain.log"
    hydra.write_text(FAIRSEQ)
    lines = re.sub(r"\[([^][]*),1\]\[([^][]*)\]\[INFO\] - ", r"\1 | INFO | \2 | ", FAIRSEQ)
    assert "2021-05-01 10:05:00 | INFO | train_inner | {" in lines
    for text in (lines, re.sub("fairseq_cli.train [|] .*", "fairseq_cli.train | Namespace(max_update=400000)", lines)):
        plain.write_text(text)
        ours, theirs = logs.read(plain), logs.read(hydra)
        assert (ours.rows, ours.max_steps, ours.objective) == (theirs.rows, 400_000, "wav2vec2")
        assert len(ours.rows) == 2


def test_a_collapse_in_a_log_of_fairseq_is_named(tmp_path, capsys):
    rows = [FAIRSEQ.splitlines()[1].replace("200000", str(200_000 + i)) for i in range(4)]
    (tmp_path / "hydra_train.log").write_text("\n".join([FAIRSEQ.splitlines()[0], *rows]))
    assert cli.main(["doctor", f"run_dir={tmp_path / 'hydra_train.log'}"]) == 0
    out = capsys.readouterr().out
    assert "codebook_collapse (open, since step 200002)" in out
    assert "objective.diversity_weight" in out


def test_hugging_face_logs_its_trainer(tmp_path):
    history = [
        {"step": 10, "loss": 3.0, "learning_rate": 1e-4, "grad_norm": 2.0},
        {"step": 10, "eval_wer": 1.0, "eval_loss": 3},
    ]
    history.append({"step": 20, "loss": float("nan"), "learning_rate": 1e-4})
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"max_steps": 100, "log_history": history}))
    log = logs.read(tmp_path)
    assert (log.objective, log.max_steps) == ("ctc", 100)
    assert log.rows[0] == {"step": 10, "loss": 3.0, "lr": 1e-4, "grad_norm": 2.0}
    assert log.rows[1]["valid_wer"] == 1.0
    assert log.rows[2]["loss"] is None


def hugging_face(folder, *entries, step=100):
    """trainer_state.json of a run half done, one entry every so many steps."""
    history = [{"step": step * number, **entry} for number, entry in enumerate(entries, 1)]
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"max_steps": 2 * step * len(entries), "log_history": history}))
    return path


def found(path):
    """Names and evidence of what the doctor finds in a log."""
    log = logs.read(path)
    judged = judge.examine(log.rows, objective=log.objective, settings={}, max_steps=log.max_steps, patience=3)
    return {finding.name: finding.evidence for finding in judged}


NAN, WELL = float("nan"), {"loss": 2.0, "grad_norm": 1.0}


@pytest.mark.parametrize(
    "entries",
    [
        [{"loss": 0.0, "grad_norm": NAN}, {"eval_loss": NAN, "eval_wer": 1.0}] * 4,  # as the Trainer filters NaN
        [WELL, WELL, *[{"loss": 0.0, "grad_norm": NAN}] * 3],
        [{"loss": 0.0, "learning_rate": 1e-4}] * 4,  # older ones log no norm
        [{"loss": NAN, "grad_norm": NAN}] * 4,
    ],
)
def test_losses_that_are_not_finite_are_found_in_a_log_of_hugging_face(tmp_path, entries):
    [(name, evidence)] = found(hugging_face(tmp_path, *entries)).items()
    assert name == "non_finite"
    assert "not finite" in evidence
    assert "0%" not in evidence


def test_a_loss_that_is_truly_zero_is_none_of_these(tmp_path):
    assert found(hugging_face(tmp_path, WELL, *[{"loss": 0.0, "grad_norm": 1e-4}] * 5)) == {}
    assert found(hugging_face(tmp_path, WELL, *[{"loss": 0.0}] * 5)) == {}


def test_a_word_error_rate_of_one_throughout_is_a_finding_late_in_the_run(tmp_path):
    wordless = [WELL, {"eval_wer": 1.0}]
    path = hugging_face(tmp_path, *wordless * 10)
    assert found(path) == {}  # half of the run
    path.write_text(path.read_text().replace('"max_steps": 4000', '"max_steps": 2000'))
    assert found(path) == {"blank_plateau": "not one word was right in 7 validations"}
    assert found(hugging_face(tmp_path, WELL, {"eval_wer": 0.98}, *wordless * 20)) == {}


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no run at"):
        logs.read(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        logs.read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "event": "began"}\n')
    with pytest.raises(UserError, match="no figures of training yet"):
        logs.read(tmp_path)


def test_bundled_curves_name_the_runs_that_made_them():
    for path in healthy.FOLDER.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["edges"] == list(healthy.EDGES)
        assert content["runs"]
        assert all(len(parts) == len(healthy.EDGES) for parts in content["ranges"].values())
    assert {"wav2vec2", "ctc", "classify"} <= {path.stem for path in healthy.FOLDER.glob("*.json")}


def test_a_broken_library_is_named_with_its_mend(monkeypatch):
    def broken():
        raise OSError("libx.so: cannot open")

    check = install._try("x", broken, "pip install x")
    assert (check.works, check.found, check.mend) == (False, "OSError: libx.so: cannot open", "pip install x")
    absent = install._package("surely_not_there", "something", "surely-not-there")
    assert absent.works is None
    assert absent.mend.endswith("pip install surely-not-there")
