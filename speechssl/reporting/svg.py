"""Small charts as SVG, which every browser shows, without a plotting library: lines and points on two axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 460, 70, 180, 40, 60
# Told apart by people who see no red or green (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
# Corners of the points' shapes, by which series of the same colour are told apart; the first is a circle.
SHAPES = (
    (),
    ((-1.3, 1.1), (1.3, 1.1), (0, -1.3)),
    ((-1.4, 0), (0, -1.4), (1.4, 0), (0, 1.4)),
    ((-1.3, -1.1), (1.3, -1.1), (0, 1.3)),
)

Points = Sequence[tuple[float, float]]
Ticks = Sequence[tuple[float, str]]


def chart(
    path: Path,
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Ticks = (),
    y_ticks: Ticks = (),
    lines: bool = True,
) -> None:
    """Write a chart.

    Args:
        path: the file, .svg.
        series: name -> points (x, y), each a line with a legend; with `lines=False` points only. Once every colour
            is taken, they begin anew with another shape.
        title, x_label, y_label: what it shows.
        x_ticks, y_ticks: (place, text); the range holds them and every point.
    """
    points = [point for one in series.values() for point in one]
    x_low, x_high = _range([x for x, _ in points] + [x for x, _ in x_ticks])
    y_low, y_high = _range([y for _, y in points] + [y for y, _ in y_ticks])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)
        return across, bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, TOP - 16, title, size=14),
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="black" fill="none"/>',
        _text((LEFT + right) / 2, HEIGHT - 16, x_label, anchor="middle"),
        f'<g transform="rotate(-90 18 {(TOP + bottom) / 2})">'
        f"{_text(18, (TOP + bottom) / 2, y_label, anchor='middle')}</g>",
    ]
    for x, text in x_ticks:
        across, _ = place(x, y_low)
        parts.append(f'<path d="M{across:.1f} {bottom}v5" stroke="black"/>')
        parts.append(_text(across, bottom + 20, text, anchor="middle"))
    for y, text in y_ticks:
        _, down = place(x_low, y)
        parts.append(f'<path d="M{LEFT} {down:.1f}h{right - LEFT}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, down + 4, text, anchor="end"))
    for number, (name, one) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(x, y) for x, y in one]
        if lines:
            path_d = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline points="{path_d}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if not lines or len(placed) <= 50:
            parts += [_marker(x, y, number, size=3) for x, y in placed]
        if number < (bottom - TOP) / 18:
            down = TOP + 18 * number + 6
            swatch = f'<rect x="{right + 12}" y="{down - 8}" width="10" height="10" fill="{colour}"/>'
            parts.append(swatch if number < len(COLOURS) else _marker(right + 17, down - 3, number, size=5))
            parts.append(_text(right + 28, down + 1, name))
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _marker(x: float, y: float, number: int, *, size: float) -> str:
    """A point of the series of that number."""
    colour, corners = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]
    if not corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'
    points = " ".join(f"{x + size * across:.1f},{y + size * down:.1f}" for across, down in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
