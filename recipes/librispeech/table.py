"""The closing table of recipes/librispeech: python table.py OUT prints what was tested under OUT/ctc."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(out: Path) -> None:
    """A line for each test that was made, in the order of labels, seeds, test sets and decoders."""
    header = ("labels", "seed", "test set", "decoder", "WER", "95 % interval", "CER")
    lines = [header, *(line(path) for path in sorted((out / "ctc").glob("*/seed_*/*/*/metrics.json")))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def line(path: Path) -> tuple[str, ...]:
    """The cells of OUT/ctc/LABELS/seed_N/SET/DECODER/metrics.json."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    labels, seed, name, decoder = path.parts[-5:-1]
    interval = metrics.get("wer_interval")
    shown = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %" if interval else "-"
    return labels, seed.removeprefix("seed_"), name, decoder, percent(metrics["wer"]), shown, percent(metrics["cer"])


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "-" if value is None else f"{100 * value:.1f} %"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
