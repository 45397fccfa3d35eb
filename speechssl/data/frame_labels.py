"""Labels of every frame of a corpus, stored compactly: one byte a frame for up to 256 labels, else two.

A folder holds clusters.json (what the labels are), centroids.npy (float32 [K, D]), labels.npy (all frames end to end)
and clips.npy (where each clip's are). A clip is found by its id, file name, offset and duration, so that a corpus may
move, and training and validation may share a folder though their ids repeat. Labels are read through a memory map.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.errors import UserError
from speechssl.rng import derive_seed
from speechssl.types import Utterance

CLIP = np.dtype([("key", "<u8"), ("start", "<i8"), ("length", "<i8")])
# A crop's last frames may lie so far behind the last label, by rounding; they take the last label.
SLACK = 3


def clip_key(utterance: Utterance) -> int:
    """What a clip is found by."""
    place = f"{utterance.offset_s:.3f}", f"{utterance.duration_s:.3f}"
    return derive_seed("frame labels", utterance.id, PurePath(utterance.audio_path).name, *place)


def write_labels(
    folder: Path, *, info: dict[str, Any], centroids: np.ndarray, clips: Iterable[tuple[Utterance, np.ndarray]]
) -> None:
    """Write the folder whole or not at all; `clips` are utterances with their labels, one a frame."""
    temporary = folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    kind = np.dtype("u1" if len(centroids) <= 256 else "<u2")
    rows, total = [], 0
    raw = temporary / "labels.raw"
    with raw.open("wb") as file:
        for utterance, labels in clips:
            file.write(labels.astype(kind).tobytes())
            rows.append((clip_key(utterance), total, len(labels)))
            total += len(labels)
    np.save(temporary / "labels.npy", np.memmap(raw, dtype=kind, mode="r") if total else np.empty(0, kind))
    raw.unlink()
    table = np.array(rows, dtype=CLIP)
    np.save(temporary / "clips.npy", table[np.argsort(table["key"], kind="stable")])
    np.save(temporary / "centroids.npy", centroids.astype(np.float32))
    info = {**info, "num_clusters": len(centroids), "num_clips": len(rows), "num_frames": total}
    (temporary / "clusters.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


class FrameLabels:
    """The labels in a folder.

    Attributes:
        info: what clusters.json says: source, layer, hop, sample_rate, num_clusters and so on.

    Raises:
        UserError: the folder holds no labels.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        try:
            self.info = json.loads((self.folder / "clusters.json").read_text(encoding="utf-8"))
            self.clips = np.load(self.folder / "clips.npy", allow_pickle=False)
            self.labels = np.load(self.folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} holds no labels of frames ({error}); make them with `speechssl cluster`"
            ) from error

    def __call__(self, utterance: Utterance, start_s: float, num_frames: int) -> Tensor:
        """int64 [num_frames] from the second `start_s` of the utterance on."""
        key = np.uint64(clip_key(utterance))
        place = int(np.searchsorted(self.clips["key"], key))
        if place == len(self.clips) or self.clips["key"][place] != key:
            raise UserError(
                f"{self.folder} has no labels for the clip {utterance.id} ({utterance.audio_path}); make them anew "
                "from the manifests of this run with `speechssl cluster`"
            )
        _, start, length = (int(x) for x in self.clips[place])
        first = round(start_s * self.info["sample_rate"] / self.info["hop"])
        if first + num_frames > length + SLACK:
            raise UserError(
                f"{self.folder} has {length} labels for the clip {utterance.id}, but it has frames up to "
                f"{first + num_frames}; make them anew with `speechssl cluster`"
            )
        wanted = np.minimum(np.arange(first, first + num_frames), length - 1)
        return torch.from_numpy(np.asarray(self.labels[start + wanted]).astype(np.int64))
