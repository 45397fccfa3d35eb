"""HuBERT: predict at masked frames the k-means labels of every frame (Hsu et al. 2021).

The first labels are clusters of MFCC with differences, made when a run begins unless `labels` names a folder that
`speechssl cluster` wrote; better ones come from a layer of the model that these gave (`speechssl hubert` does both).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechssl.data.frame_labels import FrameLabels
from speechssl.errors import UserError
from speechssl.heads.labels import LabelHead, label_counts
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.objectives.common import PretrainingObjective, draw_masks, encode_masked, spread, usage
from speechssl.types import Batch, LossOutput, to_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from speechssl.manifest import Manifest

log = logging.getLogger("speechssl")


class HubertObjective(PretrainingObjective):
    """Cross-entropy with stored labels at masked frames."""

    has_frame_labels = True

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        num_clusters: int,
        labels: str | None,
        cluster_hours: float,
        logits: str,
        final_size: int,
        temperature: float,
        unmasked_weight: float,
        mask_start_probability: float,
        mask_span: int,
        mask_min_spans: int,
        feature_gradient_scale: float,
    ):
        """Args:
        num_clusters: K.
        labels: folder of labels; None makes those of MFCC in the run folder.
        cluster_hours: audio that the clusters are fitted on, at most.
        logits, final_size, temperature: see `LabelHead`; the paper's are cosines divided by 0.1 (equation 3).
        unmasked_weight: of the loss at frames that are not hidden (1 - alpha to alpha in section II.B).
        mask_start_probability, mask_span, mask_min_spans: see `span_mask`.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.encoder_config, self.num_clusters, self.cluster_hours = encoder, num_clusters, cluster_hours
        self.folder, self.stored = labels, None
        self.head = LabelHead(
            encoder.hidden_size, num_clusters, logits=logits, final_size=final_size, temperature=temperature
        )
        self.unmasked_weight, self.feature_gradient_scale = unmasked_weight, feature_gradient_scale
        self.mask_options = {
            "start_probability": mask_start_probability,
            "span": mask_span,
            "min_spans": mask_min_spans,
        }

    def prepare(self, config: DictConfig, manifests: Sequence[Manifest | None]) -> None:
        """Open the labels, or make those of MFCC in the run folder, once."""
        folder = self.folder
        if folder is None:
            folder = Path(config.run_dir) / "labels"
            if not (folder / "clusters.json").is_file():  # ranks come in turn: the first one makes them
                self._make(folder, config, [m for m in manifests if m is not None])
        self.open(folder)

    def open(self, folder: str | Path) -> None:
        """Use the labels in a folder, which must fit the encoder's frames and the head."""
        stored = FrameLabels(folder)
        found = stored.info["num_clusters"], stored.info["hop"]
        wanted = self.num_clusters, self.encoder_config.hop
        if found != wanted:
            raise UserError(
                f"{folder} has {found[0]} clusters of frames of {found[1]} samples, the run wants {wanted[0]} and "
                f"{wanted[1]}; set objective.num_clusters={found[0]}, or make other labels with `speechssl cluster`"
            )
        self.stored = stored

    def _make(self, folder: Path, config: DictConfig, manifests: list[Manifest]) -> None:
        from speechssl.clustering import FrameFeatures, make_labels  # it loads models, which load objectives

        log.info("making %d clusters of MFCC and the labels of all frames in %s", self.num_clusters, folder)
        features = FrameFeatures(
            "mfcc",
            layer=-1,
            encoder=self.encoder_config,
            sample_rate=config.model.sample_rate,
            normalize=config.model.normalize,
            device="cpu",
        )
        make_labels(
            folder,
            manifests,
            features,
            num_clusters=self.num_clusters,
            max_hours=self.cluster_hours,
            seed=config.trainer.seed,
            batch_seconds=config.data.batch_seconds,
            skip_invalid=config.data.skip_invalid,
            num_workers=config.data.num_workers or 0,
        )

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return, from lengths and seeds alone."""
        masks = draw_masks(batch, frame_lengths, self.mask_options)
        return label_counts(torch.cat(masks), unmasked_weight=self.unmasked_weight)

    def labels(self, batch: Batch, frame_lengths: list[int]) -> Tensor:
        """int64 [P]: the stored label of each frame."""
        if self.stored is None:
            raise UserError("HuBERT has no labels to predict; train it with `speechssl pretrain objective=hubert`")
        starts_s = batch.starts_s or [0.0] * len(frame_lengths)
        found = [
            self.stored(utterance, start_s, frames)
            for utterance, start_s, frames in zip(batch.utterances, starts_s, frame_lengths, strict=True)
        ]
        return to_device(torch.cat(found), batch.waveforms.device)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Loss of a batch in nats, summed over frames."""
        output, mask = encode_masked(
            encoder,
            batch,
            self.mask_options,
            gradient_scale=self.feature_gradient_scale,
            generator=generator,
        )
        labels, frames = self.labels(batch, output.frame_lengths), output.packed[-1]
        found = self.head.loss(frames, labels, mask, unmasked_weight=self.unmasked_weight, watching=self.watching)
        if self.watching:
            found.metrics |= spread(frames) | usage(labels[mask], self.num_clusters)
        return found
