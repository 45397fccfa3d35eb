"""Charts: well-formed, every point inside the frame, names escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from speechssl.reporting.svg import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart

SVG = "{http://www.w3.org/2000/svg}"


def test_points_lie_inside_and_the_extremes_on_the_edge(tmp_path):
    series = {"a<b>": [(0, 1.0), (2, 3.0)], "c": [(1, 2.0)]}
    chart(tmp_path / "x.svg", series, title="t & t", x_label="x", y_label="y", x_ticks=[(4, "four")])
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter(f"{SVG}circle")]
    # x goes to the tick at 4, y from 1 to 3.
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    assert dots == [(LEFT, bottom), ((LEFT + right) / 2, TOP), (LEFT + (right - LEFT) / 4, (TOP + bottom) / 2)]
    assert {"a<b>", "t & t", "four"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_nothing_and_one_value_are_no_error(tmp_path):
    chart(tmp_path / "x.svg", {"a": [(1, 1), (1, 1)], "b": []}, title="", x_label="", y_label="", lines=False)
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag == f"{SVG}svg"


def test_series_of_one_colour_differ_in_shape(tmp_path):
    series = {str(i): [(i, i)] for i in range(2 * len(COLOURS) + 1)}
    chart(tmp_path / "x.svg", series, title="", x_label="", y_label="", lines=False)
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    polygons = [(dot.get("fill"), dot.get("points").split()) for dot in root.iter(f"{SVG}polygon")]
    # A point and its legend each; the first of every colour are circles.
    assert len(list(root.iter(f"{SVG}circle"))) == len(COLOURS)
    assert [fill for fill, _ in polygons[::2]] == [*COLOURS, COLOURS[0]] == [fill for fill, _ in polygons[1::2]]
    corners = [len(points) for _, points in polygons]
    assert corners == [3] * 2 * len(COLOURS) + [4, 4]
