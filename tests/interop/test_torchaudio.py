"""torchaudio's Wav2Vec2Model in and out, against the model itself."""

from __future__ import annotations

import json

import pytest
import torch
from torchaudio.models import wav2vec2_model

import speechssl
from speechssl import cli
from speechssl.training.checkpoint import load_checkpoint

LAYERS = [(16, 10, 5), *[(16, 3, 2)] * 4, (16, 2, 2), (16, 2, 2)]


def make(mode="group_norm", pre_norm=False, *, num_outputs=None, layers=LAYERS):
    torch.manual_seed(0)
    return wav2vec2_model(
        mode, layers, False, 24, 0.1, 16, 4, 2, 3, 0.1, 40, 0.0, 0.1, pre_norm, 0.05, num_outputs
    ).eval()


@pytest.mark.parametrize(
    ("mode", "pre_norm", "num_outputs"),
    [("group_norm", False, None), ("layer_norm", True, 7), ("layer_norm", False, None), ("group_norm", True, 5)],
)
def test_a_state_dict_goes_in_and_comes_out_bit_for_bit(tmp_path, capsys, mode, pre_norm, num_outputs):
    model = make(mode, pre_norm, num_outputs=num_outputs)
    source, ours, back = (tmp_path / name for name in ("source.pt", "ours", "back"))
    torch.save(model.state_dict(), source)
    keys = ["num_heads=3", f"pre_norm={str(pre_norm).lower()}"]
    assert cli.main(["convert", f"source={source}", f"out={ours}", *keys]) == 0
    assert cli.main(["convert", f"source={ours}", f"out={back}", "format=torchaudio"]) == 0
    assert capsys.readouterr().out.count("verdict: agrees") == 2
    found = torch.load(back / "model.pt", weights_only=True)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    rebuilt = wav2vec2_model(**json.loads((back / "config.json").read_text())["model"]).eval()
    rebuilt.load_state_dict(found)
    waveform = torch.randn(1, 6_000)
    with torch.no_grad():
        expected = model.encoder(model.feature_extractor(waveform, None)[0])[0]
        torch.testing.assert_close(rebuilt(waveform)[0], model(waveform)[0], rtol=0, atol=0)
        for folder in (ours, back):
            frames = speechssl.load_encoder(folder)(waveform, torch.tensor([6_000])).frames[0]
            torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)


def test_what_a_bare_state_dict_does_not_say_is_asked_for(tmp_path, capsys):
    torch.save(make().state_dict(), tmp_path / "a.pt")
    assert cli.main(["convert", f"source={tmp_path / 'a.pt'}", f"out={tmp_path / 'out'}"]) == 2
    assert "num_heads=" in capsys.readouterr().err
    torch.save(make(layers=[(16, 8, 4), (16, 4, 4)]).state_dict(), tmp_path / "a.pt")
    assert cli.main(["convert", f"source={tmp_path / 'a.pt'}", f"out={tmp_path / 'out'}", "num_heads=3"]) == 2
    assert "conv_strides=" in capsys.readouterr().err
    keys = ["num_heads=3", "conv_strides=[4,4]"]
    assert cli.main(["convert", f"source={tmp_path / 'a.pt'}", f"out={tmp_path / 'out'}", *keys]) == 0


def test_another_models_state_dict_is_one_sentence(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pt")
    assert cli.main(["convert", f"source={tmp_path / 'a.pt'}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "weight" in error


def test_our_recogniser_keeps_its_labels(ctc_run, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["convert", f"source={ctc_run}", f"out={out}", "format=torchaudio"]) == 0
    given, back = load_checkpoint(ctc_run), load_checkpoint(out)
    assert back.config["objective"]["vocabulary"] == given.config["objective"]["vocabulary"]
    assert (back.config["sample_rate"], back.config["normalize"]) == (16_000, True)
    for name, tensor in given.tensors.items():
        if name != "encoder.mask_vector":
            assert torch.equal(back.tensors[name], tensor)


def test_what_torchaudio_cannot_compute_is_one_sentence(peer, tmp_path, capsys):
    folder = peer.save(peer.make("WavLMModel", num_buckets=8, max_bucket_distance=9), tmp_path / "wavlm")
    assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'out'}", "format=torchaudio"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "format=huggingface" in error
