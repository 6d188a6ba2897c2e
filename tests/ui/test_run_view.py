"""The Run view: charts of any numbers, texts that cannot become markup, what a page is sent and what it may ask for."""

import gc
import html
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lite_c2f.errors import RunError
from lite_c2f.runs.published import FINISHED
from lite_c2f.ui import plots, run_charts, run_html, run_view
from lite_c2f.ui.run_choices import known_choices
from lite_c2f.ui.runs import Sample, follow

# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>${alert(3)}{{value}}\'&amp;'


@pytest.mark.parametrize("points", [[], [(1, math.nan)], [(1, math.inf), (2, -math.inf)], [(1, 1e308)]])
def test_nothing_to_draw_is_no_chart(points):
    assert plots.chart("KL", "nats", {"kl": points}, "update") == ""


def test_a_chart_names_its_newest_value():
    markup = plots.chart("At the limit", "share", {"share": [(1, 0.0), (2, 0.5), (3, 1.0)]}, "update")
    assert 'aria-label="At the limit, share: 1 at update 3"' in markup
    ElementTree.fromstring(markup)  # well-formed


def test_two_curves_have_a_legend():
    svg = plots.chart("Length", "tokens", {"limit": [(1, 16), (2, 24)], "mean": [(1, 12.5)]}, "update")
    assert svg.count("<polyline") == 2
    assert "limit 24" in svg and "mean 12.5" in svg


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (61, "1 min 1 s"), (3725, "1 h 2 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds, text):
    assert run_html.duration(seconds) == text


def visible(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_texts_of_files_are_escaped(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.txt").write_text(f"2026-01-01 10:00:00,000 ERROR lite_c2f.run: {EVIL}\n")
    sample = Sample(1, 8, f"Human: {EVIL}", f"{EVIL}\n  indented", EVIL, 3, math.nan)
    state = follow(run)._replace(working=EVIL, samples=(sample,))
    for markup in (
        run_html.header(state),
        run_html.log_lines(state),
        run_html.samples(state.samples),
        plots.chart(EVIL, EVIL, {EVIL: [(1, 1.0)], "b": [(1, 1.0)]}, EVIL),
    ):
        assert "<img" not in markup and "<script" not in markup and 'onerror="' not in markup
        assert EVIL in visible(markup)
    assert "  indented" in run_html.samples(state.samples) and "reward none" in run_html.samples(state.samples)


def test_the_log_is_searched_and_all_of_it_can_be_reached(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    lines = [
        f"line {number} {'WARNING' if number % 100 == 0 else 'INFO'} https://me:pw@host/x" for number in range(450)
    ]
    (run / "log.txt").write_text("\n".join(lines) + "\n")
    short = run_view._content(tmp_path, "run", {})["log"]
    assert "The last 200 of 450 lines" in short
    assert re.findall(r"line (\d+) ", short) == [str(number) for number in range(250, 450)]  # newest last
    whole = run_view._content(tmp_path, "run", {}, known_choices(whole_log=True))["log"]
    assert len(re.findall(r"line \d+ ", whole)) == 450 and "pw" not in whole
    found = run_view._content(tmp_path, "run", {}, known_choices(search=" warning"))["log"]
    assert re.findall(r"line (\d+) ", found) == ["0", "100", "200", "300", "400"] and "5 of 450 lines" in found
    for secret_or_evil in ("pw@", EVIL):  # what is not shown is not found either
        now = run_view._content(tmp_path, "run", {}, known_choices(search=secret_or_evil))["log"]
        assert "0 of 450 lines" in now and "no such line" in now and "<script" not in now
    with (run / "log.txt").open("a") as file:
        file.write("line 450 INFO\n")
    assert "line 450 INFO" in run_view._content(tmp_path, "run", {})["log"]


def test_samples_are_in_the_order_of_updates():
    found = [Sample(step, 8, "q", f"answer {step}", "limit", 3, step / 10) for step in (20, 1, 10)]
    markup = run_html.samples(found)
    assert re.findall(r"answer (\d+)", markup) == ["1", "10", "20"]
    assert "update 10, reward +1.00, 3 tokens, cut at the limit" in markup
    assert run_html.samples(()) == ""


def test_sources_of_reward_and_held_out_figures_have_charts_of_their_own():
    coarse = run_charts.source_curves("coarse", dict.fromkeys(["reward", "reward/style", "multiplier/style", "kl"], ()))
    assert coarse == [
        ("coarse", "Score of style", "mean, before scaling", {"mean": "reward/style"}),
        ("coarse", "Multiplier of style", "weight in the reward", {"mean": "multiplier/style"}),
    ]
    held_out = run_charts.source_curves("held_out", {"reward": (), "style": ()})
    assert [(title, curves) for _, title, _, curves in held_out] == [
        ("reward", {"mean": "reward"}),
        ("style", {"mean": "style"}),
    ]


def test_a_page_is_sent_what_has_changed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"stage": "coarse", "step": 1, "reward": 0.5}\n')
    first = run_view._content(tmp_path, "run", {})
    again = run_view._content(tmp_path, "run", first)
    assert again == first and again["charts"] is first["charts"]  # not made again
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "coarse", "step": 2, "reward": 0.75}\n')
    third = run_view._content(tmp_path, "run", again)
    assert third["charts"] != first["charts"] and third["log"] == first["log"]


def test_an_open_page_is_sent_the_comparison_when_its_run_finishes(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"stage": "coarse", "step": 1, "reward": 0.5}\n')
    before = run_view._content(tmp_path, "run", {})
    assert before["compared"] == ""
    for file in FINISHED.values():
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("{}")
    (run / "summary.json").write_text('{"actors": {"fine": {"reward": 1.25}}}')
    after = run_view._content(tmp_path, "run", before)  # curves and samples are as they were
    assert "+1.25" in after["compared"] and after["charts"] is before["charts"]


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", "missing", EVIL])
def test_only_runs_of_the_list_are_opened(tmp_path, name):
    for folder in (tmp_path / "outside", tmp_path / "runs" / "there"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}")
        (folder / "log.txt").write_text("secret\n")
    now = run_view._content(tmp_path / "runs", name, {})
    assert "There is no run" in now["header"] and "secret" not in str(now) and "<img" not in now["header"]
    assert now["enabled"] == (False, False)
    assert "secret" in run_view._content(tmp_path / "runs", "there", {})["log"]


def test_pages_of_other_sites_start_nothing():
    for site in (None, "same-origin", "none"):
        run_view.check_origin(site)
    for site in ("cross-site", "same-site", "x"):
        with pytest.raises(RunError, match="another site"):
            run_view.check_origin(site)


def test_free_names(tmp_path):
    (tmp_path / "toy-1").mkdir()
    (tmp_path / "toy-1" / "run.json").write_text("{}")
    assert run_view.free_name(tmp_path, "toy") == "toy-2"
    assert run_view.free_name(tmp_path, "Mistral 7B/24.yaml") == "mistral-7b-24.yaml-1"
    assert run_view.free_name(tmp_path, None) == "run-1"


@pytest.mark.parametrize("may_train", [True, False])
def test_without_leave_nothing_that_starts_is_there(tmp_path, may_train):
    with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.Tab("Run"):
        run_view.run_view(tmp_path, "toy", {"toy": tmp_path / "toy.yaml"}, may_train)
    buttons = [block.value for block in page.blocks.values() if isinstance(block, gr.Button)]
    assert ("Start a new run" in buttons) is may_train
    calls = {getattr(function.fn, "__name__", "") for function in page.fns.values()}
    starters = {"start_run", "stop_run", "resume_run"}
    assert starters <= calls if may_train else calls.isdisjoint(starters)
    (tab,) = (function for function in page.fns.values() if function.name == "only_here")
    assert tab.trigger_mode == "multiple"  # also where another tab was opened a moment ago
    shown = [str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML)]
    assert any(run_view.NO_TRAINING in text for text in shown) is not may_train
    del page, buttons, calls, tab
    gc.collect()  # while the warnings about what Gradio leaves are filtered


@pytest.mark.filterwarnings("ignore:The value passed into gr.Dropdown")  # an empty choice of several
def test_a_list_of_runs_that_has_grown_keeps_what_is_chosen(tmp_path):
    """What the timer read may be older than a choice made since."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.Tab("Run"):
        run_view.run_view(tmp_path, "one", {}, False)
    refresh = next(function.fn for function in page.fns.values() if function.name == "refresh")
    listed, *_ = refresh("one", {})
    assert "value" not in listed._constructor_args[0] and set(listed._constructor_args[0]["choices"]) == {"one", "two"}
    listed, *_ = refresh(None, {})
    assert listed._constructor_args[0]["value"] in ("one", "two")
    del page, refresh, listed
    gc.collect()
