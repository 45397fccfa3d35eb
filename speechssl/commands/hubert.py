"""HuBERT from raw audio to the last iteration: clusters of MFCC, a model, clusters of its layer, the next model.

Examples:
  speechssl hubert data.train=train.jsonl data.valid=valid.jsonl run_dir=runs/hubert model=tiny
  speechssl hubert data.train=train.jsonl run_dir=runs/three model=tiny iterations=3 clusters=[100,200,500]

RUN/labels_1 and RUN/iteration_1 are the first clusters and the first run, and so on; `last` is the last run. Each model
begins anew, as in the paper. The same command again goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from speechssl.commands import cluster, pretrain
from speechssl.config import plain
from speechssl.errors import UserError
from speechssl.training.files import link
from speechssl.training.lock import in_turn


def run(config: DictConfig) -> None:
    """Cluster and pretrain in turn, as the config says."""
    if config.objective.name != "hubert":
        raise UserError(
            f"speechssl hubert trains objective=hubert, not {config.objective.name}; use speechssl pretrain"
        )
    if config.iterations < 1 or not config.clusters:
        raise UserError("speechssl hubert: iterations must be 1 or more, and clusters a list of numbers")
    folder = Path(config.run_dir)
    for number in range(1, config.iterations + 1):
        clusters = config.clusters[min(number, len(config.clusters)) - 1]
        labels, run_dir = folder / f"labels_{number}", folder / f"iteration_{number}"
        with in_turn(folder):
            if not (labels / "clusters.json").is_file():
                source = "mfcc" if number == 1 else str(folder / f"iteration_{number - 1}")
                cluster.run(_clusters(config, source, clusters, labels))
        pretrain.run(_pretraining(config, clusters, labels, run_dir))
        with in_turn(folder):
            link(folder / "last", run_dir.name)


def _clusters(config: DictConfig, source: str, num_clusters: int, out: Path) -> DictConfig:
    """The config of `speechssl cluster` for one iteration."""
    layer = config.layer
    values = {
        "model": config.model,
        "data": {key: config.data[key] for key in ("train", "valid", "batch_seconds", "skip_invalid")},
        "source": source,
        "layer": config.model.encoder.num_layers // 2 if layer is None else layer,
        "num_clusters": num_clusters,
        "max_hours": config.objective.cluster_hours,
        "out": str(out),
        "seed": config.trainer.seed,
        "device": config.trainer.device,
    }
    values["data"]["num_workers"] = config.data.num_workers or 0
    return OmegaConf.create(values)


def _pretraining(config: DictConfig, num_clusters: int, labels: Path, run_dir: Path) -> DictConfig:
    """The config of `speechssl pretrain` for one iteration."""
    values = plain(config)
    values["objective"] |= {"num_clusters": num_clusters, "labels": str(labels)}
    return OmegaConf.create({**values, "run_dir": str(run_dir), "init": None})
