"""ONNX for servers: an encoder, with its CTC head if it has one, as a graph that takes clips of any length.

The graph is that of interop.reference, one clip at a time and written in plain operations; normalisation of clips is in
it, so that a server needs nothing but samples. config.json beside it says what goes in and comes out.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl import audio
from speechssl.errors import UserError
from speechssl.interop import foreign, reference
from speechssl.models.encoder import EncoderConfig
from speechssl.training.checkpoint import Checkpoint, read_json

WEIGHTS = "model.onnx"
OPSET = 18


class _Graph(nn.Module):
    """Waveforms [1, N] -> frames [1, T, C], logits [1, T, V] of a CTC head, the blank first, and every layer before."""

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self.config = EncoderConfig.from_dict(checkpoint.config["encoder"])
        self.normalize = checkpoint.config["normalize"]
        plain = {**checkpoint.config, "origin": {}}  # a head's rows in our order
        found = foreign.common_tensors(Checkpoint(checkpoint.folder, plain, checkpoint.tensors))
        self.names = list(found)
        self.values = nn.ParameterList([nn.Parameter(x.float(), requires_grad=False) for x in found.values()])

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        tensors = dict(zip(self.names, self.values, strict=True))
        waveform = audio.normalize_waveform(waveforms[0]) if self.normalize else waveforms[0]
        features, hidden = reference.hidden_states(tensors, self.config, waveform)
        frames = hidden[-1][None]
        outputs = [frames]
        if "lm_head.weight" in tensors:
            outputs.append(F.linear(frames, tensors["lm_head.weight"], tensors["lm_head.bias"]))
        return (*outputs, features[None], *(x[None] for x in hidden[:-1]))


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """model.onnx with its weights inside.

    Raises:
        UserError: onnx or what exports to it is not installed, or the head is none that can be written.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"format=onnx needs {error.name}: install it with `pip install 'speechssl[onnx]'`") from error
    graph = _Graph(checkpoint).eval()
    outputs = ["frames", "logits"] if "lm_head.weight" in graph.names else ["frames"]
    inner = list(_layers(graph.config.num_layers).values())[:-1]
    samples = torch.export.Dim("samples", min=2 * graph.config.receptive_field)
    example = torch.randn(1, checkpoint.config["sample_rate"] + 4 * graph.config.receptive_field)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its progress there
        torch.onnx.export(
            graph,
            (example,),
            folder / WEIGHTS,
            input_names=["waveforms"],
            output_names=[*outputs, *inner],
            dynamic_shapes={"waveforms": {1: samples}},
            opset_version=OPSET,
            dynamo=True,
            external_data=sum(x.numel() for x in graph.values) > 2**28,  # a file of protobuf ends at 2 GiB
            verbose=False,
        )
    # The layers before the last keep their names in the graph, and are no output of it.
    model = onnx.load(folder / WEIGHTS, load_external_data=False)
    del model.graph.output[len(outputs) :]
    onnx.save(model, folder / WEIGHTS)


def _layers(num_layers: int) -> dict[str, str]:
    """Each layer as a report calls it, and as the graph does."""
    inner = {f"hidden state {i}": f"hidden_state_{i}" for i in range(num_layers)}
    return {"feature encoder": "feature_encoder", **inner, f"hidden state {num_layers}": "frames"}


@contextlib.contextmanager
def every_layer(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The written graph beside itself with every layer as an output, and its outputs' names by layer, for a while."""
    import onnx

    model = onnx.load(folder / WEIGHTS, load_external_data=False)
    layers = _layers(read_json(folder / "config.json")["num_layers"])
    there = [output.name for output in model.graph.output]
    for name in layers.values():
        if name not in there:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    path = folder / "every_layer.onnx"
    try:
        onnx.save(model, path)
        yield path, {**layers, "logits": "logits"} if "logits" in there else layers
    finally:
        path.unlink(missing_ok=True)


def folder_files(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """config.json of the folder.

    Raises:
        UserError: the head is none that can be written.
    """
    config = checkpoint.config
    head = config["objective"]["name"]
    if head not in ("none", "ctc", "wav2vec2"):
        raise UserError(f"{checkpoint.folder} has a head of kind {head!r}, and only encoders and CTC heads go to ONNX")
    encoder = EncoderConfig.from_dict(config["encoder"])
    content = {
        "format": "onnx",
        "input": "waveforms: float32 [1, samples], mono, full scale at 1",
        "sample_rate": config["sample_rate"],
        "min_samples": 2 * encoder.receptive_field,
        "hop": encoder.hop,
        "num_layers": encoder.num_layers,
    }
    return {"config.json": {**content, "labels": config["objective"]["vocabulary"]} if head == "ctc" else content}
