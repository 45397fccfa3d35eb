"""The log-mel front end through the commands: a checkpoint remembers it."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(("front", "channels"), [("fbank", "[20,8]"), ("fbank40", "[20,8,8]"), ("stack40", "[20,80]")])
def test_pretrained_fine_tuned_and_used(pretrain, finetune, speechssl, write_corpus, tmp_path, front, channels):
    train = write_corpus()
    options = (f"feature_encoder={front}", f"model.encoder.conv_channels={channels}", "objective=best_rq")
    assert pretrain(train, *options).code == 0
    config = json.loads((tmp_path / "pretrained" / "checkpoints" / "last" / "config.json").read_text())
    assert config["encoder"]["feature_encoder"] == ("stacked" if front == "stack40" else "fbank")
    assert finetune(train, "task=ctc", init=tmp_path / "pretrained").code == 0
    result = speechssl("transcribe", f"checkpoint={tmp_path / 'tuned'}", f"audio={tmp_path / 'train' / '0.wav'}")
    assert result.code == 0
    refused = speechssl("convert", f"source={tmp_path / 'pretrained'}", f"out={tmp_path / 'x'}", "format=torchaudio")
    assert "begins with a log-mel spectrum" in refused.sentence


def test_another_front_end_than_the_checkpoints_is_refused(pretrain, write_corpus, tmp_path):
    train = write_corpus()
    assert pretrain(train, "objective=best_rq").code == 0
    refused = pretrain(
        train,
        "feature_encoder=fbank",
        "model.encoder.conv_channels=[80,8]",
        f"init={tmp_path / 'pretrained'}",
        run="other",
    )
    assert "has another encoder" in refused.sentence
