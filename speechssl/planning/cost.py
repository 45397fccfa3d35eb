"""What a training step costs, counted from its config: operations by kind, values stored, parameters. No torch.

Counts are those of the code in models/ and objectives/, forward and backward, a multiplication and an addition each; a
machine's coefficients (`machine.py`) turn them into seconds and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from speechssl.models.lengths import hop, missing, num_frames, receptive_field

# As in the models: frames of a convolution window, and what numbers of rows are rounded up to.
WINDOW, ROWS, GRAIN = 25, 64, 32
# Backward passes cost as much again for the weights and for the input; attention's is recomputed on the way.
TRAIN, ATTENTION = 3.0, 3.5
# Values that softmax and dropout read and write for a pair of frames in a head, forward and backward, as `elements`.
SOFTMAX = 10
# Values that a Transformer layer keeps for its backward pass, in units of the hidden and the feed-forward size.
KEPT_HIDDEN, KEPT_FORWARD = 11, 2
OBJECTIVES = ("wav2vec2", "best_rq", "hubert")


@dataclass(frozen=True)
class Work:
    """Of one training step.

    Attributes:
        convolutions, products, attention: operations: of the feature encoder and the positions, of matrix products, of
            attention.
        elements: values that elementwise work reads and writes.
        parameters: numbers that train or are stored.
        activations: values that are kept for the backward pass.
        steps, clips: 1, and how many clips.
    """

    convolutions: float
    products: float
    attention: float
    elements: float
    parameters: float
    activations: float
    clips: float
    steps: float = 1.0

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)

    @property
    def operations(self) -> float:
        """All that a FLOP counter sees."""
        return self.convolutions + self.products + self.attention


def of_step(model: dict[str, Any], objective: dict[str, Any], clip_seconds: Sequence[float]) -> Work:
    """The work of a step on clips of these lengths; `model` and `objective` as in a composed config, plain."""
    encoder = model["encoder"]
    samples = [round(seconds * model["sample_rate"]) for seconds in clip_seconds]
    frames = [num_frames(n, encoder["conv_kernels"], encoder["conv_strides"]) for n in samples]
    rows = sum(frames) + missing(sum(frames), ROWS)
    scale = objective.get("feature_gradient_scale", 1.0)
    front = _front(encoder, frames, samples, trains=scale != 0)
    hidden, forward, layers = encoder["hidden_size"], encoder["feed_forward_size"], encoder["num_layers"]
    taps = encoder["position_kernel"] * hidden / encoder["position_groups"]
    positions = sum(n + missing(n, GRAIN) + 1 for n in frames)
    context = 2 * rows * layers * (4 * hidden**2 + 2 * hidden * forward)
    projection = 2 * rows * encoder["conv_channels"][-1] * hidden
    pairs = layers * sum(n**2 for n in frames)
    kept = rows * layers * (KEPT_HIDDEN * hidden + KEPT_FORWARD * forward)
    loss = _loss(encoder, objective, frames, trains=scale != 0)
    return Work(
        convolutions=front["operations"] + TRAIN * 2 * positions * hidden * taps,
        products=TRAIN * (context + projection) + loss["operations"],
        attention=ATTENTION * 4 * hidden * pairs,
        elements=2.5 * kept + SOFTMAX * encoder["num_heads"] * pairs + front["elements"] + loss["elements"],
        parameters=_parameters(encoder, objective),
        activations=kept + front["kept"] + loss["elements"] / 2,
        clips=len(frames),
    )


def _front(encoder: dict, frames: Sequence[int], samples: Sequence[int], *, trains: bool) -> dict[str, float]:
    """The feature encoder: windows of WINDOW frames each through all convolutions, or a spectrum and a few of them."""
    channels, kernels, strides = (encoder[f"conv_{name}"] for name in ("channels", "kernels", "strides"))
    if encoder.get("feature_encoder", "conv") == "fbank":
        return _filterbank(channels, kernels, strides, samples)
    windows = sum(math.ceil(n / WINDOW) for n in frames)
    length = receptive_field(kernels, strides) + (WINDOW - 1) * hop(strides)
    operations, values, inputs = 0.0, 0.0, 1
    for number, (width, kernel, stride) in enumerate(zip(channels, kernels, strides, strict=True)):
        length = (length - kernel) // stride + 1
        passes = (2 if number == 0 else 3) if trains else 1  # the samples need no gradient
        operations += passes * 2 * windows * length * inputs * width * kernel
        values += windows * length * width
        inputs = width
    return {"operations": operations, "elements": values * (6 if trains else 2), "kept": 2 * values if trains else 0.0}


def _filterbank(channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int], samples) -> dict[str, float]:
    spectra = sum(num_frames(n, kernels[:1], strides[:1]) for n in samples)
    size = 1 << (kernels[0] - 1).bit_length()
    operations, values, length = 2 * spectra * (size // 2 + 1) * channels[0], 0.0, spectra
    for inputs, width, kernel, stride in zip(channels, channels[1:], kernels[1:], strides[1:], strict=False):
        length /= stride
        operations += TRAIN * 2 * length * inputs * width * kernel
        values += length * width
    return {"operations": operations, "elements": 6 * values + 4 * spectra * size, "kept": 2 * values}


def _loss(encoder: dict, objective: dict, frames: Sequence[int], *, trains: bool) -> dict[str, float]:
    """Quantizer, projections and similarities at masked frames; or a linear layer over labels."""
    share = 1 - (1 - objective["mask_start_probability"]) ** objective["mask_span"]
    masked = [share * n for n in frames]
    rows = sum(masked) + ROWS / 2
    hidden = encoder["hidden_size"]
    if objective["name"] != "wav2vec2":
        labels = objective.get("num_codewords") or objective.get("num_labels") or 500
        return {"operations": TRAIN * 2 * rows * hidden * labels, "elements": 6 * rows * labels}
    words, final, code = (
        objective["num_groups"] * objective["num_codewords"],
        objective["final_size"],
        objective["code_size"],
    )
    quantizer = (TRAIN if trains else 2) * encoder["conv_channels"][-1] * words
    rest = TRAIN * (objective["num_codewords"] * code + hidden * final + code * final)
    pairs = sum(n**2 for n in masked)
    operations = 2 * rows * (quantizer + rest) + TRAIN * 2 * final * pairs + 2 * sum(n**3 for n in masked)
    return {"operations": operations, "elements": 8 * rows * words + 16 * pairs}


def _parameters(encoder: dict, objective: dict) -> float:
    hidden, forward = encoder["hidden_size"], encoder["feed_forward_size"]
    channels, kernels = encoder["conv_channels"], encoder["conv_kernels"]
    first = 0 if encoder.get("feature_encoder", "conv") == "fbank" else kernels[0] * channels[0]
    front = first + sum(a * b * k for a, b, k in zip(channels, channels[1:], kernels[1:], strict=False))
    context = encoder["num_layers"] * (4 * hidden**2 + 2 * hidden * forward + 9 * hidden + forward)
    positions = hidden**2 / encoder["position_groups"] * encoder["position_kernel"]
    head = hidden * objective.get("final_size", 0)
    if objective["name"] == "wav2vec2":
        words, code = objective["num_groups"] * objective["num_codewords"], objective["code_size"]
        head += channels[-1] * words + objective["num_codewords"] * code + code * objective["final_size"]
    return front + channels[-1] * hidden + context + positions + head
