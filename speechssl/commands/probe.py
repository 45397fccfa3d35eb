"""Measure what each layer of a frozen encoder knows, in the manner of SUPERB, beside what comes for free.

Examples:
  speechssl probe checkpoint=runs/first data.train=train.jsonl data.valid=valid.jsonl data.test=test.jsonl out=probe
  speechssl probe checkpoint=runs/first label=text data.train=... data.valid=... data.test=... out=digits
  speechssl probe checkpoint=runs/first target=characters data.train=... data.valid=... data.test=... out=characters

A linear layer is trained on the features of each layer, and of a learned weighting of all: classes of any column of
the manifest (label=) from pooled frames, or characters from frames by CTC. Every rate of lrs= is tried and the best on
data.valid is tested once, since a comparison at one rate compares rates. The floors are log-mel features and the same
encoder with random weights. data.verify, other speakers with two clips or more each, adds EER and minDCF. Writes
out/probe.json and out/probe.svg, and prints the table. Frames for characters are kept in memory, in half precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from speechssl.config import plain
from speechssl.data.text import Vocabulary, normalize
from speechssl.errors import UserError
from speechssl.evaluation.classification import check_apart
from speechssl.evaluation.features import Source, extract, sources
from speechssl.evaluation.probe import Split, probe, verify
from speechssl.heads.pooling import POOLINGS
from speechssl.inference import load_model
from speechssl.manifest import Manifest
from speechssl.reporting.svg import chart
from speechssl.training.files import write_json
from speechssl.types import Utterance

log = logging.getLogger("speechssl")

SPLITS = ("train", "valid", "test")


def run(config: DictConfig) -> None:
    """Probe as the config says."""
    if config.target not in ("label", "characters"):
        raise UserError(f"target={config.target} must be label or characters")
    if config.pooling not in POOLINGS[:2]:
        raise UserError(f"pooling={config.pooling} must be mean or statistics")
    if config.target == "characters" and config.data.verify:
        raise UserError("data.verify is for speakers, and has no effect on target=characters; drop one of them")
    if not config.lrs or min(config.lrs) <= 0:
        raise UserError(f"lrs={list(config.lrs)} must be learning rates above 0, one or more")
    manifests = {name: Manifest(config.data[name]) for name in (*SPLITS, "verify") if config.data[name]}
    for manifest in manifests.values():
        manifest.check_files()
    if config.data.verify:
        check_apart({"data.train": manifests["train"], "data.verify": manifests["verify"]}, config.label)
    targets = _characters(manifests["train"], config) if config.target == "characters" else _labels(manifests, config)
    model = load_model(config.checkpoint, device=config.trainer.device)
    model = replace(model, needs_voice=config.target == "label")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for source in sources(model, floors=config.floors, seed=config.seed, pooled=targets.vocabulary is None):
        log.info("%s: features", source.name)
        splits, speakers = {}, None
        for name, manifest in manifests.items():
            utterances, found = extract(
                manifest,
                model,
                [source],
                check=targets.check if name != "verify" else targets.has_label,
                pooling=config.pooling if targets.vocabulary is None else None,
                **_data_options(config),
            )
            if name == "verify":
                speakers = np.array([u.label(config.label) for u in utterances])
                splits[name] = Split(found[source.name], [])
            else:
                splits[name] = Split(found[source.name], [targets.encode(u) for u in utterances])
        rows += _probe(config, source, targets, splits, speakers)
    content = {
        "target": config.target,
        "label": config.label,
        "metric": targets.metric,
        "checkpoint": str(model.source),
    }
    sizes = {f"num_{name}": len(manifest) for name, manifest in manifests.items()}
    write_json(
        out / "probe.json",
        {**content, "metric": targets.metric, "num_outputs": targets.num_outputs, **sizes, "results": rows},
    )
    _chart(out / "probe.svg", rows, targets.metric)
    _print(rows, targets.metric)


class _Targets:
    """What the probes learn: how a clip is labelled, and which clips cannot be."""

    def __init__(
        self,
        *,
        metric: str,
        num_outputs: int,
        encode: Callable[[Utterance], torch.Tensor],
        check: Callable[[Utterance], str | None],
        has_label: Callable[[Utterance], str | None] | None = None,
        vocabulary: Vocabulary | None = None,
    ):
        self.metric, self.num_outputs, self.encode, self.check = metric, num_outputs, encode, check
        self.has_label, self.vocabulary = has_label, vocabulary


def _labels(manifests: dict[str, Manifest], config: DictConfig) -> _Targets:
    column = config.label
    labels = sorted({u.label(column) for u in manifests["train"]} - {None})
    if len(labels) < 2:
        raise UserError(
            f"{manifests['train'].path} has {len(labels)} different values of {column!r}, and a probe needs two; check "
            "the column's name (label=) and the manifest"
        )
    places = {label: i for i, label in enumerate(labels)}

    def has_label(utterance: Utterance) -> str | None:
        return None if utterance.label(column) is not None else f"it has no {column!r}"

    def check(utterance: Utterance) -> str | None:
        missing = has_label(utterance)
        if missing or utterance.label(column) in places:
            return missing
        return f"its {column} {utterance.label(column)!r} does not occur in the training manifest"

    return _Targets(
        metric="accuracy",
        num_outputs=len(labels),
        encode=lambda utterance: torch.tensor(places[utterance.label(column)]),
        check=check,
        has_label=has_label,
    )


def _characters(train: Manifest, config: DictConfig) -> _Targets:
    vocabulary = Vocabulary.from_texts((u.text or "" for u in train), lowercase=config.lowercase)

    def check(utterance: Utterance) -> str | None:
        if not utterance.text:
            return "it has no `text`"
        outside = vocabulary.outside(normalize(utterance.text, lowercase=config.lowercase))
        return f"its transcript has characters that the training has not: {' '.join(outside)}" if outside else None

    return _Targets(
        metric="cer",
        num_outputs=len(vocabulary),
        encode=lambda u: torch.tensor(vocabulary.encode(normalize(u.text or "", lowercase=config.lowercase))),
        check=check,
        vocabulary=vocabulary,
    )


def _probe(
    config: DictConfig, source: Source, targets: _Targets, splits: dict[str, Split], speakers: np.ndarray | None
) -> list[dict[str, Any]]:
    """A row for each layer of a source."""
    results = probe(
        {name: splits[name] for name in SPLITS},
        source.layers,
        num_outputs=targets.num_outputs,
        vocabulary=targets.vocabulary,
        lrs=list(config.lrs),
        steps=config.steps,
        batch_clips=config.batch_clips,
        seed=config.seed,
    )
    rows = []
    for place, result in enumerate(results):
        row = {"source": source.name, **asdict(result)}
        if speakers is not None and place < len(source.layers):
            row |= verify(splits["train"], splits["verify"], place, speakers=speakers, p_target=config.p_target)
        log.info("%s, layer %s: %s %.4f", source.name, result.layer, targets.metric, result.test)
        rows.append(row)
    return rows


def _chart(path: Path, rows: list[dict[str, Any]], metric: str) -> None:
    """The figure over layers; log-mel, which has one, and weightings as level lines."""
    last = max((int(row["layer"]) for row in rows if row["layer"].isdigit()), default=1)
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["layer"].isdigit():
            series.setdefault(row["source"], []).append((int(row["layer"]), row["test"]))
        else:
            name = row["source"] if row["layer"] == row["source"] else f"{row['source']}, {row['layer']}"
            series[name] = [(0, row["test"]), (last, row["test"])]
    ticks = [(i, str(i)) for i in range(last + 1)]
    shares = [(x / 5, f"{20 * x} %") for x in range(6)]
    chart(path, series, title="What each layer knows", x_label="layer", y_label=metric, x_ticks=ticks, y_ticks=shares)


def _print(rows: list[dict[str, Any]], metric: str) -> None:
    has_eer = any("eer" in row for row in rows)
    head = f"{'source':<15} {'layer':<9} {metric:>9} {'95 % interval':>19} {'lr':>8}"
    print(head + (f" {'EER':>8} {'95 % interval':>19} {'minDCF':>8} {'95 % interval':>15}" if has_eer else ""))
    for row in rows:
        low, high = row["interval"]
        line = f"{row['source']:<15} {row['layer']:<9} {row['test']:>8.1%} {low:>9.1%} {high:>8.1%}  {row['lr']:>8g}"
        if row.get("eer") is not None:
            low, high = row["eer_interval"]
            line += f" {row['eer']:>7.1%} {low:>9.1%} {high:>8.1%}  {row['min_dcf']:>8.3f}"
            line += " {:>7.3f} {:>7.3f}".format(*row["min_dcf_interval"])
        print(line)


def _data_options(config: DictConfig) -> dict[str, Any]:
    return {key: value for key, value in plain(config.data).items() if key not in (*SPLITS, "verify")}
