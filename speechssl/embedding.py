"""Vectors of clips for use elsewhere: frames or pooled, of one layer or all, written as a corpus is read.

A row of embeddings.jsonl is the clip's manifest line with where its vector is: a .npy of its own, a key of one
safetensors file, or a row of one Parquet file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl import audio, manifest
from speechssl.errors import UserError
from speechssl.heads.pooling import MeanPooling, StatisticsPooling
from speechssl.heads.speaker import ClassifyObjective
from speechssl.inference import SpeechModel, recordings
from speechssl.manifest import Manifest
from speechssl.types import EncoderOutput, Utterance

log = logging.getLogger("speechssl")

POOLINGS = ("none", "mean", "statistics", "head")
FORMATS = ("npy", "safetensors", "parquet")


def clips(source: str) -> list[Utterance]:
    """The clips of a manifest (.jsonl), of a folder, or the one file.

    Raises:
        UserError: there is none, or a file is missing or no audio.
    """
    if Path(source).suffix == ".jsonl":
        found = Manifest(source)
        found.check_files()
        return list(found)
    rows = []
    for path in recordings(source):
        duration_s = audio.info(path).duration_s
        name = path.relative_to(source).as_posix() if Path(source).is_dir() else path.name
        fields = {"audio_filepath": str(path.absolute()), "duration": round(duration_s, 6), "id": name}
        rows.append(Utterance(id=name, audio_path=path.absolute(), duration_s=duration_s, fields=fields))
    return rows


class Embedder:
    """Clips to arrays.

    Args:
        model: of a checkpoint.
        layer: "all", or the number of a hidden state; -1 is the last.
        pooling: "none" keeps frames; "mean", "statistics" (mean and deviation); "head" is the classifier's embedding.

    Raises:
        UserError: there is no such layer or pooling, or the checkpoint has no classifier.
    """

    def __init__(self, model: SpeechModel, *, layer: str, pooling: str):
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling} must be {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}")
        num_layers = model.encoder.config.num_layers
        numbers = [str(i) for i in range(-num_layers - 1, num_layers + 1)]
        if layer != "all" and layer not in numbers:
            raise UserError(f"layer={layer} must be all, or a number up to {num_layers} (-1 is the last)")
        self.model, self.layer, self.pooling = model, layer, pooling
        if pooling == "head":
            found = model.with_head(ClassifyObjective)
            if found is None:
                raise UserError(f"pooling=head takes a classifier, and {model.source} has none; use mean or statistics")
            self.model = replace(found, needs_voice=True)

    def run(self, utterances: list[Utterance], *, batch_seconds: float) -> Iterator[tuple[Utterance, np.ndarray]]:
        """Each clip and its array float32, in their order: [T, C], [layers + 1, T, C], or without T where pooled."""
        ready: list[tuple[Utterance, Tensor]] = []
        for utterance in utterances:
            waveform = self._read(utterance)
            num_samples = len(waveform) + sum(len(x) for _, x in ready)
            if ready and num_samples > batch_seconds * self.model.sample_rate:
                yield from self._embed(ready)
                ready = []
            ready.append((utterance, waveform))
        yield from self._embed(ready)

    def _read(self, utterance: Utterance) -> Tensor:
        waveform = audio.load(
            utterance.audio_path,
            sample_rate=self.model.sample_rate,
            offset_s=utterance.offset_s,
            duration_s=utterance.duration_s,
            byte_range=utterance.byte_range,
            channel=utterance.channel,
        )
        return self.model.read(waveform, self.model.sample_rate, name=str(utterance.audio_path))

    @torch.inference_mode()
    def _embed(self, ready: list[tuple[Utterance, Tensor]]) -> Iterator[tuple[Utterance, np.ndarray]]:
        lengths = torch.tensor([len(x) for _, x in ready])
        output = self.model.encode(pad_sequence([x for _, x in ready], batch_first=True), lengths)
        for (utterance, _), array in zip(ready, self._arrays(output), strict=True):
            yield utterance, array

    def _arrays(self, output: EncoderOutput) -> list[np.ndarray]:
        if self.pooling == "head":
            return list(self.model.objective.embed(output).float().cpu().numpy())
        states = output.packed if self.layer == "all" else [output.packed[int(self.layer)]]
        if self.pooling == "none":
            layers = [list(x.split(output.frame_lengths)) for x in states]
        else:
            pool = (MeanPooling if self.pooling == "mean" else StatisticsPooling)(states[0].shape[1])
            layers = [list(pool(x.float(), output.frame_lengths)) for x in states]
        found = [torch.stack(of_a_clip).float().cpu().numpy() for of_a_clip in zip(*layers, strict=True)]
        return found if self.layer == "all" else [x[0] for x in found]


def write(out: Path, embedded: Iterator[tuple[Utterance, np.ndarray]], *, form: str) -> list[dict[str, Any]]:
    """Write every array in a form of FORMATS; the rows for embeddings.jsonl. Only safetensors holds all in memory."""
    if form not in FORMATS:
        raise UserError(f"format={form} must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    out.mkdir(parents=True, exist_ok=True)
    return {"npy": _write_npy, "safetensors": _write_safetensors, "parquet": _write_parquet}[form](out, embedded)


def _row(utterance: Utterance, array: np.ndarray, **where: Any) -> dict[str, Any]:
    fields = {**utterance.fields, "audio_filepath": str(utterance.audio_path), "id": utterance.id}
    return {**fields, **where, "embedding_shape": list(array.shape)}


def _write_npy(out: Path, embedded: Iterator[tuple[Utterance, np.ndarray]]) -> list[dict[str, Any]]:
    rows = []
    for number, (utterance, array) in enumerate(embedded):
        name = f"{number:06d}.npy"
        np.save(out / name, array)
        rows.append(_row(utterance, array, embedding_filepath=name))
    return rows


def _write_safetensors(out: Path, embedded: Iterator[tuple[Utterance, np.ndarray]]) -> list[dict[str, Any]]:
    from safetensors.numpy import save_file

    tensors, rows = {}, []
    for utterance, array in embedded:
        tensors[utterance.id] = np.ascontiguousarray(array)
        rows.append(_row(utterance, array, embedding_filepath="embeddings.safetensors", embedding_key=utterance.id))
    save_file(tensors, out / "embeddings.safetensors")
    return rows


def _write_parquet(out: Path, embedded: Iterator[tuple[Utterance, np.ndarray]]) -> list[dict[str, Any]]:
    """Columns id, audio_filepath, shape and embedding (flat, float32), and the manifest's line as JSON."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("format=parquet needs pyarrow: install it with `pip install 'speechssl[parquet]'`") from error
    kinds = {"id": pyarrow.string(), "audio_filepath": pyarrow.string(), "manifest": pyarrow.string()}
    schema = pyarrow.schema(
        {**kinds, "shape": pyarrow.list_(pyarrow.int64()), "embedding": pyarrow.list_(pyarrow.float32())}
    )
    rows = []
    with parquet.ParquetWriter(out / "embeddings.parquet", schema) as writer:
        for number, (utterance, array) in enumerate(embedded):
            row = _row(utterance, array, embedding_filepath="embeddings.parquet", embedding_row=number)
            line = json.dumps(utterance.fields, ensure_ascii=False)
            columns = {"id": [utterance.id], "audio_filepath": [row["audio_filepath"]], "manifest": [line]}
            columns |= {"shape": [list(array.shape)], "embedding": [array.ravel()]}
            writer.write_table(pyarrow.table(columns, schema))
            rows.append(row)
    return rows


def write_manifest(out: Path, rows: list[dict[str, Any]]) -> None:
    """embeddings.jsonl."""
    manifest.write(out / "embeddings.jsonl", rows)
