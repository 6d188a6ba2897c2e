"""The report: blocks to HTML and Markdown, repeated spans, and the page of a real run in a real browser."""

import re
import shutil
from pathlib import Path

import pytest

from lite_c2f.errors import RunError
from lite_c2f.evaluation.overlap import marked_pieces, repeated_spans
from lite_c2f.evaluation.page import AnswerBlock, Chart, Code, Heading, Table, Text, as_html, as_markdown, figures_table
from lite_c2f.evaluation.report import flattened, settings_table, write_comparison
from lite_c2f.evaluation.sections import by_source, held_out, sources
from lite_c2f.storage.files import write_json, write_jsonl

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a b c d e", []),
        ("a b c d a b c", []),  # three words are no 4-gram
        ("a b c d a b c d", ["a b c d"]),
        ("a b c d e x a b c d e", ["a b c d e"]),
        ("x x x x x x", ["x x x x x"]),  # from the second word on, an earlier x x x x is there
        ("a b\nc  d, a b c d, z", ["a b c d,"]),
        ("", []),
    ],
)
def test_repeated(text, found):
    assert [text[start:end].split() for start, end in repeated_spans(text)] == [part.split() for part in found]


def test_pieces_are_the_text_again():
    text = f"one two three four {EVIL} one two three four & more"
    assert marked_pieces(text) == [
        (f"one two three four {EVIL} ", False),
        ("one two three four", True),
        (" & more", False),
    ]
    page = as_html("t", [AnswerBlock("p", [("fine", "", text)])])
    assert "<mark>one two three four</mark> &amp; more</p>" in page and page.count("<mark>") == 1
    assert "<script" not in page and "<img" not in page


def test_cells_take_figures_alone():
    made = figures_table({"a": {"x": 1.0, "long_name": 2.5}, "b": {"x": -0.25}}, "actor", bold="a")
    assert made == Table("actor", ["x", "long name"], {"a": ["1.000", "2.500"], "b": ["-0.250", ""]}, "a")
    assert figures_table({"a": {"eos": 1.0, "eos_se": 0.5}}, "actor").meanings == {
        "ended": "share of responses that ended by themselves: by EOS, or on a base model by the next turn's marker",
        "eos se": "standard error of ended",
    }
    with pytest.raises(ValueError):
        figures_table({"a": {"x": "word"}}, "actor")
    with pytest.raises(ValueError):
        figures_table({}, "actor")


def test_a_wide_table_is_turned_round_and_says_what_each_row_is():
    row = {f"distinct_{n}": n / 4 for n in range(1, 9)} | {"kl": 1.0}
    made = figures_table({"coarse": row, "fine": {"kl": 2.0}}, "actor", bold="fine")
    assert made.first == "figure, by actor" and made.columns == ["coarse", "fine"] and len(made.rows) == 9
    assert made.rows["distinct 2"] == ["0.500", ""] and made.rows["KL"] == ["1.000", "2.000"]
    page = as_html("t", [made])
    kl = "from the instruct model without residue, nats per token"
    assert f'<th scope="row">KL</th><td>1.000</td><td class=bold>2.000</td><td class="meaning">{kl}</td>' in page
    assert "What the columns mean" not in page
    assert f"- *KL*: {kl}" in as_markdown("t", [made])
    eight = figures_table({"fine": {name: value for name, value in row.items() if name != "kl"}}, "actor")
    assert eight.first == "actor" and "<dt>distinct 8</dt>" in as_html("t", [eight])


def test_contents_lead_to_the_parts():
    page = as_html("run-a", [Heading("One"), Text("x"), Heading("Two <b>")])
    assert '<a href="#part-1">One</a><a href="#part-2">Two &lt;b&gt;</a>' in page
    assert '<h2 id="part-1">One</h2>' in page and '<h2 id="part-2">Two &lt;b&gt;</h2>' in page
    assert "<nav" not in as_html("run-a", [Heading("One")])
    assert "<title>run-a: lite_c2f report</title>" in page


BLOCKS = [
    Heading("Part <b>"),
    Text(f"some *text* {EVIL}"),
    Table("who", ["x|y"], {"a<": ["1"], "b": ["2"]}, "b"),
    Chart("<svg viewBox='0 0 1 1'></svg>", 'caption "quoted"'),
    AnswerBlock(EVIL, [("fine", "+1.00", f"a b c d a b c d {EVIL}")]),
    Code("file", "key: <value>"),
]


def test_nothing_of_a_model_becomes_markup():
    page = as_html("a <title>", BLOCKS)
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") == 3 and "<title>a &lt;title&gt;: lite_c2f report</title>" in page
    assert (
        "<figcaption>caption &#34;quoted&#34;</figcaption>" in page and '<tr class=bold><th scope="row">b</th>' in page
    )
    assert not re.search(r"(src|href)=[\"']?https?:", page)


def test_markdown_says_the_same():
    text = as_markdown("a <title>", BLOCKS)
    assert text.startswith("# a \\<title\\>: lite\\_c2f report\n\n## Part") and "| who | x\\|y |" in text
    assert "- **fine** (+1.00): a b c d a b c d \\<script\\>" in text
    assert "    key: <value>" in text and "svg" not in text


def test_settings_are_flattened():
    assert flattened({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_runs_that_are_not_compared_yet_and_a_damaged_one(tmp_path):
    line = {"stage": "coarse", "step": 1, "reward": 0.5, "limit": 16}
    for name in ("a", "b"):
        write_json(tmp_path / name / "summary.json", {"schema": 1})
        write_jsonl(tmp_path / name / "metrics.jsonl", [line])
        (tmp_path / name / "config.yaml").write_text(f"run: {{seed: {ord(name)}}}")
    runs = [tmp_path / "a", tmp_path / "b"]
    write_comparison(runs, tmp_path / "both.html")
    text = (tmp_path / "both.md").read_text()
    assert text.count("have not been compared yet") == 2 and "| run.seed | 97 | 98 |" in text
    write_jsonl(tmp_path / "b" / "metrics.jsonl", [{"stage": "coarse"}])
    with pytest.raises(RunError, match=r"b/metrics\.jsonl' has another form"):
        write_comparison(runs, tmp_path / "both.html")


def test_settings_that_differ_and_a_configuration_that_is_empty(tmp_path):
    for name, text in (("a", "lora: {r: 4, alpha: 8}"), ("b", "lora: {r: 8, alpha: 8}"), ("c", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    assert settings_table({name: tmp_path / name for name in "ab"}).rows == {"lora.r": ["4", "8"]}
    with pytest.raises(RunError, match=r"c/config\.yaml"):
        settings_table({name: tmp_path / name for name in "abc"})


@pytest.mark.slow
def test_the_report_of_a_run_opens_in_a_browser(in_process, toy_run, tmp_path, browser):
    run = Path(shutil.copytree(toy_run, tmp_path / "run"))
    other = Path(shutil.copytree(toy_run, tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("updates: 40", "updates: 41"))
    assert in_process("report", run).returncode == 0
    both = tmp_path / "both.html"
    assert in_process("report", run, other, "--out", both).returncode == 0
    page = run / "report" / "index.html"
    assert page.stat().st_size < 3_000_000 and both.stat().st_size < 3_000_000
    for file, headings in (
        (page, ["Comparison on held-out prompts", "Coarse Actor", "Ratio of the residue", "Answers", "Configuration"]),
        (both, ["Coarse Actor", "Fine Actor", "Learning", "Settings that differ"]),
    ):
        colors = {}
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
            said, asked = [], []
            view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            view.on("console", lambda message, said=said: said.append(message.text))
            view.on("pageerror", lambda error, said=said: said.append(str(error)))
            view.on("request", lambda request, asked=asked: asked.append(request.url))
            view.goto(file.as_uri())
            assert said == [] and asked == [file.as_uri()]
            assert set(headings) <= set(view.locator("h2").all_inner_texts())
            assert view.evaluate("document.documentElement.scrollWidth") <= width  # wide things scroll by themselves
            if width > 390:
                cut = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth).length"
                assert view.evaluate(cut) == 0
            boxes = view.locator("svg").all()
            assert boxes and all(box.bounding_box()["height"] > 50 for box in boxes)
            colors[scheme] = view.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            picture = view.screenshot(full_page=True)
            assert len(picture) > 20_000
            view.close()
        assert colors["light"] != colors["dark"]  # the charts' ink is the page's
    text = (run / "report" / "report.md").read_text()
    assert "| fine |" in text and "# run" in text
    assert "coarse.updates" in (tmp_path / "both.md").read_text()


def figures(reward, prompts):
    return {"reward": reward, "tokens": 4.0, "repeated_4gram": 0.0, "eos": 1.0, "prompts": prompts}


def test_figures_of_each_source_where_there_are_several(tmp_path):
    assert by_source(tmp_path) == []
    each = {name: {"base": figures(-0.5, 3), "fine": figures(reward, 3)} for name, reward in SOURCES.items()}
    write_json(tmp_path / "evaluation" / "metrics.json", {"by_source": each})
    pairs = {"pairs_by_source": {"/data/harmless.jsonl": 20, "/data/helpful.jsonl": 21}}
    right = {"accuracy_by_source": {"/data/harmless.jsonl": 0.75, "/data/helpful.jsonl": 0.5}}
    write_json(tmp_path / "reward" / "metrics.json", {"accuracy": 0.6, **pairs, **right})
    heading, actors, ranked = by_source(tmp_path)
    assert heading == Heading("By data source") and actors.columns == ["reward", "tokens", "repeated 4-grams", "ended"]
    assert {name: row[0] for name, row in actors.rows.items()} == {
        "harmless.jsonl (3 prompts), base": "-0.500",
        "harmless.jsonl (3 prompts), fine": "1.250",
        "helpful.jsonl (3 prompts), base": "-0.500",
        "helpful.jsonl (3 prompts), fine": "0.250",
    }
    assert ranked.rows == {"harmless.jsonl": ["20", "0", "0.750"], "helpful.jsonl": ["21", "0", "0.500"]}


SOURCES = {"/data/harmless.jsonl": 1.25, "/data/helpful.jsonl": 0.25}


@pytest.mark.parametrize("saved", [{}, {"pairs_by_source": {"toy": 9}, "accuracy_by_source": {"toy": 0.9}}])
def test_one_source_and_runs_of_earlier_versions_have_no_such_part(tmp_path, saved):
    write_json(tmp_path / "evaluation" / "metrics.json", {"actors": {}, "wins": {}})
    write_json(tmp_path / "reward" / "metrics.json", {"accuracy": 0.9, **saved})
    assert by_source(tmp_path) == []


def test_sources_of_reward_and_held_out_figures_have_a_row_each(tmp_path):
    """`polite` has a bound and applies to half of the responses; `right` gave no score at all."""
    update = {"reward/style": 0.5, "reward/polite": -1.0, "applies/polite": 0.5, "applies/right": 0.0}
    rows = [
        {**update, "multiplier/polite": 0.1, "function_seconds": 1.0, "seconds": 10.0},
        {**update, "reward/style": 0.75, "multiplier/polite": 0.2, "function_seconds": 2.0, "seconds": 10.0},
    ]
    table, text = sources(rows)
    assert table.columns == ["mean score, first update", "last update", "multiplier", "has a score"]
    assert table.rows == {
        "style": ["0.500", "0.750", "", "100%"],
        "polite": ["-1.000", "-1.000", "0.200", "50%"],
        "right": ["", "", "", "0%"],
    }
    assert "Reward functions took 15.0% of the time of all updates" in text.text
    assert sources([{"reward": 1.0, "seconds": 1.0}]) == []
    held = [{"stage": "held_out", "step": step, "reward": step / 4, "style": 0.5} for step in (0, 2)]
    write_jsonl(tmp_path / "metrics.jsonl", held)
    _, table, _ = held_out(tmp_path)
    assert table.rows == {"after update 0": ["0.000", "0.500"], "after update 2": ["0.500", "0.500"]}
