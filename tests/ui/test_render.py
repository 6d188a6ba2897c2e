"""Conversations as HTML: what is marked, what is told, and that no text is ever markup."""

import re

import pytest

from lite_c2f.evaluation.overlap import Span
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.render import conversation, insight, marked_pieces, signed
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round

REPLY = Reply("fine", "It is 5.", 4, 84.6, "eos", "", 0.25, reward=-0.125, repeated=0.0, ratio=0.5, seed=7)
COARSE = REPLY._replace(
    pane="coarse", ratio=None, reward=1.0, tokens=9, text="Let us see: one two three four. It is 5."
)


def plain(html):
    return re.sub("<[^>]*>", "|", html)


def answer(reply, round_=None, **options):
    """A reply alone in its pane, without the question above it."""
    html = conversation([round_ or Round("?", {}, {reply.pane: reply})], reply.pane, **options)
    return html.partition('<div class="you">?</div>')[2]


def chips(reply, **options):
    return answer(reply, **options).partition('<div class="chips">')[2]


@pytest.mark.parametrize(
    "text", ["<b>", "&lt;", "${x}", "{{x}}", "{{{x}}}", "`x`", "\"'", "\x00", "a\ud800b", "</div>"]
)
def test_no_character_with_a_meaning_is_left(text):
    shown = escape(text)
    assert not set(shown) & set("<>${}`\"'\x00")
    assert re.fullmatch(r"(?:[^&]|&#?\w+;)*", shown)
    shown.encode()


def test_marks_of_two_classes_overlap():
    pieces = marked_pieces("abcdef", {"x": [Span(0, 2), Span(4, 5)], "y": [Span(1, 4)]})
    assert pieces == [("a", "x"), ("b", "x y"), ("cd", "y"), ("e", "x"), ("f", "")]
    assert marked_pieces("", {}) == []


def test_a_marked_text_is_escaped():
    reply = REPLY._replace(text="<a> one two, <a> one two")  # the words and signs: < a > one two , < a > one two
    assert '<div class="said plain">&lt;a&gt; one two, <mark class="again">&lt;a&gt; one two</mark></div>' in answer(
        reply, marks=True
    )


def test_chips_tell_how_an_answer_went():
    words = plain(chips(REPLY, ratio=0.5)).split("|")
    assert [word.strip() for word in words if word.strip()] == [
        "4 tokens", "85 tokens/s", "first after 0.25 s", "ended (EOS)", "reward -0.12", "0% repeated", "ratio 0.5",
        "seed 7", "copy",
    ]  # fmt: skip
    assert "1 token|" in plain(chips(REPLY._replace(tokens=1)))
    assert "stale: made at ratio 0.5" in chips(REPLY, ratio=0.75)
    assert "writing" in chips(REPLY._replace(finish="")) and "copy" not in chips(REPLY._replace(finish=""))
    failed = chips(REPLY._replace(finish="error", message="<img>"))
    assert "failed: &lt;img&gt;" in failed and "tokens" not in failed
    assert "weird" in chips(REPLY._replace(finish="weird"))  # a session that somebody edited


def test_an_answer_is_read_as_markdown_but_where_it_is_marked():
    reply = REPLY._replace(text='**Five** "<b>"')
    assert '<div class="said"><p><strong>Five</strong> &quot;&lt;b&gt;&quot;</p></div>' in answer(reply)
    assert '<div class="said plain">**Five** &#34;&lt;b&gt;&#34;</div>' in answer(reply, marks=True)
    assert 'data-text="**Five** &#34;&lt;b&gt;&#34;">copy' in chips(reply)  # copied as it was written
    writing = reply._replace(finish="")
    assert '<div class="said writing"><p>' in answer(writing) and "plain writing" in answer(writing, marks=True)


def test_only_the_last_answer_may_be_stale():
    rounds = [Round("a", {}, {"fine": REPLY}), Round("b", {}, {"fine": REPLY})]
    assert conversation(rounds, "fine", ratio=1.0).count("stale: made") == 1
    assert conversation(rounds, "fine", ratio=0.5).count("stale: made") == 0


def test_a_pane_that_was_not_shown_skips_the_round():
    rounds = [Round("Alpha?", {}, {"fine": REPLY}), Round("Beta?", {}, {"fine": REPLY, "base": REPLY})]
    assert "Alpha?" not in conversation(rounds, "base")
    assert "Beta?" in conversation(rounds, "base")
    assert "Alpha?" in conversation(rounds[:1], "base")  # its question waits for an answer
    assert "before this run" in conversation([], "base")


def test_what_fine_kept_of_coarse_is_marked_in_both_and_only_then():
    round_ = Round("?", {}, {"fine": REPLY._replace(text="Well: one two three four, yes."), "coarse": COARSE})
    for pane in ("fine", "coarse"):
        html = answer(round_.replies[pane], round_, marks=True)
        assert re.findall('<mark class="kept">([^<]*)</mark>', html) == [": one two three four"]
        assert "<mark" not in answer(round_.replies[pane], round_)
    assert "<mark" not in answer(REPLY, Round("?", {}, {"fine": REPLY}), marks=True)


def test_the_line_about_coarse_to_fine():
    """Of fine's 8 words and signs, the 5 of `: one two three four` stand in coarse's answer too."""
    fine = REPLY._replace(text="Well: one two three four, yes", tokens=8, reward=1.25)
    baseline = REPLY._replace(pane="baseline", text="No.", reward=-0.5, ratio=None)
    html = insight(Round("?", {}, {"fine": fine, "coarse": COARSE, "baseline": baseline}))
    assert plain(html) == (
        "|Fine at ratio 0.5|: 8 tokens against Coarse&#39;s 9; 62% of its words and signs in stretches that Coarse "
        "said too (Baseline: 0%); reward +1.75 over Baseline."
    )
    assert insight(None) == insight(Round("?", {}, {"coarse": COARSE})) == ""
    assert insight(Round("?", {}, {"fine": fine._replace(finish="")})) == ""
    assert insight(Round("?", {}, {"fine": fine._replace(finish="stopped")})) == ""  # nobody knows how it would end


def test_what_a_model_had_no_room_for_is_told():
    assert "not read" not in chips(REPLY) and "cut" not in chips(REPLY)
    assert "1 earlier turn not read" in chips(REPLY._replace(dropped=1))
    html = chips(REPLY._replace(dropped=4, cut=True, finish=""))
    assert "4 earlier turns not read" in html and "question cut" in html


def test_an_answer_at_another_ratio_stays_beside_the_new_one():
    old = REPLY._replace(text="It is <4>.", ratio=0.25)
    pair = Round("?", {}, {"fine": REPLY, PREVIOUS_PANE: old})
    html = conversation([pair], "fine")
    assert "before, at ratio 0.25: 4 tokens" in html and "It is &lt;4&gt;." in html
    assert "before" not in conversation([pair], "coarse")
    same = Round("?", {}, {"fine": REPLY, PREVIOUS_PANE: old._replace(text=REPLY.text)})
    assert "before, at ratio 0.25: the same" in conversation([same], "fine")


def test_a_reward_near_zero_has_no_sign():
    assert [signed(value) for value in (-0.004, 0.004, -0.006, 1.0)] == ["0.00", "0.00", "-0.01", "+1.00"]


def test_an_empty_answer_is_seen():
    assert "(said nothing)" in answer(REPLY._replace(text=""))
    assert "(said nothing)" not in answer(REPLY._replace(text="", finish="error"))
