"""Pictures of figures: well-formed, with all numbers, told apart without colour, nothing over anything else."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from colora.common.palette import MARKERS
from colora.experiments.report.drawing.draw import draw
from colora.experiments.report.drawing.panel import BETWEEN
from colora.experiments.report.drawing.svg import WIDTH, number, shape, ticks
from colora.experiments.report.plots import Forest, Interval, Lines, Mark, Panel, Strip, Strips
from colora.experiments.report.statistics import Difference


def texts(svg):
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter("text")]


def line(label, *values, style=0, strong=True):
    return Lines(label, style, (8.0, 16.0, 32.0), values, values, values, strong)


def test_an_interval_is_filled_where_it_leaves_zero_out():
    rows = (
        Interval("a", "vs local", Difference(4.0, 1.0, 7.0, 0.01, 3), "one"),
        Interval("b", "vs pooled", Difference(-1.0, -3.0, 2.0, 0.4, 3), "two"),
    )
    drawn = draw(Forest("lead", rows, "rival better", "colora better"))
    root = ElementTree.fromstring(drawn)
    assert [one.get("class") for one in root.iter("path") if "ours" in one.get("class")] == ["ours", "hollow ours"]
    assert texts(drawn)[:3] == ["one", "a vs local", "+4.0 [+1.0, +7.0]"]
    assert {"two", "← rival better", "colora better →", "0"} <= set(texts(drawn))


def test_one_heading_alone_is_left_out():
    rows = (Interval("a", "", Difference(4.0, 1.0, 7.0, 0.01, 3), "one"),)
    assert "one" not in texts(draw(Forest("lead", rows, "l", "r")))


def test_a_strip_names_the_reference_the_rival_and_the_base():
    marks = tuple(
        Mark(name, value, kind)
        for name, value, kind in [("colora", 60, "reference"), ("local", 55, "rival"), ("base", 5, "base"),
                                  ("m1", 40, "other"), ("m2", 41, "variant")]
    )  # fmt: skip
    drawn = draw(Strips("all", (Strip("a", "ROUGE-L", marks, ""),), "colora"))
    assert "● colora 60.0   ■ local 55.0   ◇ base 5.0" in texts(drawn)
    (others,) = [one.get("d") for one in ElementTree.fromstring(drawn).iter("path") if one.get("class") == "others"]
    assert others.count("M") == 2
    long = (
        Mark("a-method-with-a-name", 60, "reference"),
        Mark("another-long-name", 55, "rival"),
        Mark("base", 5, "base"),
    )
    shown = texts(draw(Strips("all", (Strip("a-group-of-tasks-with-a-name", "", long, ""),), "m")))
    assert shown[0].endswith("…")
    assert shown[1].endswith("◇ 5.0")


def test_names_of_lines_stand_apart_in_the_order_of_their_ends():
    lines = tuple(line(f"m{k}", 1.0, 2.0, 50.0 + k / 100, style=k) for k in range(12))
    root = ElementTree.fromstring(draw(Panel("t", "examples", "ROUGE-L", lines, "log2")))
    placed = [(float(one.get("y")), one.text) for one in root.iter("text") if one.text and one.text.startswith("m")]
    heights = [height for height, _ in placed]
    assert [name for _, name in placed] == [f"m{k}" for k in reversed(range(12))]
    assert all(below - above >= BETWEEN - 0.11 for above, below in pairwise(heights))
    assert all(0 < height < 230 for height in heights)


def test_weak_lines_have_no_band_among_many():
    spread = Lines("a", 0, (8.0, 16.0), (1.0, 2.0), (0.5, 1.5), (1.5, 2.5))
    weak = [Lines(f"w{k}", k, (8.0, 16.0), (1.0, 2.0), (0.5, 1.5), (1.5, 2.5), strong=False) for k in range(8)]
    assert draw(Panel("t", "x", "y", (spread, *weak), "log2")).count('class="band"') == 1
    assert draw(Panel("t", "x", "y", (spread, weak[0]), "log2")).count('class="band"') == 2


def test_texts_below_an_axis_do_not_run_into_each_other():
    many = Lines("a", 0, tuple(map(float, range(100, 140))), (1.0,) * 40, (1.0,) * 40, (1.0,) * 40)
    root = ElementTree.fromstring(draw(Panel("t", "x", "y", (many,), "linear")))
    at = [float(one.get("x")) for one in root.iter("text") if one.text and re.fullmatch(r"1\d\d", one.text)]
    assert len(at) > 4
    assert all(right - left > 17 for left, right in pairwise(at))


def test_points_of_bytes_have_bars_and_no_lines():
    points = Lines("fedit", 0, (2e6,), (50.0,), (48.0,), (52.0,))
    drawn = draw(Panel("t", "bytes up and down", "ROUGE-L", (points,), "log10", joined=False))
    assert "2 MB" not in drawn
    assert drawn.count('class="curve"') == 1


@pytest.mark.parametrize("marker", MARKERS)
def test_every_marker_of_the_palette_has_a_shape(marker):
    assert shape([(1.0, 2.0)], marker).startswith("M1 2m")
    assert len({shape([(0, 0)], one) for one in MARKERS}) == len(MARKERS)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-0.01, "0"), (12.34, "12.3"), (5.0, "5"), (-0.44, "-.4"), (-10.06, "-10.1")]
)
def test_coordinates_are_short(value, text):
    assert number(value) == text
    assert float(text) == pytest.approx(value, abs=0.06)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(3, 82, [20, 40, 60, 80]), (-11.5, 13.5, [-10, -5, 0, 5, 10]), (0.2, 0.45, [0.2, 0.25, 0.3, 0.35, 0.4, 0.45]),
     (7, 7, [7])],
)  # fmt: skip
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
    assert WIDTH == 360
