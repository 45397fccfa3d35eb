"""Measure how fast training and inference are on this machine, and against transformers.

Examples:
  speechssl benchmark what=pretrain model=small batch=4x5
  speechssl benchmark what=pretrain model=small batch=uneven peer=transformers json=small_uneven.json
  speechssl benchmark what=pretrain model=base batch=[1,3,5,8,12,15] peer=transformers fresh=true steps=3 warmup_steps=1
  speechssl benchmark what=finetune model=base batch=4x5 peer=transformers verify=true
  speechssl benchmark what=inference model=base batch=10x10 trainer.precision=bf16 threads=2
  speechssl benchmark what=data peer=all json=loading.json

pretrain is the whole training step (forward, contrastive and diversity loss, backward, AdamW) with the reference's
dropouts, masks and number of distractors, on noise. Medians over the steps; spread is the range of the middle half.
data is how fast recordings of each format become batches, beside a plain loop of soundfile, which is the limit, and
beside the loaders of transformers and SpeechBrain; and how long a training step waits for them.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from speechssl.benchmarks import loading, loading_peers
from speechssl.benchmarks.clips import clip_seconds
from speechssl.benchmarks.turns import measure
from speechssl.benchmarks.worker import OURS, PEER
from speechssl.config import plain
from speechssl.errors import UserError
from speechssl.interop import foreign
from speechssl.models.encoder import EncoderConfig
from speechssl.models.lengths import num_frames


def run(config: DictConfig) -> None:
    """Measure as the config says."""
    settings = plain(config)
    if settings["what"] == "data":
        show, collect = _loading_table, loading.measure
        _check_loading(settings)
    else:
        show, collect = _print_sides, measure
        _check(settings)
    out = Path(config.json) if config.json else None
    if out:
        _open(out)
    report = collect(settings)
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)


def _open(path: Path) -> None:
    """A place that cannot be written shows now, not after the measurement."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise UserError(f"json={path} cannot be written ({error.strerror}); give a file in a folder of yours") from None


def _print_sides(report: dict[str, Any]) -> None:
    Console().print(_table(report))
    print("\n".join(_notes(report)))


def _check_loading(settings: dict[str, Any]) -> None:
    unknown = [name for name in settings["data"]["formats"] if name not in loading.FORMATS]
    if unknown or not settings["data"]["formats"]:
        raise UserError(f"data.formats has {unknown or 'nothing'}: give some of {', '.join(loading.FORMATS)}")
    workers = settings["data"]["workers"]
    if not workers or min(workers) < 0:
        raise UserError(f"data.workers={workers} must be numbers of workers, 0 or more, at least one of them")
    if settings["peer"]:
        loading_peers.chosen(settings["peer"])


def _loading_table(report: dict[str, Any]) -> None:
    """One line a side, one column a format: audio seconds a second, and how much of the limit that is, by the clock and
    by the time that processors worked."""
    title = f"audio seconds a second (of the limit by the clock, by processor time), on {report['cores']} cores"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in report["formats"]:
        table.add_column(name, justify="right")
    sides = dict.fromkeys(side for results in report["formats"].values() for side in results)
    for side in sides:
        found = [results.get(side) for results in report["formats"].values()]
        table.add_row(
            side,
            *(
                f"{x['audio_seconds_per_second']:.0f} ({x['of_limit']:.0%}, {x['of_limit_by_processor']:.0%})"
                if x
                else "-"
                for x in found
            ),
        )
    Console().print(table)
    print(
        f"a training step of {report['model']} takes {report['step_seconds']:.2f} s for batches of "
        f"{report['batch_seconds']:g} s, and waits for audio {report['loader_share']:.1%} of that with "
        f"{report['loader_share_workers']} workers; {report['processor']}"
    )


def _check(settings: dict[str, Any]) -> None:
    peer, encoder = settings["peer"], settings["model"]["encoder"]
    if peer not in (None, PEER):
        raise UserError(f"peer={peer} is not known: give peer={PEER}, or leave it out")
    if settings["verify"] and not peer:
        raise UserError(f"verify=true compares with a peer: add peer={PEER}")
    if peer and importlib.util.find_spec(PEER) is None:
        raise UserError(f"peer={PEER} needs it installed: run `{sys.executable} -m pip install 'transformers>=5,<6'`")
    if peer and settings["objective"]["name"] != "wav2vec2":
        raise UserError(f"{PEER} has no objective {settings['objective']['name']}: drop peer, or take wav2vec2")
    peculiarity = foreign.peculiarity(EncoderConfig.from_dict(encoder)) if peer else None
    if peculiarity:
        raise UserError(f"the encoder {peculiarity}, and {PEER} has none like it: drop peer, or that option")
    if peer and (settings["objective"]["num_masks"] > 1 or settings["objective"]["decoder_layers"]):
        raise UserError(
            f"{PEER} has one mask a clip and no decoder: drop peer, or objective.num_masks and decoder_layers"
        )
    needed = settings["objective"].get("mask_span", 1) if settings["what"] == "pretrain" else 1
    for seconds in clip_seconds(settings["batch"]):
        samples = round(seconds * settings["model"]["sample_rate"])
        if num_frames(samples, encoder["conv_kernels"], encoder["conv_strides"]) < needed:
            raise UserError(f"batch={settings['batch']} has a clip of {seconds:g} s, too short to give {needed} frames")


def _table(report: dict[str, Any]) -> Table:
    """One column a side, and the ratio."""
    sides = {OURS: report, **({PEER: report["peer"]} if "peer" in report else {})}
    ratio = report.get("ratio", {})
    title = f"{report['what']} {report['model']} {report['batch']} {report['precision']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in [*sides, *(["ratio"] if ratio else [])]:
        table.add_column(name, justify="right")

    def add(label: str, show, last: str = "") -> None:
        table.add_row(label, *map(show, sides.values()), *([last] if ratio else []))

    speed = f"{ratio['audio_seconds_per_second']:.2f} ± {ratio['spread'] / 2:.2f}" if ratio else ""
    memory = f"{ratio['peak_memory']:.2f}" if ratio and ratio["peak_memory"] else ""
    add("audio seconds per second", lambda side: f"{side['audio_seconds_per_second']:.2f}", speed)
    add("step, s", lambda side: f"{side['step_seconds']:.3f} ± {side['step_seconds_spread'] / 2:.3f}")
    add("peak memory, GiB", lambda side: _gib(side["peak_memory_bytes"]), memory)
    add("parameters, M", lambda side: f"{side['parameters'] / 1e6:.2f}")
    add("GFLOP a step", lambda side: f"{side['flops'] / 1e9:.1f}")
    add("MFU, of the matmul peak", lambda side: f"{side['mfu']:.1%}")
    table.add_section()
    parts = dict.fromkeys(part for side in sides.values() for part in side["shares"])
    for part in parts:
        add(part, lambda side, part=part: f"{side['shares'].get(part, 0.0):.1%}")
    return table


def _gib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**30:.2f}"


def _notes(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['processor']}, {report['device']}, {report['threads']} threads, matmul peak "
        f"{report['matmul_peak_flops'] / 1e9:.0f} GFLOP/s, torch {report['versions']['torch']}",
        f"padded, {report['padding_share']:.0%} of this batch would be padding, and the encoder would compute "
        f"{report['padding_cost']:.2f} times as much",
    ]
    if "verify" in report:
        lines.append(f"losses of both sides differ by {report['verify']['relative_difference']:.1e} (relative)")
    return lines
