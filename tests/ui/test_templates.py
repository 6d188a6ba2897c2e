"""HTML of the vote, the ratio grid and a run's page: every branch, and no text of a person or model is markup."""

import json
import re
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from lite_c2f.chat import TITLES, ChatSettings
from lite_c2f.ui import blind, ratio_grid, run_html
from lite_c2f.ui.answering import Snapshot
from lite_c2f.ui.ballot import VIEW, Ballot, vote_of
from lite_c2f.ui.page_session import Display, PageSession
from lite_c2f.ui.render import conversation, title
from lite_c2f.ui.run_charts import charts
from lite_c2f.ui.runs import Sample, StageState, follow
from lite_c2f.ui.store import votes
from lite_c2f.ui.store.conversations import Reply, Round
from lite_c2f.ui.vote_results import vote_counts

EVIL = "<script>alert(\"1\")</script> & 'q' ${x} {{y}} `z` \x00\ud800"
SHOWN = (
    "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; &#39;q&#39; &#36;&#123;x&#125; "
    "&#123;&#123;y&#125;&#125; &#96;z&#96; \N{REPLACEMENT CHARACTER}?"
)
REPLY = Reply("fine", "It is 5.", 4, 84.6, "eos", "", 0.25, reward=-0.125, repeated=0.0, ratio=0.5, seed=7)
OTHER = REPLY._replace(pane="coarse", text="Five.")


@pytest.fixture
def served(tmp_path):
    run = tmp_path / "a <run>"
    (run / "fine").mkdir(parents=True)
    return SimpleNamespace(votes=tmp_path / "votes.jsonl", chat=SimpleNamespace(run=run))


def ballot(a, b, choice=""):
    replies = {letter: reply for letter, reply in (("A", a), ("B", b)) if reply is not None}
    return Ballot(EVIL, ("fine", "coarse"), ChatSettings(), replies, choice, done=True)


def test_texts_are_shown_and_never_markup():
    evil = REPLY._replace(text=EVIL)
    failed = REPLY._replace(finish="error", message=EVIL)
    pages = [
        conversation([Round(EVIL, {}, {"fine": evil})], "fine", Display(marks=True)),
        conversation([Round("?", {}, {"fine": failed})], "fine"),
        conversation([Round("?", {}, {})], "fine", waiting=EVIL),
        title("a", EVIL),
        blind._answer(ballot(None, None), "A"),
        blind._answer(ballot(evil, OTHER).followed_by("More?"), "A"),
        ratio_grid._grid({}, [0.5], 0.5, EVIL, EVIL),
        run_html.samples([Sample(1, 8, EVIL, EVIL, "stop", 3, 0.5)]),
    ]
    for page in pages:
        assert SHOWN in page
        assert "<script" not in page and not set(page) & set("${}`\x00")


def test_text_keeps_its_lines_and_blanks():
    text = "  two blanks\n\n\ttab"
    assert f'<h3 dir="auto" class="you">{text}</h3>' in conversation([Round(text, {}, {"fine": REPLY})], "fine")
    page = conversation([Round("?", {}, {"fine": REPLY._replace(text=text)})], "fine", Display(marks=True))
    assert f'<div dir="auto" class="said plain">{text}</div>' in page
    assert '<div dir="auto" class="said writing"></div>' in conversation(
        [Round("?", {}, {"fine": REPLY._replace(text="", finish="")})], "fine"
    )  # :empty in the style sheet
    assert "<pre>a\n\n  b</pre>" in run_html.samples([Sample(1, 8, "q", "a\n\n  b", "stop", 3, 0.5)])


def test_an_answer_names_nobody_until_the_vote():
    assert "Ask something" in blind._answer(None, "A")
    assert '<span class="chip live">waiting</span>' in blind._answer(ballot(REPLY, None), "B")
    queued = ballot(REPLY, None)._replace(waits_for=Snapshot({}, 2).waits_for)
    assert '<span class="chip live">2 before you</span>' in blind._answer(queued, "B")
    for finish, state in (("", "writing"), ("eos", "ended"), ("limit", "cut off"), ("error", "failed")):
        page = blind._answer(ballot(REPLY._replace(finish=finish), None), "A")
        assert f">{state}</span>" in page and "EOS" not in page and "copy" not in page
    assert "ended (EOS)" in blind._answer(ballot(REPLY, OTHER, "A"), "A")


def test_the_verdict_of_a_vote():
    assert blind._verdict(None) == blind._verdict(ballot(REPLY, None)) == ""
    assert blind._verdict(ballot(REPLY, OTHER)).startswith("Which is better? Vote, or ask")
    assert blind._verdict(ballot(REPLY, REPLY)).startswith("Both say the same")
    for choice, verdict in (
        ("A", "for Fine Actor"),
        ("B", "for Coarse Actor"),
        ("tie", "a tie"),
        ("both_bad", "both bad"),
    ):
        page = blind._verdict(ballot(REPLY, OTHER, choice))
        assert page.startswith(f"Your vote: <b>{verdict}</b>. A was Fine Actor, B was Coarse Actor.<")
        assert "<th>A: Fine Actor</th><th>B: Coarse Actor</th>" in page and "-0.12" in page


def test_votes_are_counted_in_a_table(served):
    assert vote_counts(served) == '<p class="hint">No votes yet.</p>'
    for voter, choice in enumerate(("A", "A", "tie")):
        visitor = SimpleNamespace(owner=str(voter))
        served.facts, served.chat.ratio = {}, 0.5
        votes.record(served.votes, vote_of(ballot(REPLY, OTHER, choice)._replace(prompt="q"), visitor, served))
    page = vote_counts(served)
    assert "<td>Fine Actor</td><td>Coarse Actor</td><td>2</td><td>0</td><td>1</td><td>0</td><td>100% (" in page
    assert page.count("too few to say") == 2 and "<b>3 votes of 3 voters: too few to say.</b>" in page
    assert "rating" not in page.partition("</section>")[0] and "Open votes" not in page
    assert "a &lt;run&gt;&#39; --export votes.jsonl" in page
    served.votes.write_text("{\n")
    assert vote_counts(served).startswith('<p class="hint">') and "<table" not in vote_counts(served)


def test_blind_and_open_votes_are_shown_apart(served):
    """Fine wins 7 of 8 blind votes; of 6 open ones, on three answers of which two are the same, it wins 3."""
    served.facts, served.chat.ratio = {}, 0.5
    for voter in range(8):
        visitor, choice = SimpleNamespace(owner=str(voter)), "AB"[voter == 0]
        blind_vote = vote_of(ballot(REPLY, OTHER, choice)._replace(prompt="q"), visitor, served)
        votes.record(served.votes, blind_vote)
        texts = {"fine": "It is 5.", "coarse": "Five.", "baseline": "It is 5."}
        opened = blind_vote._replace(
            blind=False,
            shown=tuple(texts),
            answers=texts,
            ended=dict.fromkeys(texts, True),
            seeds=dict.fromkeys(texts, 1),
        )
        if voter < 6:
            votes.record(served.votes, opened._replace(choice="AB"[voter < 3]))
    blind_part, open_part, _ = vote_counts(served).split("</section>")
    assert "<b>8 votes of 8 voters.</b>" in blind_part and "<b>6 votes of 6 voters.</b>" in open_part
    # Wilson by hand, n = 8, p = 7/8, z^2 = 3.8415: (1.1151 -+ 0.3319) / 1.4802
    assert "<td>7</td><td>1</td><td>0</td><td>0</td><td>88% (53% to 98%)</td>" in blind_part
    # points = 200 lg(7.5 / 1.5); the interval of each: 1.96 * 173.7 * sqrt(9 / (7.5 * 1.5)) / 2
    assert "<td>Fine Actor</td><td>+140 (-12 to +292)</td><td>8</td>" in blind_part
    assert blind_part.index("<td>+140") < blind_part.index("<td>-140")
    fine, coarse, baseline = (TITLES[pane] for pane in ("fine", "coarse", "baseline"))
    assert (
        f"<td>{fine}</td><td>{coarse}</td><td>3</td><td>3</td><td>0</td><td>0</td><td>50% (19% to 81%): may be chance"
        in open_part
    )
    assert (
        f"<td>{coarse}</td><td>{baseline}</td><td>3</td><td>0</td><td>0</td><td>0</td><td>100% (44% to 100%): too few"
        in open_part
    )
    assert f"<td>{fine}</td><td>{baseline}</td>" not in open_part


def test_a_column_for_each_ratio():
    page = ratio_grid._grid({}, [0.0, 0.5], 0.0)
    assert '<h2>0 <span class="hint">baseline, merged</span></h2>' in page
    assert '<h2>0.5 <span class="hint"></span></h2>' in page
    assert page.count("What it says at this ratio") == 2
    asked = ratio_grid._grid({"0.5": REPLY}, [0.0, 0.5], 1.0, "Why?", Snapshot({}, 0, awaited="loading").waits_for)
    assert asked.count('<span class="chip live">loading</span>') == 1
    assert '<div class="hint">Why?</div>' in asked and asked.count("It is 5.") == 2  # and in its copy button
    assert "What it says" not in asked and "<th>ratio 0.5</th>" in asked and "<th>ratio 0</th>" not in asked


def test_the_curve_of_the_sweep(served):
    assert "was given, not chosen" in ratio_grid.curve(served) and "a &lt;run&gt;" in ratio_grid.curve(served)
    sweep = {"tried": [{"ratio": 0.5, "reward": 0.1, "reward_se": 0.1, "eos": 0.25}], "chosen": 0.5}
    file = served.chat.run / "fine" / "ratios.json"
    file.write_text(json.dumps(sweep))
    assert ratio_grid.curve(served).startswith('<div class="chart" tabindex="0"') and "Warning" not in ratio_grid.curve(
        served
    )
    file.write_text(json.dumps(sweep | {"min_eos": 0.9}))
    assert '<p class="hint">Warning: no ratio reaches fine.min_eos=0.9' in ratio_grid.curve(served)


def test_stages_curves_and_figures_of_a_run(tmp_path):
    stages = [
        StageState("reward", "done", 10, 10, "steps", 61.0, None),
        StageState("coarse", "running", 1, 4, "updates", None, 5.0),
        StageState("fine", "waiting", None, None, "trials", None, None),
    ]
    bars = run_html.bars(stages)
    for about, width in (("done, 10 steps, 1 min 1 s", 100), ("running, 1 / 4, 5 s left", 25), ("waiting", 0)):
        assert f'<span>{about}</span><div class="bar"><i style="width:{width}.0%">' in bars
    run = tmp_path / "run"
    run.mkdir()
    state = follow(run)
    assert run_html.log_lines(state).endswith(">no log yet</pre>")
    assert run_html.warnings(state).strip() == ""
    logged = [f"2026-01-01 10:00:00,000 INFO lite_c2f.run: warning: <{n % 7}>" for n in range(9)]
    logged += ["2026-01-01 10:00:01,000 WARNING lite_c2f.runtime.batch_size: smaller", "x WARNING other: not ours"]
    logged += [
        f"x INFO lite_c2f.run: {text}" for text in ("warning: update 2: KL", "warning: update 9: KL", "note: one")
    ]
    warned = run_html.warnings(state._replace(log=(*logged, "x INFO lite_c2f.run: no warning: at all")))
    assert re.findall("<b>(.*)</b>", warned) == ["Warning"] * 4 + ["Note"]
    assert re.findall("</b> (.*)</p>", warned) == ["&lt;5&gt;", "&lt;6&gt;", "smaller", "update 9: KL", "one"]
    assert ">5 more in the log<" in warned
    assert "Curves appear" in charts([state])
    drawn = charts([state._replace(series={"reward": {"loss": [(1, 0.5)]}})])
    assert "<h2>Reward model <span>by step</span></h2>" in drawn and drawn.count("<svg") == 1
    assert run_html.comparison(state) == ""
    rows = {"<a>": {"reward": 0.5, "tokens": 12.4}, "b": {"reward": "?", "tokens": 3, "eos": 0.25}, "c": None}
    page = run_html.comparison(state._replace(summary={"actors": rows}))
    assert re.findall("<th title=[^>]+>([^<]+)</th>", page) == ["reward", "tokens", "ended"]
    assert "<tr><th>&lt;a&gt;</th><td>+0.50</td><td>12</td><td></td></tr>" in page
    assert "<tr><th>b</th><td></td><td>3</td><td>25.0%</td></tr>" in page


def test_samples_of_six_prompts():
    samples = [Sample(1, 8, f"q {index}", " ", "stop", 3, 0.5) for index in range(8)]
    page = run_html.samples(samples)
    assert page.count("<blockquote>") == page.count("<i>(empty)</i>") == 6
    assert "2 more prompts are in" in page and "more prompts" not in run_html.samples(samples[:6])


def test_a_reopened_ballot_waits_for_nothing(monkeypatch):
    """What an answer waited for when the page was reloaded is over."""
    page = PageSession()
    page.view_state[VIEW] = ballot(REPLY, None)._replace(waits_for="2 before you")
    served = SimpleNamespace(pages=SimpleNamespace(continued=lambda *_: page))
    monkeypatch.setattr(blind, "vote_counts", lambda _: "")
    drawn = blind._reopener(served)("tab", SimpleNamespace(session_hash="h"))
    assert not any("2 before you" in str(each) for each in drawn) and "waiting" in str(drawn)


def test_nobody_votes_before_the_scores_are_there():
    """A later snapshot would draw the answers again without the vote."""
    scored = ballot(REPLY, OTHER)
    assert scored.complete and not scored._replace(done=False).complete
