"""The README.md that goes with converted weights: what they are, what they take, how they are loaded."""

from __future__ import annotations

from speechssl.models.encoder import EncoderConfig
from speechssl.training.checkpoint import Checkpoint

_LOADING = {
    "speechssl": "import speechssl\n\nencoder = speechssl.load_encoder(FOLDER)",
    "huggingface": "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(FOLDER)",
    "torchaudio": (
        "import json, torch, torchaudio\n\n"
        'arguments = json.load(open(f"{FOLDER}/config.json"))["model"]\n'
        "model = torchaudio.models.wav2vec2_model(**arguments)\n"
        'model.load_state_dict(torch.load(f"{FOLDER}/model.pt", weights_only=True))'
    ),
}
_LOADING["onnx"] = (
    'import onnxruntime\n\nsession = onnxruntime.InferenceSession(f"{FOLDER}/model.onnx")\n'
    'frames, *logits = session.run(None, {"waveforms": samples[None]})  # float32, full scale at 1'
)
_TASKS = {"ctc": "automatic-speech-recognition", "classify": "audio-classification"}
_PIPELINES = {
    "ctc": (
        'from transformers import pipeline\n\nrecognize = pipeline("automatic-speech-recognition", model=FOLDER)\n'
        'print(recognize("speech.wav")["text"])'
    ),
    "classify": (
        'from transformers import pipeline\n\nclassify = pipeline("audio-classification", model=FOLDER)\n'
        'print(classify("speech.wav"))'
    ),
}


def model_card(checkpoint: Checkpoint, form: str) -> str:
    """The card of a model written in the format `form`."""
    config = checkpoint.config
    encoder = EncoderConfig.from_dict(config["encoder"])
    num_parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    head = config["objective"]["name"]
    kinds = {"none": "an encoder of speech", "ctc": "a speech recogniser (CTC)", "wav2vec2": "a pretrained encoder"}
    kinds["classify"] = "a classifier of clips"
    lines = [
        "---",
        f"library_name: {'transformers' if form == 'huggingface' else form}",
        f"pipeline_tag: {_TASKS.get(head, 'feature-extraction')}",
        "tags: [speech, audio, wav2vec2]",
        "---",
        "",
        f"# {kinds[head].capitalize()}",
        "",
        f"{kinds[head].capitalize()} with {num_parameters / 1e6:.2f} M parameters: {len(encoder.conv_channels)} "
        f"convolutions and {encoder.num_layers} Transformer layers of {encoder.hidden_size} channels.",
        "",
        f"- Input: mono waveforms at {config['sample_rate']} Hz"
        + (", each clip at zero mean and unit variance." if config["normalize"] else ", full scale at 1."),
        f"- Output: a frame every {encoder.hop} samples, from clips of at least {encoder.receptive_field} samples.",
    ]
    if head == "classify":
        lines.append(f"- Labels: {len(config['objective']['labels'])}, of the column {config['objective']['label']!r}.")
    if head == "ctc":
        lines.append(f"- Symbols: {len(config['objective']['vocabulary'])}, the blank included.")
    lines += [
        "- Written by `speechssl convert`; `conversion_report.json` says how closely it computes what its source does.",
        "- Training data, licence and evaluation are those of the run or model that it was converted from.",
        "",
        "```python",
        *(_PIPELINES.get(head) if form == "huggingface" and head in _PIPELINES else _LOADING[form]).splitlines(),
        "```",
        "",
    ]
    return "\n".join(lines)
