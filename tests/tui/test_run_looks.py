"""Compared runs can be told apart: by colour on every theme's ground, and by marker and letter without colours."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from textual.color import Color, rgb_to_lab
from textual.theme import Theme

from gpuworkbench.tui.themes import THEMES
from gpuworkbench.tui.widgets.run_looks import looks


def luminance(color: Color) -> float:
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color.rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lab(color: Color) -> tuple[float, float, float]:
    """CIE L*a*b*."""
    place = rgb_to_lab(color)
    return place.L, place.a, place.b


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours_stand_out_from_the_ground_and_from_one_another(theme: Theme) -> None:
    ground = luminance(Color.parse(theme.background or "#000000"))
    colors = [Color.parse(look.color) for look in looks(is_dark=theme.dark)]
    for color in colors:
        light, dark = sorted((luminance(color), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color.hex  # WCAG's contrast for text
    for one, other in combinations(colors, 2):
        assert math.dist(lab(one), lab(other)) > 20, (one.hex, other.hex)  # 2.3 is a just noticeable difference


@pytest.mark.parametrize("is_dark", [True, False])
def test_markers_and_letters_differ(is_dark: bool) -> None:
    found = looks(is_dark=is_dark)
    assert len({look.marker for look in found}) == len({look.letter for look in found}) == len(found) == 8
    assert all(len(look.marker) == 1 for look in found)
