"""ONNX graphs, run by onnxruntime against our own models, at lengths that the export never saw."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from speechssl import audio, cli
from speechssl.interop import onnx as for_onnx
from speechssl.training.checkpoint import build_model, load_checkpoint

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Wav2Vec2ForCTC", {"vocab_size": 8, "pad_token_id": 4}),
        pytest.param(
            *("WavLMModel", {"num_buckets": 24, "max_bucket_distance": 30, "feat_extract_norm": "layer"}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_graph_takes_clips_of_any_length(peer, tmp_path, capsys, name, changes):
    vocabulary = peer.vocabulary if name.endswith("CTC") else None
    source = peer.save(peer.make(name, **changes), tmp_path / "model", vocabulary=vocabulary)
    out = tmp_path / "out"
    assert cli.main(["convert", f"source={source}", f"out={out}", "format=onnx"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    report = json.loads((out / "conversion_report.json").read_text())
    layers = [layer["layer"] for layer in report["comparisons"][-1]["layers"]]
    wanted = ["feature encoder", "hidden state 0", "hidden state 1", "hidden state 2"]
    assert layers == wanted + (["logits"] if vocabulary else [])
    assert not (out / "every_layer.onnx").exists()
    session = onnxruntime.InferenceSession(out / "model.onnx")
    encoder, head = build_model(load_checkpoint(source))
    for waveform in peer.noise(1_000, 7_777, 50_000):
        found = session.run(None, {"waveforms": waveform[None].numpy()})
        with torch.no_grad():
            output = encoder(audio.normalize_waveform(waveform)[None], torch.tensor([len(waveform)]))
            expected = [output.packed[-1], *([head.logits(output)] if vocabulary else [])]
        assert len(found) == len(expected)
        for ours, theirs in zip(expected, found, strict=True):
            torch.testing.assert_close(ours, torch.from_numpy(theirs)[0], atol=2e-5, rtol=1e-4)
    config = json.loads((out / "config.json").read_text())
    assert config.get("labels", [None])[0] == ("<blank>" if vocabulary else None)


def test_a_graph_that_disagrees_fails_and_says_at_which_layer(ctc_run, tmp_path, capsys, monkeypatch):
    """As if the exporter had spoilt a layer: one scale of the second layer is 1 % off in the written graph."""
    onnx = pytest.importorskip("onnx")
    write = for_onnx.write

    def spoil(checkpoint, folder):
        write(checkpoint, folder)
        model = onnx.load(folder / "model.onnx")
        made_by = {name: node for node in model.graph.node for name in node.output}
        last = made_by["frames"]
        while last.op_type != "LayerNormalization":
            last = made_by[last.input[0]]
        [scale] = [x for x in model.graph.initializer if x.name == last.input[1]]
        # Equal weights are one in the file, so the wrong one gets a name of its own.
        wrong = onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(scale), "wrong")
        model.graph.initializer.append(wrong)
        last.input[1] = "wrong"
        onnx.save(model, folder / "model.onnx")

    monkeypatch.setattr(for_onnx, "write", spoil)
    assert cli.main(["convert", f"source={ctc_run}", f"out={tmp_path / 'out'}", "format=onnx"]) == 2
    assert "first at the hidden state 2" in capsys.readouterr().err


def test_without_the_extra_it_is_one_sentence(ctc_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["convert", f"source={ctc_run}", f"out={tmp_path / 'out'}", "format=onnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "speechssl[onnx]" in error
