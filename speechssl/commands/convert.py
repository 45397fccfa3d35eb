"""Take weights from another toolkit or give them to one, and check that both compute the same.

Examples:
  speechssl convert source=wav2vec2-base-960h out=converted
  speechssl convert source=runs/ctc out=for-transformers format=huggingface
  speechssl convert source=wav2vec_small.pt out=converted audio=speech.wav
  speechssl convert source=runs/first out=for-torchaudio format=torchaudio
  speechssl convert source=runs/ctc out=for-a-server format=onnx

source is a checkpoint or run folder of ours, a folder in Hugging Face format or hf:NAME (wav2vec 2.0, HuBERT,
data2vec-audio, WavLM), a .pt of fairseq (wav2vec 2.0, HuBERT; for CTC with its dict.*.txt beside it), or a state dict
of torchaudio's Wav2Vec2Model. init= and checkpoint= of other commands take all of these too.

Both models run on the same noise, and on the speech of audio=; the largest difference at each layer is printed and
saved as conversion_report.json. If they do not agree, the command fails and says at which layer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from speechssl import audio
from speechssl.config import plain
from speechssl.errors import UserError
from speechssl.interop import check, foreign, huggingface_out, onnx
from speechssl.interop import torchaudio as for_torchaudio
from speechssl.interop.card import model_card
from speechssl.interop.simplify import simplify
from speechssl.models.encoder import EncoderConfig
from speechssl.training.checkpoint import Checkpoint, load_checkpoint
from speechssl.training.files import write_json

FORMATS = ("speechssl", "huggingface", "torchaudio", "onnx")
REPORT = "conversion_report.json"
SHAPE = ("num_heads", "pre_norm", "conv_strides")


def run(config: DictConfig) -> None:
    """Convert as the config says."""
    if config.format not in FORMATS:
        raise UserError(f"format={config.format} must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    out = Path(config.out)
    _check_out(out)
    shape = {key: value for key, value in plain(config).items() if key in SHAPE and value is not None}
    model = None
    if foreign.is_foreign(config.source):
        model = foreign.read_foreign(config.source, **shape)
        checkpoint = foreign.to_checkpoint(model)
    else:
        checkpoint = load_checkpoint(config.source, prefer="best")
        if config.format == "speechssl":
            raise UserError(f"{config.source} is in our own format already; give format=huggingface or torchaudio")
        checkpoint = simplify(checkpoint)
        encoder = EncoderConfig.from_dict(checkpoint.config["encoder"])
        peculiarity = foreign.peculiarity(encoder)
        if peculiarity:
            raise UserError(f"{config.source} {peculiarity}, which no other format here can hold")
    rate = checkpoint.config["sample_rate"]
    recordings = [audio.load(config.audio, sample_rate=rate)] if config.audio else []
    temporary = out.with_name(f".tmp_{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(checkpoint, temporary, config.format)
        report = _report(config, model, checkpoint, temporary, check.clips(checkpoint, recordings))
        _print(report)
        if report["verdict"] != "agrees":
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / REPORT, report)
            raise UserError(
                f"the conversion of {config.source} is wrong: the models {report['verdict']} ({out}/{REPORT})"
            )
        write_json(temporary / REPORT, report)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_out(out: Path) -> None:
    """UserError unless out is new, empty, or a former conversion."""
    if out.is_file():
        raise UserError(f"out={out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise UserError(f"out={out} is a folder with something else in it; give a new one")


def _write(checkpoint: Checkpoint, folder: Path, form: str) -> None:
    """The model's files."""
    tensors: dict[str, torch.Tensor] = {}
    if form == "speechssl":
        tensors, files = checkpoint.tensors, {"config.json": checkpoint.config}
    elif form == "onnx":
        files = onnx.folder_files(checkpoint)
    else:
        writer = huggingface_out if form == "huggingface" else for_torchaudio
        files = writer.folder_files(checkpoint)  # first: it says what cannot be written
        tensors = writer.tensors(checkpoint)
    for name, content in files.items():
        write_json(folder / name, content)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    if form == "onnx":
        onnx.write(checkpoint, folder)
    elif form == "torchaudio":
        torch.save(tensors, folder / for_torchaudio.WEIGHTS)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(model_card(checkpoint, form), encoding="utf-8")


def _report(
    config: DictConfig, model: foreign.Foreign | None, checkpoint: Checkpoint, folder: Path, clips: list[torch.Tensor]
) -> dict[str, Any]:
    """What was compared, and the verdict."""
    comparisons = []
    if model is not None:
        # What was written is read again where we can: the files are what counts.
        ours = load_checkpoint(folder) if config.format == "speechssl" else checkpoint
        comparisons.append(
            check.compare(check.our_states(ours, clips), check.source_states(config.source, model, clips))
        )
    if config.format == "onnx":
        # Its logits are in our order, and it computes in single precision.
        plain = Checkpoint(checkpoint.folder, {**checkpoint.config, "origin": {}}, checkpoint.tensors)
        pair = check.our_states(plain, clips), check.onnx_states(folder, clips)
        comparisons.append(check.compare(*pair, tolerance=check.SINGLE_TOLERANCE))
    elif config.format != "speechssl":
        written = foreign.read_foreign(folder)
        theirs = check.source_states(config.out, written, clips)
        comparisons.append(check.compare(check.our_states(checkpoint, clips), theirs))
    wrong = [x for x in comparisons if x["first_disagreement"]]
    verdict = f"disagree, first at the {wrong[0]['first_disagreement']}" if wrong else "agrees"
    return {
        "source": str(config.source),
        "out": str(config.out),
        "format": config.format,
        "clips_samples": [len(x) for x in clips],
        "left_out": checkpoint.config.get("origin", {}).get("left_out", []),
        "comparisons": comparisons,
        "verdict": verdict,
    }


def _print(report: dict[str, Any]) -> None:
    for comparison in report["comparisons"]:
        print(f"{' against '.join(comparison['models'])}:")
        print(f"  {'layer':<20} {'absolute':>10} {'relative':>10}")
        for layer in comparison["layers"]:
            print(f"  {layer['layer']:<20} {layer['largest_absolute']:>10.2e} {layer['largest_relative']:>10.2e}")
    if report["left_out"]:
        print(f"left out: {', '.join(report['left_out'])}")
    print(f"verdict: {report['verdict']}")
