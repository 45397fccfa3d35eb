"""k-means over a corpus' frames, streamed, and the label of every frame (HuBERT, Hsu et al. 2021, section III.A).

Frames are MFCC with differences, or a layer of a trained encoder. Nothing but a chunk of frames is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from speechssl.data.frame_labels import write_labels
from speechssl.data.loader import BatchLoader
from speechssl.errors import UserError
from speechssl.manifest import Manifest
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.lengths import num_samples
from speechssl.models.spectrum import MFCC
from speechssl.training.checkpoint import build_encoder, load_checkpoint
from speechssl.types import Batch, Utterance

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

log = logging.getLogger("speechssl")

# Frames in a step of MiniBatchKMeans, for each cluster and at least.
CHUNK_PER_CLUSTER, CHUNK = 20, 10_000
# How often a chunk is learned from, so that little audio is enough.
REPEATS = 5
# Longer clips are labelled in pieces of so many frames.
PIECE = 1500


class FrameFeatures:
    """Frames [P, D] of a batch: MFCC at the frames of an encoder, or what a layer of a checkpoint's encoder gives.

    Args:
        source: "mfcc", or a checkpoint.
        layer: of the checkpoint: 0 is the first layer's input, -1 the last layer's output.
        encoder: whose frames are labelled; a checkpoint's must have the same.
        sample_rate, normalize: how the encoder wants its audio.
        device: where to compute.
    """

    def __init__(
        self,
        source: str,
        *,
        layer: int,
        encoder: EncoderConfig,
        sample_rate: int,
        normalize: bool,
        device: str,
    ):
        self.encoder, self.sample_rate, self.normalize, self.device = encoder, sample_rate, normalize, device
        self.info = {"source": "mfcc", "layer": None, "hop": encoder.hop, "sample_rate": sample_rate}
        if source == "mfcc":
            mfcc = MFCC(hop=encoder.hop, field=encoder.receptive_field, sample_rate=sample_rate)
            self.compute = mfcc.to(device)
        else:
            self.compute = self._layer(source, layer)

    def _layer(self, source: str, layer: int) -> Callable[[Tensor, Tensor, list[int]], Tensor]:
        checkpoint = load_checkpoint(source)
        model: Encoder = build_encoder(checkpoint).to(self.device)
        if not -model.config.num_layers - 1 <= layer <= model.config.num_layers:
            raise UserError(f"layer={layer}, but {source} has layers 0 to {model.config.num_layers}")
        ours = self.sample_rate, self.encoder.hop, self.encoder.receptive_field
        theirs = checkpoint.config["sample_rate"], model.config.hop, model.config.receptive_field
        if ours != theirs:
            raise UserError(
                f"{source} has (rate, samples a frame, samples seen) {theirs}, the model to train {ours}; choose a "
                "model with the same frames"
            )
        self.normalize = checkpoint.config["normalize"]
        self.info |= {"source": str(source), "layer": layer}
        return lambda waveforms, lengths, _: model(waveforms, lengths).packed[layer]

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> list[Tensor]:
        """float32 [T, D] of each clip."""
        size, hop = num_samples(PIECE, self.encoder.conv_kernels, self.encoder.conv_strides), self.encoder.hop
        outputs = []
        for waveform, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True):
            pieces = []
            for start in range(0, length - self.encoder.receptive_field + 1, PIECE * hop):
                clip = waveform[start : min(start + size, length)][None].to(self.device)
                frames = self.encoder.num_frames(clip.shape[1])
                pieces.append(self.compute(clip, torch.tensor([clip.shape[1]]), [frames]).float().cpu())
            outputs.append(torch.cat(pieces))
        return outputs


def make_labels(
    folder: Path,
    manifests: Sequence[Manifest],
    features: FrameFeatures,
    *,
    num_clusters: int,
    max_hours: float,
    seed: int,
    batch_seconds: float,
    skip_invalid: bool,
    num_workers: int,
) -> None:
    """Clusters of the first manifest's frames (of `max_hours` drawn from it), and labels of all manifests' clips."""

    def load(manifest: Manifest, *, shuffle: bool) -> BatchLoader:
        return BatchLoader(
            manifest,
            sample_rate=features.sample_rate,
            normalize=features.normalize,
            min_samples=features.encoder.receptive_field,
            batch_seconds=batch_seconds,
            seed=seed,
            shuffle=shuffle,
            skip_invalid=skip_invalid,
            num_workers=num_workers,
        )

    centroids = fit(
        _frames(load(manifests[0], shuffle=True), features, max_seconds=3600 * max_hours), num_clusters, seed=seed
    )
    counts, squares = np.zeros(num_clusters, dtype=np.int64), []

    def labelled() -> Iterator[tuple[Utterance, np.ndarray]]:
        for manifest in manifests:
            for batch in load(manifest, shuffle=False).once():
                for utterance, frames in zip(batch.utterances, features(batch), strict=True):
                    labels, distances = nearest(frames, centroids)
                    counts[:] += np.bincount(labels, minlength=num_clusters)
                    squares.append(float(distances.sum()))
                    yield utterance, labels

    info = {**features.info, "seed": seed, "manifests": [str(manifest.path) for manifest in manifests]}
    write_labels(folder, info=info, centroids=centroids.numpy(), clips=labelled())
    share = counts / counts.sum()
    perplexity = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
    log.info(
        "%s: %d frames in %d clusters, perplexity %.1f, mean squared distance %.3f",
        folder,
        counts.sum(),
        num_clusters,
        perplexity,
        sum(squares) / counts.sum(),
    )


def fit(frames: Iterator[Tensor], num_clusters: int, *, seed: int) -> Tensor:
    """Frames [T, D] one after another -> centroids float32 [K, D]."""
    # Imported here: scikit-learn takes a second, and only clustering needs it.
    from sklearn.cluster import MiniBatchKMeans

    chunk = max(CHUNK_PER_CLUSTER * num_clusters, CHUNK)
    kmeans = MiniBatchKMeans(num_clusters, batch_size=chunk, random_state=seed, n_init=3, compute_labels=False)
    waiting, total, fitted = [], 0, False
    for part in frames:
        waiting.append(part)
        total += len(part)
        if total >= chunk:
            _learn(kmeans, waiting)
            waiting, total, fitted = [], 0, True
    if not fitted and total < num_clusters:
        raise UserError(f"{total} frames are too few for {num_clusters} clusters; give more audio or fewer clusters")
    if total >= num_clusters:
        _learn(kmeans, waiting)
    return torch.from_numpy(kmeans.cluster_centers_).float()


def _learn(kmeans: MiniBatchKMeans, parts: list[Tensor]) -> None:
    chunk = torch.cat(parts).numpy()
    for _ in range(REPEATS):
        kmeans.partial_fit(chunk)


def nearest(frames: Tensor, centroids: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, D] -> the number of the nearest centroid of each, and the squared distance to it."""
    distances = torch.cdist(frames, centroids)
    found = distances.min(1)
    return found.indices.numpy(), found.values.square().numpy()


def _frames(loader: BatchLoader, features: FrameFeatures, *, max_seconds: float) -> Iterator[Tensor]:
    """Every clip once in the shuffled order of epoch 0, as far as `max_seconds` of audio."""
    seconds = 0.0
    for batch in loader.once():
        yield from features(batch)
        seconds += float(batch.lengths.sum()) / features.sample_rate
        if seconds >= max_seconds:
            return
