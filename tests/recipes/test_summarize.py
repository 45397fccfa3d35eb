"""recipes/summarize.py: the best rate, and the table of hand-made run folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "recipes" / "summarize.py"


@pytest.fixture(scope="module")
def summarize():
    spec = importlib.util.spec_from_file_location("summarize", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder, *, valid_cers, done=True, test=None):
    folder.mkdir(parents=True)
    rows = [{"step": 1, "loss": 3.0}, *({"step": 100, "valid_cer": cer} for cer in valid_cers)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / ".done").touch()
    if test:
        (folder / "test").mkdir()
        (folder / "test" / "metrics.json").write_text(json.dumps(test))


def test_best_rate_is_by_the_lowest_cer_of_the_seed_that_tried_all(tmp_path, summarize):
    write_run(tmp_path / "lr_3e-4/seed_0", valid_cers=[0.9, 0.5])
    write_run(tmp_path / "lr_1e-3/seed_0", valid_cers=[0.4, 0.8])  # best at its first validation
    write_run(tmp_path / "lr_3e-3/seed_0", valid_cers=[0.4])  # equal, and the higher rate
    write_run(tmp_path / "lr_1e-3/seed_1", valid_cers=[0.95])  # another seed's bad luck does not count
    write_run(tmp_path / "lr_1e-2/seed_0", valid_cers=[0.1], done=False)  # interrupted
    assert summarize.cer_by_rate(tmp_path) == {"3e-4": 0.5, "1e-3": 0.4, "3e-3": 0.4}
    assert summarize.best_rate(tmp_path) == "1e-3"


def test_a_pretraining_on_labels_is_told_by_its_loss(tmp_path, summarize):
    rows = [{"step": 1, "loss_masked": 4.625}, {"step": 9, "valid_loss_masked": 3.5, "valid_accuracy": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = "Pretraining: loss of masked frames 4.62 nats at step 1, 3.50 on valid at step 9; accuracy 25.0 %"
    assert summarize.pretraining(tmp_path).startswith(said)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss_other": 1.0}))
    assert summarize.pretraining(tmp_path) == ""


def test_table(tmp_path, summarize):
    few = tmp_path / "ctc" / "60_clips"
    write_run(few / "pretrained/lr_1e-3/seed_0", valid_cers=[0.2], test={"wer": 0.25, "cer": 0.1})
    write_run(few / "pretrained/lr_1e-3/seed_1", valid_cers=[0.2], test={"wer": 0.35, "cer": 0.2})
    write_run(few / "pretrained/lr_3e-3/seed_0", valid_cers=[0.3])
    write_run(few / "scratch/lr_1e-3/seed_0", valid_cers=[0.8], test={"wer": 0.99, "cer": 0.99})  # not the best rate
    write_run(few / "scratch/lr_3e-3/seed_0", valid_cers=[0.7], test={"wer": 1.0, "cer": 0.725})
    write_run(tmp_path / "speaker", valid_cers=[], test={"accuracy": 0.985, "eer": None})
    (tmp_path / "seconds.tsv").write_text("2. Pretrain\t100\n1. Prepare\t7\n2. Pretrain\t20\n")
    (tmp_path / "pretrained").mkdir()
    rows = [
        {"step": 1, "loss_contrastive": 4.625},
        {"step": 500, "loss_contrastive": 4.0, "accuracy": 0.2},
        {
            "step": 500,
            "valid_loss_contrastive": 3.875,
            "valid_accuracy": 0.25,
            "valid_chance": 0.0312,
            "valid_code_perplexity": 101.7,
        },
    ]
    (tmp_path / "pretrained" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert summarize.table(tmp_path).splitlines() == [
        "Pretraining: contrastive loss 4.62 nats at step 1, 3.88 on valid at step 500; accuracy 25.0 %, "
        "by guessing 3.1 %; code perplexity 102",
        "",
        "Error rates on the test split",
        "  transcripts  seed  WER pretrained  WER scratch  CER pretrained  CER scratch",
        "  60_clips        0          25.0 %      100.0 %          10.0 %       72.5 %",
        "  60_clips        1          35.0 %            -          20.0 %            -",
        "  60_clips     mean          30.0 %      100.0 %          15.0 %       72.5 %",
        "",
        "CER on valid by learning rate, first seed; the lowest is taken",
        "                         1e-3    3e-3",
        "  60_clips pretrained  20.0 %  30.0 %",
        "  60_clips scratch     80.0 %  70.0 %",
        "",
        "Speakers: accuracy 98.5 %, equal error rate -",
        "",
        "Seconds",
        "  1. Prepare     7",
        "  2. Pretrain  120",
        "  all          127",
        "",
        f"Run folders: {tmp_path}",
    ]


def test_probes_and_heads(tmp_path, summarize):
    def row(source, layer, valid, test):
        return {"source": source, "layer": layer, "valid": valid, "test": test, "interval": [test - 0.1, test + 0.1]}

    results = [
        row("encoder", "0", 0.7, 0.9),  # lucky in the test, but not what valid chose
        {**row("encoder", "1", 0.8, 0.75), "eer": 0.125, "eer_interval": [0.1, 0.15]},
        row("encoder", "weighted", 0.85, 0.8),
        row("log-mel", "log-mel", 0.5, 0.45),
    ]
    folder = tmp_path / "probe" / "speaker"
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text(json.dumps({"metric": "accuracy", "results": results}))
    verified = {"accuracy": None, "eer": 0.2, "eer_interval": [0.15, 0.25], "min_dcf": 0.5}
    for start, accuracy in (("pretrained", 0.95), ("scratch", 0.5)):
        for name, metrics in (("test", {"accuracy": accuracy, "eer": None}), ("verify", verified)):
            (tmp_path / "speaker" / start / name).mkdir(parents=True)
            (tmp_path / "speaker" / start / name / "metrics.json").write_text(json.dumps(metrics))
    lines = [" ".join(line.split()) for line in summarize.table(tmp_path).splitlines()]
    assert "encoder 1 75.0 % 65.0 to 85.0 % 12.5 % 10.0 to 15.0 %" in lines
    assert "encoder weighted 80.0 % 70.0 to 90.0 % - -" in lines
    assert "log-mel log-mel 45.0 % 35.0 to 55.0 % - -" in lines
    assert not any(line.startswith("encoder 0") for line in lines)
    assert "pretrained test 95.0 % - - -" in lines
    assert "scratch verify - 20.0 % 15.0 to 25.0 % 0.500" in lines


def test_table_of_nothing(tmp_path, summarize):
    assert summarize.table(tmp_path) == f"Run folders: {tmp_path}"
