"""Charts of the Run view: smoothing, what x counts, several runs in one chart, zoom; expected numbers by hand."""

import html
import json
import re
import time

import pytest

pytest.importorskip("gradio")

from lite_c2f.ui.run_charts import charts
from lite_c2f.ui.run_choices import Choices, known_choices
from lite_c2f.ui.runs import follow
from lite_c2f.ui.runs.axes import ChartView, last_part, positions, smoothed


def state(tmp_path, name="a", **series):
    return follow(tmp_path / name)._replace(name=name, series=series)


def lines(markup, title):
    """The lines of a chart as charts.js gets them: [name, x, y]."""
    attribute = re.search(rf'aria-label="{title},[^>]*data-lines="([^"]*)"', markup)
    return json.loads(html.unescape(attribute[1]))


def test_smoothing_is_a_centred_mean_that_shrinks_toward_the_ends():
    points = [(1, 10.0), (2, 0.0), (5, 20.0), (6, 30.0), (7, 0.0), (9, 60.0)]
    # 10 | (10 + 0 + 20) / 3 | (10 + 0 + 20 + 30 + 0) / 5 | (0 + 20 + 30 + 0 + 60) / 5 | (30 + 0 + 60) / 3 | 60
    assert smoothed(points, 5) == [(1, 10.0), (2, 10.0), (5, 12.0), (6, 22.0), (7, 30.0), (9, 60.0)]
    assert smoothed(points, 1) == points and smoothed([], 15) == []


CURVES = {"coarse": {"seconds": [(1, 30.0), (2, 60.0), (3, 90.0)], "tokens_per_s": [(1, 10.0), (2, 5.0), (3, 2.0)]}}


def test_x_is_the_sum_of_minutes_or_tokens_up_to_the_end_of_an_update():
    assert positions(CURVES, "minutes") == {0: 0.0, 1: 0.5, 2: 1.5, 3: 3.0}
    assert positions(CURVES, "tokens") == {0: 0.0, 1: 300.0, 2: 600.0, 3: 780.0}
    assert positions(CURVES, "updates") is None


def test_x_stays_updates_where_an_update_has_no_time():
    assert positions({"coarse": {**CURVES["coarse"], "kl": [(1, 0.1), (4, 0.2)]}}, "minutes") is None
    assert positions({"reward": {"loss": [(1, 0.5)]}}, "minutes") is None


def test_the_last_part_is_of_the_axis_that_all_lines_share():
    assert last_part([[(0, 1.0), (79, 2.0), (80, 3.0), (100, 4.0)], [(50, 5.0)]], 0.2) == [[(80, 3.0), (100, 4.0)], []]


def test_a_chart_by_minutes_smoothed_and_its_last_part(tmp_path):
    curves = CURVES["coarse"] | {"reward": [(1, 0.0), (2, 3.0), (3, 9.0)], "limit": [(1, 8.0), (2, 8.0), (3, 32.0)]}
    markup = charts(
        [state(tmp_path, coarse=curves, held_out={"score": [(0, 1.0), (2, 2.0)]}, reward={"loss": [(1, 0.5)]})],
        ChartView("minutes", window=3, part=0.9),
    )
    assert lines(markup, "Reward") == [["", [1.5, 3.0], [4.0, 9.0]]]  # from 3 - 0.9 * 2.5 = 0.75 on
    assert lines(markup, "Length")[0] == ["limit", [1.5, 3.0], [8.0, 32.0]]  # a setting has no mean
    assert lines(markup, "score") == [["", [1.5], [2.0]]]  # of 0 to 1.5 from 0.15 on
    assert "Coarse Actor <span>by minute</span>" in markup and "Reward model <span>by step</span>" in markup


def test_several_runs_are_lines_that_differ_without_their_colours(tmp_path):
    runs = [
        state(tmp_path, "one", coarse={"limit": [(1, 8.0)], "tokens": [(1, 4.0)], "reward": [(1, 1.0)]}),
        state(tmp_path, "two", coarse={"limit": [(1, 9.0)], "tokens": [(1, 5.0)]}),
        state(tmp_path, "<b>", coarse={"tokens": [(1, 6.0), (2, 7.0)], "reward": [(1, 3.0)]}),
    ]
    markup = charts(runs)
    assert lines(markup, "Length") == [["one", [1.0], [4.0]], ["two", [1.0], [5.0]], ["<b>", [1.0, 2.0], [6.0, 7.0]]]
    assert [line[0] for line in lines(markup, "Reward")] == ["one", "<b>"]
    third = re.search(r'<polyline[^>]*stroke="var\(--line-3\)"[^>]*stroke-dasharray="([^"]*)"', markup)[1]
    second = re.search(r'<polyline[^>]*stroke="var\(--line-2\)"[^>]*stroke-dasharray="([^"]*)"', markup)[1]
    assert third and second and third != second
    assert "<b>" not in re.sub(r"<figcaption><b>", "", markup)
    # one run without times: all of them by update
    timed = state(tmp_path, "timed", **{"coarse": CURVES["coarse"] | {"tokens": [(3, 1.0)]}})
    assert lines(charts([timed, runs[1]], ChartView("minutes")), "Length")[0] == ["timed", [3.0], [1.0]]


def test_a_run_without_a_point_in_the_part_that_is_shown_is_named(tmp_path):
    slow, fast = (
        state(tmp_path, name, coarse={"seconds": [(1, last), (2, last)], "reward": [(1, 0.0), (2, 1.0)]})
        for name, last in (("slow", 90.0), ("<fast>", 30.0))
    )
    last_fifth = ChartView("minutes", part=0.2)
    assert "part that is shown: &lt;fast&gt;</p>" in charts([slow, fast], last_fifth)
    for runs, view in (([slow, fast], ChartView("minutes")), ([slow], last_fifth), ([fast, slow], ChartView(part=0.2))):
        assert "part that is shown" not in charts(runs, view)


def test_what_a_page_sends_is_known_or_the_default():
    assert known_choices(["a", 3, "a", "b"], "tokens", "5 updates", "its last half") == Choices(
        ("a", "b"), ChartView("tokens", 5, 0.5)
    )
    for wrong in (None, "x", [["minutes"]], {"a": 1}, 7):
        assert known_choices(wrong, wrong, wrong, wrong) == Choices()


def test_charts_of_ten_thousand_updates_are_drawn_quickly_from_few_points(tmp_path):
    series = {name: [(step, step % 7) for step in range(10_000)] for name in ("reward", "kl", "tokens", "entropy")}
    began = time.process_time()
    markup = charts([state(tmp_path, coarse=series)], ChartView(window=15))
    assert time.process_time() - began < 1.0
    assert len(lines(markup, "Reward")[0][1]) <= 400
