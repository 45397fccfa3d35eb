"""Label every frame of a corpus by k-means, of MFCC or of a trained encoder's layer, for objective=hubert.

Examples:
  speechssl cluster data.train=train.jsonl data.valid=valid.jsonl model=tiny out=labels/mfcc
  speechssl cluster data.train=train.jsonl source=runs/first layer=3 num_clusters=200 model=tiny out=labels/second
  speechssl pretrain objective=hubert objective.labels=labels/mfcc data.train=train.jsonl run_dir=runs/hubert model=tiny

Training and validation clips are labelled by the same clusters, which are fitted on the training clips.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from speechssl import cpu
from speechssl.clustering import FrameFeatures, make_labels
from speechssl.config import plain
from speechssl.errors import UserError
from speechssl.models.encoder import EncoderConfig
from speechssl.training.run import choose_device, open_manifest


def run(config: DictConfig) -> None:
    """Cluster and label as the config says."""
    out = Path(config.out)
    if out.exists() and not (out / "clusters.json").is_file():
        raise UserError(f"out={out} is there already and holds no labels; choose another folder")
    manifests = [open_manifest(path) for path in (config.data.train, config.data.valid) if path]
    device = choose_device(config.device)
    cpu.tune(device)
    features = FrameFeatures(
        config.source,
        layer=config.layer,
        encoder=EncoderConfig.from_dict(plain(config.model.encoder)),
        sample_rate=config.model.sample_rate,
        normalize=config.model.normalize,
        device=device,
    )
    make_labels(
        out,
        manifests,
        features,
        num_clusters=config.num_clusters,
        max_hours=config.max_hours,
        seed=config.seed,
        batch_seconds=config.data.batch_seconds,
        skip_invalid=config.data.skip_invalid,
        num_workers=config.data.num_workers,
    )
