"""Foreign weights where a checkpoint is taken: fine-tuning and further pretraining start from them."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from speechssl import cli, manifest
from speechssl.training.checkpoint import load_checkpoint

RUN = ["trainer.max_steps=1", "trainer.device=cpu", "data.num_workers=0", "data.batch_seconds=4.0"]


@pytest.fixture
def clips(tmp_path, audio_tools, peer):
    """A manifest of noise with transcripts."""
    rows = []
    for i, waveform in enumerate(peer.noise(16_000, 12_000, 20_000)):
        audio_tools.save(tmp_path / "data" / f"{i}.wav", 0.1 * waveform.clamp(-3, 3))
        keys = {"text": "ab a", "duration": len(waveform) / 16_000, "id": str(i)}
        rows.append({"audio_filepath": f"{i}.wav", **keys})
    manifest.write(tmp_path / "data" / "train.jsonl", rows)
    return tmp_path / "data" / "train.jsonl"


def test_finetuning_takes_shape_weights_and_preprocessing(peer, tmp_path, clips):
    model = peer.make("WavLMModel", num_buckets=24, max_bucket_distance=30)
    kind = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000, "do_normalize": True}
    init = peer.save(model, tmp_path / "init", **kind)
    arguments = [f"init={init}", f"data.train={clips}", f"run_dir={tmp_path / 'run'}", "optim.lr=1e-12", *RUN]
    assert cli.main(["finetune", "task=ctc", *arguments]) == 0
    given, tuned = load_checkpoint(init), load_checkpoint(tmp_path / "run")
    assert tuned.config["encoder"] == given.config["encoder"] and tuned.config["normalize"]
    for name, tensor in given.part("encoder").items():
        torch.testing.assert_close(tuned.part("encoder")[name], tensor, atol=1e-6, rtol=1e-4)


def test_a_finetuned_wavlm_goes_back_as_wavlm(peer, tmp_path, clips):
    init = peer.save(peer.make("WavLMModel", num_buckets=24, max_bucket_distance=30), tmp_path / "init")
    arguments = [f"init={init}", f"data.train={clips}", f"run_dir={tmp_path / 'run'}", *RUN]
    assert cli.main(["finetune", "task=ctc", *arguments]) == 0
    out = tmp_path / "out"
    assert cli.main(["convert", f"source={tmp_path / 'run'}", f"out={out}", "format=huggingface"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["WavLMForCTC"] and config["num_buckets"] == 24


def test_pretraining_goes_on_from_weights_and_quantizer(peer, tmp_path, clips):
    quantizer = {**peer.quantizer, "codevector_dim": 256, "proj_codevector_dim": 256, "num_codevectors_per_group": 320}
    model = peer.make("Wav2Vec2ForPreTraining", **{**quantizer, "num_codevector_groups": 2})
    kind = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000, "do_normalize": False}
    init = peer.save(model, tmp_path / "init", **kind)
    shape = {
        "conv_channels": "[16,16,16,16,16,16,16]",
        "hidden_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_size": 40,
        "position_kernel": 16,
        "position_groups": 4,
    }
    changes = [f"model.encoder.{key}={value}" for key, value in shape.items()]
    arguments = [f"init={init}", "model=base", f"data.train={clips}", f"run_dir={tmp_path / 'run'}", *changes, *RUN]
    assert cli.main(["pretrain", *arguments, "optim.lr=1e-12"]) == 0
    given, trained = load_checkpoint(init), load_checkpoint(tmp_path / "run")
    for part in ("encoder", "objective"):
        for name, tensor in given.part(part).items():
            torch.testing.assert_close(trained.part(part)[name], tensor, atol=1e-6, rtol=1e-4)


def test_hub_names_go_through_huggingface_hub(peer, tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    folder = peer.save(peer.make("HubertModel"), tmp_path / "model")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert load_checkpoint("hf:someone/hubert").config["origin"]["model_type"] == "hubert"
    assert asked == ["someone/hubert"]

    def unreachable(name, **_):
        raise OSError("no network\nand more")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    assert cli.main(["convert", "source=hf:someone/hubert", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no network" in error
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.main(["convert", "source=hf:someone/hubert", f"out={tmp_path / 'out'}"]) == 2
    assert "speechssl[hub]" in capsys.readouterr().err
