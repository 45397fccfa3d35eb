"""Write the vectors that a checkpoint makes of recordings: frames of a layer or of all, or one vector a clip.

Examples:
  speechssl embed checkpoint=runs/first audio=recordings out=vectors
  speechssl embed checkpoint=runs/first audio=test.jsonl out=vectors layer=all pooling=mean
  speechssl embed checkpoint=runs/speaker audio=recordings out=vectors pooling=head clusters=auto map=true

audio is a file, a folder or a manifest. Writes out/embeddings.jsonl, the manifest with `embedding_filepath` and
`embedding_shape`, and float32 arrays: one .npy a clip, or one file for all with format=safetensors (`embedding_key`)
or format=parquet. An array is [T, C], [layers + 1, T, C] with layer=all, and without T when pooled. clusters= groups
clips by unknown voices and adds the column `cluster`; map=true draws map.svg, alike clips near each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from speechssl import cpu
from speechssl.embedding import Embedder, clips, write, write_manifest
from speechssl.errors import UserError
from speechssl.evaluation.clusters import cluster, map_chart
from speechssl.inference import load_model


def run(config: DictConfig) -> None:
    """Embed as the config says."""
    grouped = config.clusters is not None or config.map
    layer, groups = str(config.layer), None if config.clusters is None else str(config.clusters)
    if grouped and (config.pooling == "none" or layer == "all"):
        raise UserError(
            "clusters= and map= take one vector a clip: add pooling=mean, statistics or head, not layer=all"
        )
    utterances = clips(config.audio)
    model = load_model(config.checkpoint, device=config.trainer.device)
    cpu.tune(model.device)
    embedder = Embedder(model, layer=layer, pooling=config.pooling)
    vectors = []

    def kept():
        for utterance, array in embedder.run(utterances, batch_seconds=config.data.batch_seconds):
            if grouped:
                vectors.append(array)
            yield utterance, array

    out = Path(config.out)
    rows = write(out, kept(), form=config.format)
    if groups is not None:
        for row, group in zip(rows, cluster(np.stack(vectors), groups).tolist(), strict=True):
            row["cluster"] = group
    write_manifest(out, rows)
    if config.map:
        names = [str(row.get("cluster", row.get("speaker", ""))) for row in rows]
        map_chart(out / "map.svg", np.stack(vectors), names)
    print(f"{len(rows)}\t{out / 'embeddings.jsonl'}")
