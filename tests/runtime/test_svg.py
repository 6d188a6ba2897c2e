"""The SVG maker: places by hand, whatever the numbers are, and nothing of a name becomes markup."""

import math
import re
from xml.etree import ElementTree

import pytest

from lite_c2f.runtime.svg import (
    BOTTOM,
    LABEL,
    LEFT,
    RIGHT,
    TOP,
    Panel,
    Series,
    document,
    figure,
    histogram,
    number,
    ticks,
)

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def points_of(svg):
    """Points of each polyline."""
    lines = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def texts_of(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize(
    "points",
    [
        [(1, 0.5)],
        [(1, 0.0)],
        [(1, 3.0), (2, 3.0), (3, 3.0)],
        [(1, -1e-12), (2, 1e-12)],
        [(1, 1e200), (2, -1e200)],
        [(1, 0.1), (2, math.nan), (3, 0.3)],
        [(9_999, 123_456.0), (10_000, 123_457.0)],
    ],
)
def test_every_finite_point_is_inside_the_plot(points):
    svg = figure([Panel([Series("kl", points)])])
    ElementTree.fromstring(svg)  # well-formed
    (drawn,) = points_of(svg)
    assert len(drawn) == sum(math.isfinite(y) for _, y in points)
    for x, y in drawn:
        assert LEFT <= x <= 320 - RIGHT and TOP <= y <= 150 - BOTTOM
    assert "nan" not in svg and "inf" not in svg


def test_a_line_by_hand():
    """0 to 1 over updates 1 to 3: the lowest at the bottom left, 0.5 in the middle, the highest at the top right."""
    svg = figure([Panel([Series("share", [(1, 0.0), (2, 0.5), (3, 1.0)])], whole=True)], label="a share")
    assert points_of(svg) == [[(44, 128), (177, 68), (310, 8)]]
    assert texts_of(svg) == ["0", "0.5", "1", "1", "2", "3"]
    assert 'viewBox="0 0 320 150"' in svg and 'aria-label="a share"' in svg


def test_labels_take_their_room():
    """Title above, x label below, y label to the left: the corners of the plot move by LABEL each."""
    svg = figure([Panel([Series("a", [(0, 0.0), (1, 1.0)])], "title", "x", "y")])
    assert points_of(svg) == [[(44 + LABEL, 128 - LABEL), (310, 8 + LABEL)]]
    assert texts_of(svg)[:3] == ["title", "x", "y"]


def test_a_long_number_beside_the_axis_has_room():
    """-0.0015 has seven characters of 6.4 units and 5 units to the axis, 50 in all, where shorter ones have 44."""
    svg = figure([Panel([Series("a", [(0, -0.0011), (1, -0.0004)])])])
    assert points_of(svg) == [[(50, 96), (310, 40)]]
    assert texts_of(svg)[:4] == ["-0.0015", "-0.001", "-0.0005", "0"]


def test_panels_stand_in_rows():
    panel = Panel([Series("a", [(0, 0.0), (1, 1.0)])])
    svg = figure([panel] * 3, columns=2, width=100, height=80)
    assert 'viewBox="0 0 200 160"' in svg  # no legend for one name
    assert re.findall(r"translate\(([^)]*)\)", svg) == ["0 0", "100 0", "0 80"]


def test_error_bars_and_bands_reach_as_far_as_the_errors():
    """0.5 ± 0.5 is the whole height, from 8 to 128; 0.5 ± 0.25 is half of it."""
    points, errors = [(0, 0.5), (1, 0.5)], [0.5, 0.25]
    bars = figure([Panel([Series("a", points, errors)])])
    assert re.findall(r'<line x1="[\d.]*" x2="[\d.]*" y1="([\d.]*)" y2="([\d.]*)"', bars) == [
        ("128.0", "8.0"),
        ("98.0", "38.0"),
    ]
    band = figure([Panel([Series("a", points, errors, band=True)])])
    assert '<polygon points="44.0,8.0 310.0,38.0 310.0,98.0 44.0,128.0"' in band
    without = figure([Panel([Series("a", [(0, 0.5), (1, math.nan), (2, 0.5)], [0.5, 0.1, math.nan])])])
    assert points_of(without) == [[(44, 68), (310, 68)]] and "nan" not in without


def test_a_marked_place_is_within_the_axes():
    svg = figure([Panel([Series("a", [(0, 0.0), (1, 1.0)])], marked=2.0)])
    assert 'x1="310.0" x2="310.0" y1="8" y2="128"' in svg and points_of(svg) == [[(44, 128), (177, 8)]]


def test_each_name_is_in_the_legend_once_and_rows_are_as_long_as_the_chart():
    panels = [Panel([Series(name, [(0, 0.0)]) for name in ("base", "fine")])] * 2
    svg = figure(panels, columns=2)
    assert texts_of(svg)[-2:] == ["base", "fine"] and svg.count(">fine<") == 1
    assert figure(panels, columns=2, legend=False).count("fine") == 0
    many = figure([Panel([Series(f"a rather long name {index}", [(0, 0.0)]) for index in range(4)])])
    places = [float(x) for x in re.findall(r'<text x="([\d.]*)" [^>]*>a rather', many)]
    rows = re.findall(r'<text [^>]*y="([\d.]*)"[^>]*>a rather', many)
    assert max(places) < 320 and len(set(rows)) == 4


def test_no_values_are_named():
    assert "no values" in texts_of(figure([Panel([Series("a", [(1, math.nan)])], "title")]))


def test_names_are_escaped():
    svg = figure([Panel([Series(EVIL, [(0, 1.0)]), Series("b", [(0, 1.0)])], EVIL, EVIL, EVIL)], label=EVIL)
    ElementTree.fromstring(svg)
    assert "<img" not in svg and "<script" not in svg


def test_a_document_is_readable_in_light_and_dark():
    text = document(figure([Panel([Series("a", [(0, 1.0)])])]))
    assert text.startswith("<?xml") and "prefers-color-scheme:dark" in text
    ElementTree.fromstring(text.encode())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (-0.7, 1.1, [-1, 0, 1, 2]), (16, 72, [0, 50, 100]), (5, 5, [4.5, 5, 5.5])],
)
def test_ticks_reach_over_the_range(low, high, expected):
    assert ticks(low, high, 3) == expected


def test_ticks_within_a_range():
    assert ticks(1, 3, 5, whole=True) == [1, 2, 3]
    assert ticks(1, 40, 5, whole=True) == [10, 20, 30, 40]
    assert ticks(0.1, 1.5, 6, inside=True) == [0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (1234.5, "1234"), (54_321, "54.3k"), (2e6, "2M"), (-0.00002, "-2e-05"), (2e15, "2.0e+15")],
)
def test_numbers_in_few_characters(value, text):
    assert number(value) == text


def test_a_histogram_counts_every_value():
    """0, 0.4 in the first of two bins, 1 (its right end) in the second, whose end 2 belongs to it."""
    assert histogram([0.0, 0.4, 1.0, 2.0], 0.0, 2.0, bins=2) == [(0, 0), (0, 2), (1, 2), (1, 2), (2, 2), (2, 0)]
    assert max(count for _, count in histogram([3.0, 3.0], 3.0, 3.0)) == 2  # of a range without width
