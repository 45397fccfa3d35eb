"""Linear probes: what a frozen representation holds, with the learning rate swept so that it decides nothing.

A probe is one linear layer on standardised features (SUPERB, Yang et al. 2021): of each layer by itself, and of a
learned weighting of all. Every rate of the sweep trains beside the others on the same batches; the one that is best on
the validation clips is tested once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from speechssl.data.text import Vocabulary
from speechssl.evaluation import speaker, verification
from speechssl.heads.ctc import ctc_loss
from speechssl.rng import generator as make_generator

WEIGHTED = "weighted"
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Split:
    """Features and labels of some clips.

    Attributes:
        layers: for each layer, each clip's features: [D], or [T, D] for characters.
        labels: each clip's class int64 [], or its characters' labels int64 [L].
    """

    layers: list[list[Tensor]]
    labels: list[Tensor]


@dataclass(frozen=True)
class Result:
    """What a probe of one layer came to.

    Attributes:
        layer: its name.
        lr: the rate that was best on the validation clips.
        valid, test: accuracy, or CER for characters.
        interval: 95 % of `test`, resampling clips.
        lrs: the validation figure of every rate.
    """

    layer: str
    lr: float
    valid: float
    test: float
    interval: list[float]
    lrs: dict[float, float]


def probe(
    splits: dict[str, Split],
    names: Sequence[str],
    *,
    num_outputs: int,
    vocabulary: Vocabulary | None,
    lrs: Sequence[float],
    steps: int,
    batch_clips: int,
    seed: int,
) -> list[Result]:
    """A probe of each layer, and of all of them weighted where there are several.

    Args:
        splits: "train", "valid" and "test".
        names: of the layers.
        num_outputs: classes, or symbols.
        vocabulary: of characters, for a CTC probe; None for classes.
        lrs, steps, batch_clips, seed: of Adam, for each probe.
    """
    chosen = [[i] for i in range(len(names))]
    if len(names) > 1:
        chosen.append(list(range(len(names))))
    results = []
    for layers in chosen:
        torch.manual_seed(seed)
        scale = _standards(splits["train"], layers)
        size = splits["train"].layers[layers[0]][0].shape[-1]
        probes = nn.ModuleList(_Probe(size, num_outputs, len(layers), scale) for _ in lrs)
        _train(probes, splits["train"], layers, vocabulary, lrs=lrs, steps=steps, batch_clips=batch_clips, seed=seed)
        tried = [_ratio(_errors(one, splits["valid"], layers, vocabulary)) for one in probes]
        best = int(np.argmin(tried) if vocabulary else np.argmax(tried))
        errors = _errors(probes[best], splits["test"], layers, vocabulary)
        results.append(
            Result(
                layer=names[layers[0]] if len(layers) == 1 else WEIGHTED,
                lr=lrs[best],
                valid=tried[best],
                test=_ratio(errors),
                interval=_interval(errors),
                lrs=dict(zip(lrs, tried, strict=True)),
            )
        )
    return results


def verify(train: Split, others: Split, layer: int, *, speakers: np.ndarray, p_target: float) -> dict:
    """EER and minDCF of cosines between clips of speakers that a layer's features were not fitted to.

    The features are whitened by the scatter within the training speakers (Hatch et al. 2006), or by that of all clips
    where each has one, shrunk halfway to its diagonal.
    """
    x = torch.stack(train.layers[layer]).double()
    found, y = torch.stack(train.labels).unique(return_inverse=True)
    centre = x.mean(0)
    several = len(x) > len(found)
    means = torch.stack([x[y == i].mean(0) for i in range(len(found))]) if several else centre[None]
    spread = x - (means[y] if several else means)
    scatter = spread.T @ spread / (len(x) - len(means))
    scatter = 0.5 * scatter + 0.5 * scatter.diag().diag() + 1e-6 * scatter.diag().mean() * torch.eye(len(scatter))
    whitening = torch.linalg.cholesky(torch.linalg.inv(scatter))
    embeddings = ((torch.stack(others.layers[layer]).double() - centre) @ whitening).numpy()
    first, second, is_target = verification.draw_trials(speakers)
    scores = speaker.cosine_scores(embeddings, first, second)
    return verification.figures(scores, is_target, np.stack([speakers[first], speakers[second]]), p_target=p_target)


class _Probe(nn.Module):
    """Standardised layers [n, ..., D], weighted where there are several, to outputs."""

    def __init__(self, size: int, num_outputs: int, num_layers: int, scale: tuple[Tensor, Tensor]):
        super().__init__()
        self.linear = nn.Linear(size, num_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.mean, self.deviation = scale

    def forward(self, x: Tensor) -> Tensor:
        """[P, n, D] -> [P, outputs]."""
        standard = (x - self.mean) / self.deviation
        return self.linear(torch.einsum("pnd,n->pd", standard, self.weights.softmax(0)))


def _standards(split: Split, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and deviation [n, D] of the training features."""
    means, deviations = [], []
    for layer in layers:
        x = torch.cat([clip.float().view(-1, clip.shape[-1]) for clip in split.layers[layer]])
        means.append(x.mean(0))
        deviations.append(x.std(0, correction=0).clamp_min(1e-5))
    return torch.stack(means), torch.stack(deviations)


def _batch(split: Split, layers: list[int], clips: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Features [P, n, D] of some clips end to end, and how many rows each has."""
    parts = [[split.layers[layer][i].float() for i in clips] for layer in layers]
    parts = [[x.view(-1, x.shape[-1]) for x in of_a_layer] for of_a_layer in parts]
    return torch.stack([torch.cat(of_a_layer) for of_a_layer in parts], 1), [len(x) for x in parts[0]]


def _train(
    probes: nn.ModuleList,
    split: Split,
    layers: list[int],
    vocabulary: Vocabulary | None,
    *,
    lrs: Sequence[float],
    steps: int,
    batch_clips: int,
    seed: int,
) -> None:
    """Adam at every rate side by side, each falling linearly to nothing."""
    optimizer = torch.optim.Adam([{"params": p.parameters(), "lr": lr} for p, lr in zip(probes, lrs, strict=True)])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order: list[int] = []
    for step in range(steps):
        if len(order) < min(batch_clips, len(split.labels)):
            order += torch.randperm(len(split.labels), generator=make_generator(seed, "probe", step)).tolist()
        clips, order = order[:batch_clips], order[batch_clips:]
        x, lengths = _batch(split, layers, clips)
        targets = [split.labels[i] for i in clips]
        loss = sum(_loss(one(x), lengths, targets, vocabulary) for one in probes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _loss(logits: Tensor, lengths: list[int], targets: list[Tensor], vocabulary: Vocabulary | None) -> Tensor:
    if vocabulary is None:
        return F.cross_entropy(logits, torch.stack(targets))
    return ctc_loss(logits, lengths, targets) / sum(len(target) for target in targets)


@torch.no_grad()
def _errors(one: nn.Module, split: Split, layers: list[int], vocabulary: Vocabulary | None) -> np.ndarray:
    """What is summed and what it is a sum over, [clips, 2]: right answers of 1, or edits of characters."""
    rows = []
    for i, target in enumerate(split.labels):
        logits = one(_batch(split, layers, [i])[0])
        if vocabulary is None:
            rows.append((int(logits.argmax() == target), 1))
        else:
            found = vocabulary.decode(torch.unique_consecutive(logits.argmax(-1)).tolist())
            reference = vocabulary.decode(target.tolist())
            rows.append((Levenshtein.distance(reference, found), len(reference)))
    return np.array(rows)


def _ratio(errors: np.ndarray) -> float:
    return float(errors[:, 0].sum() / errors[:, 1].sum())


def _interval(errors: np.ndarray) -> list[float]:
    """95 % of the ratio, clips drawn with replacement."""
    drawn = np.random.default_rng(0).integers(len(errors), size=(NUM_RESAMPLES, len(errors)))
    ratios = errors[drawn, 0].sum(1) / errors[drawn, 1].sum(1)
    return [float(np.quantile(ratios, q)) for q in (0.025, 0.975)]
