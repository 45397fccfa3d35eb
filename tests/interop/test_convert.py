"""The command: its report, that it fails where models differ, and how it does without transformers."""

from __future__ import annotations

import builtins
import json

import pytest
import torch

from speechssl import cli
from speechssl.interop import check, foreign
from speechssl.training.checkpoint import load_checkpoint


@pytest.fixture
def folder(peer, tmp_path):
    return peer.save(peer.make("Wav2Vec2Model"), tmp_path / "model")


def convert(folder, out, *more):
    return cli.main(["convert", f"source={folder}", f"out={out}", *more])


def test_a_conversion_that_does_not_agree_fails_and_says_where(folder, tmp_path, capsys, monkeypatch):
    to_checkpoint = foreign.to_checkpoint

    def wrong(model):
        checkpoint = to_checkpoint(model)
        checkpoint.tensors["encoder.context.layers.0.feed_in.bias"][3] += 1e-3
        return checkpoint

    monkeypatch.setattr(foreign, "to_checkpoint", wrong)
    assert convert(folder, tmp_path / "out") == 2
    streams = capsys.readouterr()
    assert "first at the hidden state 1" in streams.err and streams.err.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["conversion_report.json"]
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["comparisons"][0]["first_disagreement"] == "hidden state 1"
    monkeypatch.undo()
    assert convert(folder, tmp_path / "out") == 0  # a failed conversion may be replaced


def test_models_that_are_not_numbers_do_not_agree():
    ours = check.Outputs("a", {"logits": [torch.tensor([[float("nan")]])]})
    theirs = check.Outputs("b", {"logits": [torch.tensor([[0.0]])]})
    assert check.compare(ours, theirs)["first_disagreement"] == "logits"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Wav2Vec2Model", {}),
        ("Wav2Vec2ForCTC", {"vocab_size": 5, "feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        ("HubertModel", {"feat_proj_layer_norm": False, "conv_bias": True}),
        ("Data2VecAudioModel", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 6}),
        ("WavLMModel", {"num_buckets": 24, "max_bucket_distance": 30, "do_stable_layer_norm": True}),
    ],
)
def test_without_transformers_the_plain_reference_is_the_judge(peer, tmp_path, monkeypatch, capsys, name, changes):
    folder = peer.save(peer.make(name, **changes), tmp_path / "model")
    checkpoint = load_checkpoint(folder)
    clips = check.clips(checkpoint, [])
    theirs = check.huggingface_states(folder, checkpoint.config["objective"]["name"], clips)
    real_import = builtins.__import__

    def without(module, *rest):
        if module == "transformers":
            raise ImportError(module)
        return real_import(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert convert(folder, tmp_path / "out") == 0
    assert "against a plain reference" in capsys.readouterr().out
    plain = check.plain_states(foreign.read_foreign(folder), clips)
    assert check.compare(plain, theirs)["first_disagreement"] is None


def test_speech_is_compared_too(folder, tmp_path, audio_tools, peer):
    [waveform] = peer.noise(9_600)
    path = audio_tools.save(tmp_path / "a.wav", 0.1 * waveform.clamp(-3, 3), rate=8_000)
    assert convert(folder, tmp_path / "out", f"audio={path}") == 0
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["clips_samples"] == [16_000, 11_200, 19_200]  # noise, noise, and the recording at 16 kHz


def test_out_is_never_something_else(folder, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    for out in (mine, folder, mine / "thesis.txt"):
        assert convert(folder, out) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert (mine / "thesis.txt").read_text() == "x" and (folder / "config.json").is_file()


def test_other_mistakes_are_one_sentence(folder, ctc_run, tmp_path, capsys):
    for source, more, word in (
        (tmp_path / "gone", (), "gone"),
        (folder, ("format=keras",), "format=keras"),
        (ctc_run, (), "our own format"),
        ("hf:", (), "hf:"),
    ):
        assert convert(source, tmp_path / "out", *more) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error, error


def test_what_was_converted_reads_back_as_the_folder_itself_does(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    assert convert(folder, tmp_path / "out") == 0
    again = load_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())
