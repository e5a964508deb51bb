"""The picture of intervals: where things stand in it, what is grey, and that text is only text."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from gpuworkbench.state.svg_intervals import IntervalRow, svg_intervals
from gpuworkbench.state.svg_plot import COLORS

GREY = "#777777"


def circles(picture: str) -> list[tuple[float, str]]:
    root = ElementTree.fromstring(picture)
    found = root.iter("{http://www.w3.org/2000/svg}circle")
    return [(float(c.attrib["cx"]), c.attrib["fill"]) for c in found]


def test_means_stand_in_order_and_only_clear_ones_are_coloured() -> None:
    rows = [
        IntervalRow("worse", 0.8, 0.7, 0.9),
        IntervalRow("same", 1.0, 0.9, 1.1),
        IntervalRow("better", 1.2, 1.1, 1.3),
    ]
    found = circles(svg_intervals("speed-up", rows, reference=1.0))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert [color for _, color in found] == [COLORS[1], GREY, COLORS[0]]
    steps = [found[1][0] - found[0][0], found[2][0] - found[1][0]]
    assert math.isclose(steps[0], steps[1], abs_tol=0.2), "the axis is linear"


def test_ends_that_are_infinite_stay_in_the_picture() -> None:
    picture = svg_intervals("t", [IntervalRow("one seed", 1.0, 0.0, math.inf), IntervalRow("b", 1.1, 1.0, 1.2)], 1.0)
    assert all(0 < x < 960 for x, _ in circles(picture))
    assert circles(picture)[0][1] == GREY


def test_nothing_to_draw_and_hostile_names() -> None:
    ElementTree.fromstring(svg_intervals("t", [], 1.0))
    picture = svg_intervals("<script>", [IntervalRow("</text>\x1b[2J<b>", 1.0, 1.0, 1.0, "<=")], 1.0)
    ElementTree.fromstring(picture)
    assert "<script>" not in picture
    assert "\x1b" not in picture
    assert "&lt;=1.000" in picture
