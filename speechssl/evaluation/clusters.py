"""Voices that nobody has named: clips grouped by their vectors, and a map of them on a page."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from speechssl.errors import UserError
from speechssl.evaluation.speaker import directions
from speechssl.reporting.svg import chart

log = logging.getLogger("speechssl")

# Numbers of groups that `auto` tries.
MOST = 300


def cluster(embeddings: np.ndarray, how_many: str) -> np.ndarray:
    """Groups by average linkage of cosine distances: int64 [clips].

    Args:
        embeddings: [clips, E].
        how_many: a number, or "auto" for that with the best silhouette (Rousseeuw 1987), of 2 to MOST.

    Raises:
        UserError: `how_many` is neither, or there are fewer clips.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    if how_many == "auto":
        if len(embeddings) < 3:
            raise UserError(f"clusters=auto needs three clips or more, and there are {len(embeddings)}")
        tried = range(2, min(MOST, len(embeddings) - 1) + 1)
    elif how_many.isdigit() and int(how_many) >= 2:
        tried = range(int(how_many), int(how_many) + 1)
    else:
        raise UserError(f"clusters={how_many} must be auto or a whole number, 2 or more")
    if tried[-1] > len(embeddings):
        raise UserError(f"clusters={how_many} needs more clips than the {len(embeddings)} there are: give fewer groups")
    unit = directions(embeddings)
    distances = np.maximum(1 - unit @ unit.T, 0.0)
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), "average")
    best, best_score = np.zeros(len(unit), dtype=np.int64), -np.inf
    for groups in cut_tree(tree, list(tried)).T:
        score = silhouette_score(distances, groups, metric="precomputed") if len(tried) > 1 else 0.0
        if score > best_score:
            best, best_score = groups, score
    if how_many == "auto" and best.max() + 1 == MOST:
        log.warning("clusters=auto tries %d groups at most, and those were the best: give a larger number", MOST)
    return best


def map_chart(path: Path, embeddings: np.ndarray, names: list[str]) -> None:
    """A map of the clips as SVG, alike vectors near each other (t-SNE, van der Maaten and Hinton 2008), by name."""
    unit = directions(embeddings)
    if len(unit) >= 5:
        from sklearn.manifold import TSNE

        places = TSNE(perplexity=min(30, (len(unit) - 1) / 3), init="pca", random_state=0).fit_transform(unit)
    else:
        places = np.pad(unit - unit.mean(0), ((0, 0), (0, 2)))[:, :2]
    series: dict[str, list[tuple[float, float]]] = {}
    for name, (x, y) in zip(names, places.tolist(), strict=True):
        series.setdefault(name, []).append((x, y))
    chart(path, dict(sorted(series.items())), title="Clips by likeness", x_label="", y_label="", lines=False)
