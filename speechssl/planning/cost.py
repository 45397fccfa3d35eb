"""What a training step costs, counted from its config: operations by kind, values stored, parameters. No torch.

Counts are those of the code in models/ and objectives/, forward and backward, a multiplication and an addition each; a
machine's coefficients (`machine.py`) turn them into seconds and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from speechssl.errors import UserError
from speechssl.models.lengths import END, ROWS, WINDOW, hop, missing, num_frames, receptive_field, rest

# As in the models, what numbers of rows are rounded up to.
GRAIN = 32
# Backward passes cost as much again for the weights and for the input; attention's is recomputed on the way.
TRAIN, ATTENTION = 3.0, 3.5
# Values that softmax and dropout read and write for a pair of frames in a head, forward and backward, as `elements`.
SOFTMAX = 10
# Values that a Transformer layer keeps for its backward pass, in units of the hidden and the feed-forward size.
KEPT_HIDDEN, KEPT_FORWARD = 11, 2
# As in the light decoder, and in the spectra that are targets: bands, and seconds from one to the next.
DECODER_KERNEL, DECODER_GROUPS = 7, 16
NUM_BINS, SHIFT_S = 80, 0.010
# Of a trained parameter's weight, gradient and two moments a teacher's has the first.
TEACHER = 0.25
# Those whose work is counted. CPC and wav2vec have other context networks, pretext and multi several passes.
OBJECTIVES = (
    *("wav2vec2", "best_rq", "hubert", "reconstruction", "apc", "data2vec", "data2vec2", "dinosr", "simclr", "byol"),
)
KINDS = ("convolutions", "products", "attention", "elements", "activations")


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
    """The work of a step on clips of these lengths; `model` and `objective` as in a composed config, plain.

    Raises:
        UserError: the objective's work is not counted here.
    """
    if objective["name"] not in OBJECTIVES:
        raise UserError(
            f"speechssl plan cannot count the work of objective={objective['name']}: choose one of "
            f"{', '.join(OBJECTIVES)}"
        )
    encoder = model["encoder"]
    samples, frames = lengths(model, _heard(objective, clip_seconds))
    copies = frames * objective.get("num_masks", 1)  # what the student sees
    trains = objective.get("feature_gradient_scale", 1.0) != 0
    visible = 1 - _masked_share(objective) if objective.get("decoder_layers") else 1.0
    parts = [
        _front(encoder, frames, samples, trains=trains),
        _context(encoder, copies, visible=visible),
        _decoder(encoder, objective, copies),
        _loss(encoder, objective, copies, trains=trains),
    ]
    if _has_teacher(objective):
        parts.append(_context(encoder, frames, trains=False))
    if _has_teacher(objective) and objective["name"] == "byol":
        parts.append(_front(encoder, frames, samples, trains=False))
    total = {kind: sum(part.get(kind, 0.0) for part in parts) for kind in KINDS}
    return Work(**total, parameters=_parameters(encoder, objective), clips=len(frames))


def of_encoder(model: dict[str, Any], clip_seconds: Sequence[float], *, trains: bool) -> float:
    """Operations of the encoder alone, forward and, if it `trains`, backward."""
    encoder, (samples, frames) = model["encoder"], lengths(model, clip_seconds)
    parts = _front(encoder, frames, samples, trains=trains), _context(encoder, frames, trains=trains)
    return sum(part.get(kind, 0.0) for part in parts for kind in ("convolutions", "products", "attention"))


def lengths(model: dict[str, Any], clip_seconds: Sequence[float]) -> tuple[list[int], list[int]]:
    """Samples and frames of each clip."""
    encoder = model["encoder"]
    samples = [round(seconds * model["sample_rate"]) for seconds in clip_seconds]
    return samples, [num_frames(n, encoder["conv_kernels"], encoder["conv_strides"]) for n in samples]


def activations(model: dict[str, Any], objective: dict[str, Any], clip_seconds: Sequence[float]) -> float:
    """Values that a step keeps for its backward pass; of an objective that is not counted, those of the encoder."""
    if objective["name"] in OBJECTIVES:
        return of_step(model, objective, clip_seconds).activations
    encoder, (samples, frames) = model["encoder"], lengths(model, clip_seconds)
    trains = not objective.get("freeze_feature_encoder", False)
    front = _front(encoder, frames, samples, trains=trains)
    return front["activations"] + sum(values for values, _ in kept_values(encoder, frames))


def kept_values(encoder: dict, frames: Sequence[float]) -> list[tuple[float, float]]:
    """Of each Transformer layer, the values that it keeps for its backward pass, and those of its input."""
    hidden, forward, layers = encoder["hidden_size"], encoder["feed_forward_size"], encoder["num_layers"]
    short = encoder.get("hourglass", 1)
    rows = [_rounded(sum(frames)), _rounded(sum(math.ceil(n / short) for n in frames))]
    counts = [rows[short > 1 and 0 < layer < layers - 1] for layer in range(layers)]
    return [(count * (KEPT_HIDDEN * hidden + KEPT_FORWARD * forward), count * hidden) for count in counts]


def _heard(objective: dict, clip_seconds: Sequence[float]) -> list[float]:
    """Seconds of what goes through the encoder: the clips, or two crops of each."""
    if "crop_s" in objective:
        return [min(seconds, objective["crop_s"]) for seconds in clip_seconds] * 2
    return list(clip_seconds)


def _has_teacher(objective: dict) -> bool:
    return "teacher_memory" in objective and objective.get("teacher") != "none"


def _masked_share(objective: dict) -> float:
    return 1 - (1 - objective["mask_start_probability"]) ** objective["mask_span"]


def _context(encoder: dict, frames: Sequence[int], *, visible: float = 1.0, trains: bool = True) -> dict[str, float]:
    """Projection, positions and Transformer layers, which see a share of the frames; a teacher's go forward only."""
    passes, attention = (TRAIN, ATTENTION) if trains else (1.0, 1.0)
    seen = [visible * n for n in frames]
    rows = _rounded(sum(seen))
    hidden, forward, layers = encoder["hidden_size"], encoder["feed_forward_size"], encoder["num_layers"]
    short = encoder.get("hourglass", 1)
    wide = layers if short == 1 else 2  # layers that see every frame
    full = wide + (layers - wide) * _rounded(sum(math.ceil(n / short) for n in seen)) / rows
    taps = encoder["position_kernel"] * hidden / encoder["position_groups"]
    positions = sum(n + missing(n, GRAIN) + 1 for n in frames)
    weights = full * (4 * hidden**2 + 2 * hidden * forward) + encoder["conv_channels"][-1] * hidden
    pairs = (wide + (layers - wide) / short**2) * sum(n**2 for n in seen)
    kept = sum(values for values, _ in kept_values(encoder, seen))
    return {
        "convolutions": passes * 2 * positions * hidden * taps,
        "products": passes * 2 * rows * weights,
        "attention": attention * 4 * hidden * pairs,
        "elements": (2.5 * kept + SOFTMAX * encoder["num_heads"] * pairs) * passes / TRAIN,
        "activations": kept if trains else 0.0,
    }


def _rounded(frames: float) -> int:
    rows = round(frames)
    return rows + missing(rows, ROWS)


def _front(encoder: dict, frames: Sequence[int], samples: Sequence[int], *, trains: bool) -> dict[str, float]:
    """The feature encoder: windows of a few frames each through all convolutions, or a spectrum and a few of them."""
    channels, kernels, strides = (encoder[f"conv_{name}"] for name in ("channels", "kernels", "strides"))
    if encoder.get("feature_encoder", "conv") != "conv":
        if encoder["feature_encoder"] == "stacked":  # no products but the spectrum's
            channels, kernels, strides = channels[:1], kernels[:1], strides[:1]
        return _filterbank(channels, kernels, strides, samples, trains=trains)
    counts = {
        WINDOW: sum(math.ceil((n - rest(n)) / WINDOW) for n in frames),
        END: sum(math.ceil(rest(n) / END) for n in frames),
    }
    sizes = {width: receptive_field(kernels, strides) + (width - 1) * hop(strides) for width in counts}
    operations, values, inputs = 0.0, 0.0, 1
    for number, (width, kernel, stride) in enumerate(zip(channels, kernels, strides, strict=True)):
        sizes = {window: (size - kernel) // stride + 1 for window, size in sizes.items()}
        passes = (2 if number == 0 else 3) if trains else 1  # the samples need no gradient
        positions = sum(count * sizes[window] for window, count in counts.items())
        operations += passes * 2 * positions * inputs * width * kernel
        values += positions * width
        inputs = width
    return _front_work(operations, values, trains=trains)


def _filterbank(
    channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int], samples: Sequence[int], *, trains: bool
) -> dict[str, float]:
    spectra = sum(num_frames(n, kernels[:1], strides[:1]) for n in samples)
    size = 1 << (kernels[0] - 1).bit_length()
    operations, values, length = 2 * spectra * (size // 2 + 1) * channels[0], 0.0, spectra
    for inputs, width, kernel, stride in zip(channels, channels[1:], kernels[1:], strides[1:], strict=False):
        length /= stride
        operations += (TRAIN if trains else 1) * 2 * length * inputs * width * kernel
        values += length * width
    work = _front_work(operations, values, trains=trains)
    return {**work, "elements": work["elements"] + 4 * spectra * size}


def _front_work(operations: float, values: float, *, trains: bool) -> dict[str, float]:
    """Of convolutions that make so many values."""
    elements, kept = (6 * values, 2 * values) if trains else (2 * values, 0.0)
    return {"convolutions": operations, "elements": elements, "activations": kept}


def _decoder(encoder: dict, objective: dict, frames: Sequence[int]) -> dict[str, float]:
    """The light decoder's convolutions over all frames of all masks, after a linear layer at visible ones and before
    one at hidden ones; nothing without them."""
    layers = objective.get("decoder_layers", 0)
    if not layers:
        return {}
    rows, size, hidden = sum(frames), objective["decoder_size"], encoder["hidden_size"]
    values = rows * (size * (4 * layers + 1) + hidden)
    return {
        "convolutions": TRAIN * 2 * rows * layers * size**2 * DECODER_KERNEL / DECODER_GROUPS,
        "products": TRAIN * 2 * rows * size * hidden,
        "elements": 2.5 * values,
        "activations": values,
    }


def _loss(encoder: dict, objective: dict, frames: Sequence[int], *, trains: bool) -> dict[str, float]:
    """What comes behind the context network, at the frames that the loss asks for."""
    if objective["name"] == "wav2vec2":
        return _contrastive(encoder, objective, frames, trains=trains)
    rows = _asked(objective, frames)
    head = _head(encoder, objective)
    passes = TRAIN + 2 if objective["name"] == "dinosr" else TRAIN  # it also finds and moves codewords
    elements = 6 * rows * sum(outputs for _, outputs in head)
    products = passes * 2 * rows * sum(inputs * outputs for inputs, outputs in head)
    return {"products": products, "elements": elements, "activations": elements / 2}


def _contrastive(encoder: dict, objective: dict, frames: Sequence[int], *, trains: bool) -> dict[str, float]:
    """wav2vec 2.0's quantizer, projections and similarities at masked frames."""
    share, num_masks = _masked_share(objective), objective.get("num_masks", 1)
    masked = [share * n for n in frames]
    rows = sum(masked) + ROWS / 2
    asked = (1 - (1 - share) ** num_masks) * sum(frames) / num_masks + ROWS / 2  # frames that any mask hides
    words, final, code = (
        objective["num_groups"] * objective["num_codewords"],
        objective["final_size"],
        objective["code_size"],
    )
    quantizer = (TRAIN if trains else 2) * encoder["conv_channels"][-1] * words
    targets = quantizer + TRAIN * (objective["num_codewords"] * code + code * final)
    contexts = TRAIN * encoder["hidden_size"] * final
    pairs = sum(n**2 for n in masked)
    products = 2 * (asked * targets + rows * contexts) + TRAIN * 2 * final * pairs + 2 * sum(n**3 for n in masked)
    elements = 8 * asked * words + 16 * pairs
    return {"products": products, "elements": elements, "activations": elements / 2}


def _asked(objective: dict, frames: Sequence[int]) -> float:
    """Rows that go through the head: of masked frames, of all, or one a crop."""
    if "crop_s" in objective:
        return len(frames)
    if objective["name"] in ("apc", "reconstruction") or objective.get("unmasked_weight"):
        return sum(frames)
    return _masked_share(objective) * sum(frames) + ROWS / 2


def _head(encoder: dict, objective: dict) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear layer behind the context network; of wav2vec 2.0 see `_contrastive`."""
    name, hidden, final = objective["name"], encoder["hidden_size"], objective.get("final_size", 0)
    if name in ("best_rq", "hubert"):
        labels = objective["num_codewords" if name == "best_rq" else "num_clusters"]
        return [(hidden, final), (final, labels)] if objective["logits"] == "cosine" else [(hidden, labels)]
    if name in ("apc", "reconstruction"):
        spectra = max(round(hop(encoder["conv_strides"]) / (SHIFT_S * objective["sample_rate"])), 1)
        first = [(hidden, hidden)] if name == "reconstruction" else []
        return [*first, (hidden, NUM_BINS * spectra)]
    if name == "dinosr":
        return [(hidden, objective["num_codewords"])] * min(objective["top_layers"], encoder["num_layers"])
    if name == "simclr":
        return [(hidden, hidden), (hidden, final)]
    if name == "byol":
        predictor = [(final, 2 * hidden), (2 * hidden, final)] if objective["predictor"] == "mlp" else []
        return [(hidden, 2 * hidden), (2 * hidden, final), *predictor]
    return [] if objective["decoder_layers"] else [(hidden, hidden)]


def _parameters(encoder: dict, objective: dict) -> float:
    hidden, forward = encoder["hidden_size"], encoder["feed_forward_size"]
    channels, kernels = encoder["conv_channels"], encoder["conv_kernels"]
    kind = encoder.get("feature_encoder", "conv")
    front = channels[-1] * hidden + (kernels[0] * channels[0] if kind == "conv" else 0)
    if kind != "stacked":
        front += sum(a * b * k for a, b, k in zip(channels, channels[1:], kernels[1:], strict=False))
    context = encoder["num_layers"] * (4 * hidden**2 + 2 * hidden * forward + 9 * hidden + forward)
    context += hidden**2 / encoder["position_groups"] * encoder["position_kernel"]
    teacher = context + (front if objective["name"] == "byol" else 0) if _has_teacher(objective) else 0
    return front + context + TEACHER * teacher + _head_parameters(encoder, objective)


def _head_parameters(encoder: dict, objective: dict) -> float:
    """Of all behind the context network."""
    hidden = encoder["hidden_size"]
    if objective["name"] == "wav2vec2":
        words, code = objective["num_groups"] * objective["num_codewords"], objective["code_size"]
        quantizer = encoder["conv_channels"][-1] * words + objective["num_codewords"] * code
        head = quantizer + (hidden + code) * objective["final_size"]
    else:
        head = sum(inputs * outputs for inputs, outputs in _head(encoder, objective))
    if objective.get("decoder_layers"):
        size = objective["decoder_size"]
        head += 2 * hidden * size + objective["decoder_layers"] * size**2 * DECODER_KERNEL / DECODER_GROUPS
    return head
