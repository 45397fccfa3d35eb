"""evaluate, transcribe and identify on checkpoints from disk: real encoders, random weights, noise for speech."""

from __future__ import annotations

import json

import pytest
import torch

from speechssl import cli, manifest


@pytest.fixture
def noises(tmp_path, audio_tools):
    """Clips of noise of many lengths, at two rates, and their manifest -> the manifest."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i, seconds in enumerate([0.6, 0.09, 1.1, 0.25, 0.8, 0.4]):
        rate = 16_000 if i % 2 else 8_000
        waveform = 0.1 * torch.randn(round(seconds * rate), generator=generator)
        audio_tools.save(tmp_path / "data" / f"{i}.wav", waveform, rate=rate)
        keys = {"text": "ab c", "speaker": ["ann", "bob"][i % 2], "id": str(i)}
        rows.append({"audio_filepath": f"{i}.wav", "duration": seconds, **keys})
    manifest.write(tmp_path / "data" / "test.jsonl", rows)
    return tmp_path / "data" / "test.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_evaluate_and_transcribe_agree_whatever_the_batch(ctc_run, noises, tmp_path, capsys):
    texts = []
    for batch_seconds in (0.1, 100):
        out = tmp_path / f"out{batch_seconds}"
        overrides = [f"data.test={noises}", f"out={out}", f"data.batch_seconds={batch_seconds}"]
        assert cli.main(["evaluate", f"checkpoint={ctc_run}", *overrides]) == 0
        texts.append([row["hypothesis"] for row in lines(out / "hypotheses.jsonl")])
    capsys.readouterr()
    audio = f"audio={noises.parent}"
    assert cli.main(["transcribe", f"checkpoint={ctc_run}", audio, "data.batch_seconds=1.0"]) == 0
    texts.append([line.split("\t")[1] for line in capsys.readouterr().out.splitlines()])
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 2


def test_evaluate_and_identify_agree_whatever_the_batch(speaker_run, noises, tmp_path, capsys):
    rows, metrics = [], []
    for batch_seconds in (0.1, 100):
        out = tmp_path / f"out{batch_seconds}"
        overrides = [f"data.test={noises}", f"out={out}", f"data.batch_seconds={batch_seconds}"]
        assert cli.main(["evaluate", f"checkpoint={speaker_run}", *overrides]) == 0
        rows.append(lines(out / "scores.jsonl"))
        metrics.append(json.loads((out / "metrics.json").read_text()))
    assert [row["prediction"] for row in rows[0]] == [row["prediction"] for row in rows[1]]
    assert [row["score"] for row in rows[0]] == pytest.approx([row["score"] for row in rows[1]], abs=1e-4)
    for key in ("accuracy", "eer", "min_dcf", "audio_seconds"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], abs=1e-6)
    assert metrics[0]["audio_seconds"] == pytest.approx(3.24, abs=1e-3)
    capsys.readouterr()
    assert cli.main(["identify", f"checkpoint={speaker_run}", f"audio={noises.parent}"]) == 0
    said = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert said == [row["prediction"] for row in rows[0]]


def test_no_gpu_and_no_checkpoint_are_one_sentence(ctc_run, noises, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    audio = f"audio={noises.parent / '0.wav'}"
    assert cli.main(["transcribe", f"checkpoint={ctc_run}", audio, "trainer.device=cuda"]) == 2
    assert "trainer.device=cpu" in capsys.readouterr().err
    assert cli.main(["transcribe", f"checkpoint={tmp_path / 'gone'}", audio]) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_best_is_taken_before_last(ctc_run, noises, tmp_path, capsys):
    checkpoints = ctc_run / "checkpoints"
    (checkpoints / "best").symlink_to("step_1")
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("step_gone")
    assert cli.main(["transcribe", f"checkpoint={ctc_run}", f"audio={noises.parent / '0.wav'}"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
