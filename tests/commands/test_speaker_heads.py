"""Every speaker head by name, from fine-tuning to evaluation, on tones."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("task", ["superb", "xvector", "ecapa", "ctc_speaker"])
def test_a_head_trains_and_is_evaluated(finetune, speechssl, write_corpus, tmp_path, task):
    train = write_corpus()
    done = finetune(train, f"task={task}", f"data.valid={train}", run=task)
    assert done.code == 0, done.err
    run = tmp_path / task
    done = speechssl("evaluate", f"checkpoint={run}", f"data.test={train}", f"out={run / 'test'}", "trainer.device=cpu")
    assert done.code == 0, done.err
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1 and 0 <= metrics["eer"] <= 1
    assert ("speaker_attributed_wer" in metrics) == (task == "ctc_speaker")
    # What was evaluated says what a cosine means, and `identify` finds it.
    audio = tmp_path / "train" / "0.wav"
    done = speechssl("identify", f"checkpoint={run}", f"audio={audio}", f"other={audio}", "trainer.device=cpu")
    verdict, cosine, probability = done.out.split()
    assert verdict in ("same", "different") and float(cosine) == pytest.approx(1.0, abs=1e-3)
    assert 0 <= float(probability) <= 1
