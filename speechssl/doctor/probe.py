"""What the doctor measures inside a run, beside what the objective and the loader say of themselves.

Loudness and repeats of the clips, gradient norms by part, updates against weights, the spread of the encoder's output:
all only at the steps that write a row, so that other steps cost nothing and a GPU does not wait.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from speechssl.data.loader import BatchLoader
from speechssl.types import Batch, Utterance

# Frames that the spread of the output is measured on, clips of a manifest that are looked at, at most.
FRAMES, CLIPS = 256, 2000
# Frames at the end of the context network's input that may be its own filler.
FILLER = 64


class Probe:
    """Figures of the step that is being run. `armed` says whether it writes a row."""

    def __init__(self) -> None:
        self.armed = False
        self.figures: dict[str, float] = {}

    def attach(self, encoder: nn.Module) -> None:
        """Watch the output of the encoder's context network."""
        encoder.context.register_forward_hook(self._watch_output)

    def clips(self, batches: Sequence[Batch]) -> None:
        """The clips of a step: their loudness, and how many occur twice in one batch (a step may have two epochs)."""
        if not self.armed:
            return
        lengths = [n for batch in batches for n in batch.lengths.tolist()]
        squares = [batch.waveforms.square().sum(1).tolist() for batch in batches]
        self.figures["input_level"] = (sum(map(sum, squares)) / sum(lengths)) ** 0.5
        self.figures["repeat_share"] = 1 - sum(map(_num_distinct, batches, squares)) / len(lengths)

    @contextlib.contextmanager
    def updating(self, model: nn.Module) -> Iterator[None]:
        """Around clipping and the optimiser's step: gradient norm and update-to-weight ratio by part."""
        if not self.armed:
            yield
            return
        trained = parts(model)
        for part, parameters in trained.items():
            self.figures[f"grad_norm/{part}"] = _norm([p.grad for p in parameters])
        before = {part: [p.detach().clone() for p in parameters] for part, parameters in trained.items()}
        yield
        for part, parameters in trained.items():
            size = _norm(before[part])
            if size:
                moved = [p.detach() - old for p, old in zip(parameters, before[part], strict=True)]
                self.figures[f"update_ratio/{part}"] = _norm(moved) / size

    def take(self) -> dict[str, float]:
        """The figures of this step, which are then forgotten."""
        used, total = memory_gib()
        figures = {**self.figures, "memory_gib": used, "memory_share": used / total}
        self.figures = {}
        return figures

    def _watch_output(self, _module: nn.Module, _inputs: tuple, states: list[Tensor]) -> None:
        if self.armed and len(states[-1]) > 2 * FILLER:
            self.figures |= spread(states[-1][:-FILLER])


def _num_distinct(batch: Batch, squares: list[float]) -> int:
    """Clips of a batch less copies; `squares` is the sum of each clip's squared samples.

    Two copies of one recording differ in their places, and two crops of it in their samples.
    """
    heard = set(zip(batch.lengths.tolist(), squares, strict=True))
    return min(len(heard), len(set(map(_place, batch.utterances))))


def _place(utterance: Utterance) -> tuple:
    """Where a clip's audio is: many share the file of a tar shard, and two a stereo file."""
    return str(utterance.audio_path), utterance.byte_range, utterance.channel, utterance.offset_s


@torch.no_grad()
def spread(frames: Tensor) -> dict[str, float]:
    """Frames [P, C] -> `output_variance` and `effective_rank`.

    The variance is that of the frames' directions, 1 - |mean direction|^2: 0 where all point one way. The rank is
    exp(entropy) of the covariance's eigenvalues, as shares (Roy and Vetterli 2007): how many directions are used.
    """
    sample = frames[:: -(-len(frames) // FRAMES)].float()
    variance = 1 - F.normalize(sample, dim=-1).mean(0).square().sum()
    centred = (sample - sample.mean(0)).cpu()
    share = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0)
    share = share / share.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return {"output_variance": float(variance), "effective_rank": float(torch.special.entr(share).sum().exp())}


def parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that have a gradient, by part."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found.setdefault(part_of(name), []).append(parameter)
    return found


def part_of(name: str) -> str:
    """The part that a parameter belongs to: `context` and others, `quantizer.codebook` and others."""
    side, *inner = name.split(".")
    depth = 1 if side == "encoder" else 2
    kept = [word for word in inner[:depth] if word not in ("weight", "bias")]
    return ".".join(kept) or side


def _norm(tensors: Sequence[Tensor]) -> float:
    norm = torch.nn.utils.get_total_norm(tensors)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def memory_gib() -> tuple[float, float]:
    """Peak memory of this process so far and what there is: on a GPU of tensors there, else the resident set."""
    if torch.cuda.is_initialized():
        used, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties().total_memory
        return used / 2**30, total / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return peak / (2**30 if sys.platform == "darwin" else 2**20), total / 2**30  # macOS counts bytes, others KiB


def data_facts(loader: BatchLoader) -> dict[str, float]:
    """What the manifest alone says: clips listed twice, and whether long clips have long transcripts.

    `label_length_correlation` is missing where there are no labels, few clips with one, or all are about as long.
    """
    usable = loader.usable[:: -(-len(loader.usable) // CLIPS)]
    clips = [loader.manifest[int(i)] for i in usable]
    facts = {"listed_twice": 1 - len(set(map(_place, clips))) / len(clips)}
    if loader.dataset.encode:
        lengths = np.array([[u.duration_s, len(loader.dataset.encode(u))] for u in clips])
        lengths = lengths[lengths[:, 1] > 0]  # beside transcripts some tasks learn from clips without one
        if len(lengths) >= 50 and (lengths.std(0) > 0.25 * lengths.mean(0)).all():
            facts["label_length_correlation"] = float(np.corrcoef(lengths.T)[0, 1])
    return facts
