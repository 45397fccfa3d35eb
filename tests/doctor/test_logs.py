"""Logs of others with our names and units, and the installation's checks."""

from __future__ import annotations

import json
import math

import pytest

from speechssl import cli
from speechssl.doctor import healthy, install, logs
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
    assert (log.rows[2]["loss"], log.rows[2]["skipped_steps"]) == (None, 1.0)


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
