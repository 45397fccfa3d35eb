"""Charts as SVG inside a page, drawn by matplotlib.

Colours are those of the page: matplotlib is given placeholders, which become CSS variables, so that one drawing suits
light and dark. Text stays text, so that it can be read aloud and searched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# What matplotlib draws with -> what the page fills in.
INK, GRID, BAND = "#0a0b0c", "#1a1b1c", "#2a2b2c"
LINES = ("#3a3b31", "#3a3b32", "#3a3b33", "#3a3b34", "#3a3b35", "#3a3b36")
# Once every colour is taken, they begin anew with the next of these: lengths drawn and left out, in line widths.
DASHES = ((), (4, 2), (1, 1.5), (6, 1.5, 1, 1.5))
COLOURS = {INK: "--ink-2", GRID: "--grid", BAND: "--band", **{line: f"--line-{i}" for i, line in enumerate(LINES)}}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "speechssl",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass
class Line:
    """A curve: its name, steps and values."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curves(lines: Sequence[Line], *, band: tuple[list, list, list] | None = None, label: str = "") -> str:
    """Curves over steps; `band` is (steps, lowest, highest) of healthy runs, drawn behind them."""
    figure, axes = _figure(3.6, 2.1)
    if band and band[0]:
        axes.fill_between(*band, color=BAND, linewidth=0)
    for number, line in enumerate(lines):
        dashes = _dashes(number)
        style = (0, dashes) if dashes else "solid"
        axes.plot(line.x, line.y, color=LINES[number % len(LINES)], linestyle=style, dash_capstyle="butt")
    axes.margins(x=0.01)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    return _svg(figure, label)


def key(number: int) -> str:
    """A piece of the curve of that number, for the legend."""
    dashes = " ".join(f"{3 * length:g}" for length in _dashes(number)) or "none"
    return (
        '<svg viewBox="0 0 34 6" aria-hidden="true"><path d="M0 3h34" stroke-width="3" '
        f'stroke="var(--line-{number % len(LINES)})" stroke-dasharray="{dashes}"/></svg>'
    )


def matrix(names: Sequence[str], counts: np.ndarray, *, label: str = "") -> str:
    """Counts [truth, answer] as a confusion matrix, each row as shares of its sum."""
    size = min(0.9 + 0.28 * len(names), 6.0)
    figure, axes = _figure(size + 0.6, size)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for truth, answer in np.argwhere(counts > 0):
        square = [(answer - 0.48, truth - 0.48), 0.96, 0.96]
        axes.add_patch(
            matplotlib.patches.Rectangle(
                *square, color=LINES[0], alpha=0.12 + 0.88 * shares[truth, answer], linewidth=0
            )
        )
        if len(names) <= 16:
            axes.text(answer, truth, str(counts[truth, answer]), color=INK, ha="center", va="center", fontsize=7)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="answered", ylabel="is")
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.grid(visible=False)
    return _svg(figure, label)


def spectrogram(
    mel: np.ndarray,
    *,
    hop_s: float,
    masked: np.ndarray | None = None,
    right: np.ndarray | None = None,
    symbols: Sequence[tuple[float, str]] = (),
    label: str = "",
) -> str:
    """Log-mel energies [bins, T'] over time, with what was hidden and what was answered.

    Args:
        mel: any scale; drawn dark to light.
        hop_s: seconds a column.
        masked: bool [T] on a grid of its own over the same time, the hidden frames.
        right: bool [T], at hidden frames whether the answer was right.
        symbols: (seconds, symbol) that a CTC head read.
    """
    figure, axes = _figure(7.2, 1.9)
    duration = mel.shape[1] * hop_s
    axes.imshow(mel, origin="lower", aspect="auto", extent=(0, duration, 0, mel.shape[0]), cmap="magma")
    height = mel.shape[0]
    if masked is not None:
        for frame in np.flatnonzero(masked):
            colour = LINES[0] if right is None else LINES[2] if right[frame] else LINES[1]
            left, width = frame * duration / len(masked), duration / len(masked)
            axes.axvspan(left, left + width, ymin=0, ymax=0.08, color=colour, linewidth=0)
            axes.axvspan(left, left + width, ymin=0.08, color="white", alpha=0.25, linewidth=0)
    for seconds, symbol in symbols:
        axes.text(seconds, height * 1.02, symbol, color=INK, ha="center", va="bottom", fontsize=9, parse_math=False)
    axes.set(xlabel="seconds", xlim=(0, duration), ylim=(0, height))
    axes.set_yticks([])
    axes.grid(visible=False)
    return _svg(figure, label)


def _dashes(number: int) -> tuple[float, ...]:
    """Of the curve of that number; () is solid."""
    return DASHES[number // len(LINES) % len(DASHES)]


def _figure(width: float, height: float) -> tuple[Figure, matplotlib.axes.Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The drawing as an <svg> element that takes its colours and font from the page."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Names like axes_1 occur in every drawing; only those that are referred to have to stay.
    text = re.sub(r'(<g) id="[a-z0-9]+(?:_\d+)+"', r"\1", text)
    text = re.sub(r"font: [\d.]+px '[^\"]*?(?=[;\"])", "font: inherit", text)
    text = re.sub(r"(font(?:-size)?: ?)(?:[\d.]+px )?'?[^;\"]*?sans-serif", r"\1inherit", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="([^"]*)"', text)[1]
    opening = f'<svg viewBox="{view}" role="img" aria-label="{_escape(label)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)  # a label's backslashes stay as they are


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
