"""Do two models compute the same? Layer by layer, on the same clips, in double precision: rounding hides nothing.

The other model runs in its own toolkit where that is installed (transformers; torchaudio always is), and otherwise as
interop.reference, written plainly. Which it was stands in the report.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl import audio
from speechssl.interop import foreign, huggingface, names, onnx, pickles, reference
from speechssl.interop import torchaudio as ours_for_torchaudio
from speechssl.models.encoder import EncoderConfig
from speechssl.rng import generator as make_generator
from speechssl.training.checkpoint import Checkpoint, build_model, read_json

# Of the largest activation of a layer, or of 1 where all are smaller. Agreeing models differ by 1e-12.
TOLERANCE = 1e-6
# The same where one of them computes in single precision.
SINGLE_TOLERANCE = 1e-4

# A layer's name -> its output for each clip, [T, C].
States = dict[str, list[Tensor]]


@dataclass
class Outputs:
    """What a model computes for the clips, and what computed it."""

    by: str
    states: States


def clips(checkpoint: Checkpoint, recordings: list[Tensor]) -> list[Tensor]:
    """Noise of two lengths, and recordings at the model's rate [N] -> clips as the model takes them, float64 [N]."""
    config = EncoderConfig.from_dict(checkpoint.config["encoder"])
    generator = make_generator("conversion noise")
    sizes = [max(checkpoint.config["sample_rate"] * share // 10, 3 * config.receptive_field) for share in (10, 7)]
    waveforms = [0.1 * torch.randn(size, generator=generator) for size in sizes] + recordings
    normalize = checkpoint.config["normalize"]
    return [(audio.normalize_waveform(x) if normalize else x).double() for x in waveforms]


@torch.no_grad()
def our_states(checkpoint: Checkpoint, waveforms: list[Tensor]) -> Outputs:
    """Our own model, the clips as one padded batch; a CTC head's outputs in the order they once had."""
    encoder, head = build_model(checkpoint)
    encoder, head = encoder.double(), head.double()
    lengths = torch.tensor([len(x) for x in waveforms])
    features, frame_lengths = encoder.features(pad_sequence(waveforms, batch_first=True), lengths)
    normed = encoder.feature_norm(features)
    output = encoder.contextualize(normed, frame_lengths)
    found = {"feature encoder": features}
    found |= {f"hidden state {i}": x for i, x in enumerate(output.packed)}
    name = checkpoint.config["objective"]["name"]
    if name == "ctc":
        blank = checkpoint.config.get("origin", {}).get("blank", 0)
        order = torch.tensor(foreign.blank_first(blank, head.linear.out_features)).argsort()
        found["logits"] = head.logits(output)[:, order]
    if name == "wav2vec2":
        found["projected contexts"] = head.project_context(output.packed[-1])
        quantized = head.quantizer(normed, temperature=1.0, noise=None)
        found["projected targets"] = head.project_target(quantized.vectors.to(normed.dtype))
    if name == "classify":
        found["projected frames"] = head.frames(output)
    states = {layer: list(x.split(frame_lengths)) for layer, x in found.items()}
    if name == "classify":
        states["logits"] = list(head.classify(head.embed(output)))
    return Outputs("speechssl", states)


@torch.no_grad()
def huggingface_states(folder: Path, head: str, waveforms: list[Tensor]) -> Outputs:
    """A folder in Hugging Face format, by transformers if it is installed, each clip alone."""
    try:
        import transformers
    except ImportError:
        return plain_states(foreign.read_foreign(folder), waveforms)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name = huggingface.class_name(read_json(folder / "config.json"), head)
    whole = getattr(transformers, name).from_pretrained(folder, local_files_only=True).double().eval()
    model = whole if head == "none" else whole.base_model
    states: States = {}
    for waveform in waveforms:
        x = waveform[None]
        output = model(x, output_hidden_states=True)
        # With pre-norm the last is after the final LayerNorm; transformers 5 leaves that to last_hidden_state.
        hidden = [*output.hidden_states[:-1], output.last_hidden_state]
        found = {"feature encoder": model.feature_extractor(x).transpose(1, 2)}
        found |= {f"hidden state {i}": y for i, y in enumerate(hidden)}
        if head == "ctc":
            found["logits"] = whole(x).logits
        if head == "wav2vec2":
            outputs = whole(x)
            found["projected contexts"] = outputs.projected_states
            found["projected targets"] = outputs.projected_quantized_states
        if head == "classify":
            found |= _classifier_states(whole, x)
        _append(states, found)
    return Outputs(f"transformers {transformers.__version__}, {name}", states)


def _classifier_states(model: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Frames that transformers' classifier pools, as they leave its projection, and its logits."""
    found: dict[str, Tensor] = {}
    hook = model.projector.register_forward_hook(lambda _module, _given, y: found.update({"projected frames": y}))
    try:
        logits = model(x).logits
    finally:
        hook.remove()
    return {**found, "logits": logits}


@torch.no_grad()
def torchaudio_states(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], waveforms: list[Tensor]) -> Outputs:
    """torchaudio's Wav2Vec2Model with these tensors, each clip alone."""
    from torchaudio.models import wav2vec2_model

    model = wav2vec2_model(**arguments)
    wanted, (given, _) = model.state_dict(), names.rename_weight_norm(tensors, names.WEIGHT_NORMS[1])
    model.load_state_dict({name: given[name] for name in wanted})
    model = model.double().eval()
    transformer = model.encoder.transformer
    states: States = {}
    for waveform in waveforms:
        x = waveform[None]
        features, _ = model.feature_extractor(x, None)
        first = transformer._preprocess(model.encoder.feature_projection(features))
        layers, _ = model.extract_features(x)
        if arguments["encoder_layer_norm_first"]:
            # Its extract_features leaves out the norm after the last layer.
            layers = [*layers[:-1], transformer.layer_norm(layers[-1])]
        found = {"feature encoder": features}
        found |= {f"hidden state {i}": y for i, y in enumerate([first, *layers])}
        if model.aux is not None:
            found["logits"] = model(x)[0]
        _append(states, found)
    return Outputs(f"torchaudio {metadata.version('torchaudio')}, Wav2Vec2Model", states)


@torch.no_grad()
def plain_states(model: foreign.Foreign, waveforms: list[Tensor]) -> Outputs:
    """interop.reference with the tensors of a foreign model."""
    tensors = {name: x.double() for name, x in names.rename_weight_norm(model.tensors)[0].items()}
    states: States = {}
    for waveform in waveforms:
        features, hidden = reference.hidden_states(tensors, model.encoder, waveform)
        found = {"feature encoder": features} | {f"hidden state {i}": x for i, x in enumerate(hidden)}
        if "lm_head.weight" in tensors:
            found["logits"] = F.linear(hidden[-1], tensors["lm_head.weight"], tensors["lm_head.bias"])
        if model.objective["name"] == "classify":
            mixed = hidden[-1]
            if "layer_weights" in tensors:
                mixed = torch.einsum("ltc,l->tc", torch.stack(hidden), tensors["layer_weights"].softmax(0))
            found["projected frames"] = F.linear(mixed, tensors["projector.weight"], tensors["projector.bias"])
            pooled = found["projected frames"].mean(0)
            found["logits"] = F.linear(pooled, tensors["classifier.weight"], tensors["classifier.bias"])
        _append(states, {name: x[None] for name, x in found.items()})
    return Outputs("a plain reference forward", states)


def source_states(source: str | Path, model: foreign.Foreign, waveforms: list[Tensor]) -> Outputs:
    """What a foreign model computes in its own toolkit, or in the nearest one that is installed."""
    toolkit = model.origin["toolkit"]
    if toolkit == "huggingface":
        return huggingface_states(model.source, model.objective["name"], waveforms)
    num_outputs = len(model.objective["vocabulary"]) if model.objective["name"] == "ctc" else None
    arguments = ours_for_torchaudio.arguments(model.encoder, num_outputs=num_outputs, source=source)
    if toolkit == "fairseq":
        return torchaudio_states(_by_torchaudio(model.source, model), arguments, waveforms)
    path = model.source / ours_for_torchaudio.WEIGHTS if model.source.is_dir() else model.source
    is_safe = path.suffix == ".safetensors"
    tensors = huggingface.read_tensors(path) if is_safe else huggingface.read_pickle(path)
    return torchaudio_states(tensors, arguments, waveforms)


def onnx_states(folder: Path, waveforms: list[Tensor]) -> Outputs:
    """What onnxruntime computes with a folder of `convert format=onnx`, in single precision."""
    import onnxruntime

    states: States = {}
    with onnx.every_layer(folder) as (path, layers):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for waveform in waveforms:
            found = session.run(list(layers.values()), {"waveforms": waveform[None].float().numpy()})
            _append(states, {name: torch.from_numpy(x) for name, x in zip(layers, found, strict=True)})
    return Outputs(f"onnxruntime {onnxruntime.__version__}", states)


def _by_torchaudio(path: Path, model: foreign.Foreign) -> dict[str, Tensor]:
    """fairseq's tensors under torchaudio's names, by torchaudio's own table, which knows nothing of ours."""
    from torchaudio.models.wav2vec2.utils import import_fairseq

    raw = pickles.load(path)["model"]
    tensors = import_fairseq._convert_state_dict({name.removeprefix("w2v_encoder."): x for name, x in raw.items()})
    for kind in ("weight", "bias"):  # absent in fairseq where it would change nothing
        name = f"feature_projection.projection.{kind}"
        tensors.setdefault(f"encoder.{name}", model.tensors[name])
    return tensors


def _append(states: States, found: Mapping[str, Tensor]) -> None:
    for name, x in found.items():
        states.setdefault(name, []).append(x[0])


def compare(ours: Outputs, theirs: Outputs, *, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """The largest differences of each layer that both have, and the first layer that disagrees, if any.

    Relative differences, and the tolerance, are of the layer's largest activation.
    """
    layers = []
    for name in ours.states.keys() & theirs.states.keys():
        pairs = list(zip(ours.states[name], theirs.states[name], strict=True))
        if any(a.shape != b.shape for a, b in pairs):
            layers.append({"layer": name, "largest_absolute": float("inf"), "largest_relative": float("inf")})
            continue
        absolute = max((a - b).abs().max().item() for a, b in pairs)
        largest = max(b.abs().max().item() for _, b in pairs)
        layers.append(
            {
                "layer": name,
                "largest_absolute": absolute,
                "largest_relative": absolute / max(largest, 1e-30),
                "largest_activation": largest,
            }
        )
    places = list(ours.states)
    layers.sort(key=lambda layer: places.index(layer["layer"]))
    # Not `>`: a difference that is not a number does not agree.
    wrong = [x for x in layers if not x["largest_absolute"] <= tolerance * max(1.0, x.get("largest_activation", 1.0))]
    gc.collect()
    return {
        "models": [ours.by, theirs.by],
        "tolerance": tolerance,
        "layers": layers,
        "not_compared": [name for name in places if name not in theirs.states],
        "first_disagreement": wrong[0]["layer"] if wrong else None,
    }
