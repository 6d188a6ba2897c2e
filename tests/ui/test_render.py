"""Conversations as HTML: what is marked, what is told, and that no text is ever markup."""

import re

import pytest

from lite_c2f.evaluation.overlap import Span
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.figures import signed
from lite_c2f.ui.page_session import Display
from lite_c2f.ui.render import changed_pieces, conversation, marked_pieces, round_figures, variant_count
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round, Variant

REPLY = Reply("fine", "It is 5.", 4, 84.6, "eos", "", 0.25, reward=-0.125, repeated=0.0, ratio=0.5, seed=7)
COARSE = REPLY._replace(
    pane="coarse", ratio=None, reward=1.0, tokens=9, text="Let us see: one two three four. It is 5."
)


def plain(html):
    return re.sub("<[^>]*>", "|", html)


def answer(reply, round_=None, **options):
    """A reply alone in its pane, without the question above it."""
    html = conversation([round_ or Round("?", {}, {reply.pane: reply})], reply.pane, Display(**options))
    return html.partition('<h3 dir="auto" class="you">?</h3>')[2]


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
    assert (
        '<div dir="auto" class="said plain">&lt;a&gt; one two, <mark class="again">&lt;a&gt; one two</mark></div>'
        in answer(reply, marks=True)
    )


def test_chips_tell_how_an_answer_ended():
    words = plain(chips(REPLY, ratio=0.5)).split("|")
    assert [word.strip() for word in words if word.strip()] == ["ended (EOS)", "copy"]
    assert "stale: made at ratio 0.5" in chips(REPLY, ratio=0.75)
    assert "writing" in chips(REPLY._replace(finish="")) and "copy" not in chips(REPLY._replace(finish=""))
    failed = chips(REPLY._replace(finish="error", message="<img>"))
    assert "failed: &lt;img&gt;" in failed and "ended" not in failed
    assert "weird" in chips(REPLY._replace(finish="weird"))  # a session that somebody edited


def test_an_answer_is_read_as_markdown_but_where_it_is_marked():
    reply = REPLY._replace(text='**Five** "<b>"')
    assert '<div dir="auto" class="said"><p><strong>Five</strong> &quot;&lt;b&gt;&quot;</p></div>' in answer(reply)
    assert '<div dir="auto" class="said plain">**Five** &#34;&lt;b&gt;&#34;</div>' in answer(reply, marks=True)
    assert 'data-text="**Five** &#34;&lt;b&gt;&#34;">copy' in chips(reply)  # copied as it was written
    writing = reply._replace(finish="")
    assert '<div dir="auto" class="said writing"><p>' in answer(writing) and "plain writing" in answer(
        writing, marks=True
    )


def test_only_the_last_answer_may_be_stale():
    rounds = [Round("a", {}, {"fine": REPLY}), Round("b", {}, {"fine": REPLY})]
    assert conversation(rounds, "fine", Display(ratio=1.0)).count("stale: made") == 1
    assert conversation(rounds, "fine", Display(ratio=0.5)).count("stale: made") == 0


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


def test_what_fine_changed_is_shown_by_words_beside_its_repeats():
    """Of `It is one two three.` and `It is two three four, two three four, two`: `one` is gone; from the first `four`
    on all is new, in place of the full stop; `two three four, two` has come before.
    """
    fine = REPLY._replace(text="It is two three four, two three four, two")
    round_ = Round("?", {}, {"fine": fine, "coarse": COARSE._replace(text="It is one two three.")})
    html = answer(fine, round_, against="coarse", marks=True)
    assert re.findall("<del>(.*?)</del>", html) == ["one ", ". "]
    assert "".join(re.findall("<ins[^>]*>(.*?)</ins>", html)) == "four, two three four, two"
    assert '<ins class="again added">two three four, two</ins>' in html
    assert "<mark" not in answer(fine, round_, against="coarse") and "<ins" in answer(fine, round_, against="coarse")
    coarse = round_.replies["coarse"]
    assert "<ins" not in answer(coarse, round_, against="coarse")  # in Fine's pane alone
    for unknown in (fine._replace(finish=""), fine._replace(finish=None)):  # while it is written all seems to be gone
        growing = Round("?", {}, {**round_.replies, "fine": unknown})
        assert "<del" not in answer(unknown, growing, against="coarse")
    assert "<ins" not in answer(fine, round_, against="baseline")  # which has no answer
    evil = Round("?", {}, {"fine": fine, "coarse": coarse._replace(text="<b>")})
    assert "<del>&lt;b&gt; </del>" in answer(fine, evil, against="coarse")


def test_no_word_is_lost_between_changes():
    before, after = "a  b\nc d, e", "b\n\nx d e! f"
    pieces = changed_pieces(before, after, {})
    assert "".join(text for text, kinds in pieces if kinds != "removed") == after
    words = " ".join(text for text, kinds in pieces if kinds != "added").split()
    assert words == ["a", "b", "c", "d", ",", "e"]


def table(**replies):
    """The cells of each row of the table of figures, * before the best ones."""
    html = round_figures(Round("?", {}, replies))
    rows = re.findall(r'<tr data-figure="([^"]*)"[^>]*>(.*?)</tr>', html)
    return {
        name: [("*" if best else "") + text for best, text in re.findall(r"<td( class=\"best\")?>(.*?)</td>", cells)]
        for name, cells in rows
    }


def test_figures_stand_in_a_table_with_the_best_marked():
    """Of fine's 8 words and signs, the 5 of `: one two three four` stand in Coarse's answer too: 62%.

    Seconds: 0.25 to the first token, then 8 - 1 at 70 per second, 9 - 1 and 4 - 1 at 80.
    """
    fine = REPLY._replace(text="Well: one two three four, yes", tokens=8, tokens_per_s=70.0, reward=1.25)
    coarse = COARSE._replace(tokens_per_s=80.0, repeated=0.25)
    baseline = REPLY._replace(pane="baseline", text="No.", reward=-0.5, ratio=None, tokens_per_s=80.0)
    assert table(coarse=coarse, fine=fine, baseline=baseline) == {
        "tokens": ["9", "8", "4"],
        "reward": ["+1.00", "*+1.25", "-0.50"],
        "repeated 4-grams": ["25%", "*0%", "*0%"],
        "kept of Coarse": ["", "62%", ""],
        "time": ["0.35 s", "0.35 s", "*0.29 s"],
    }
    html = round_figures(Round("?", {}, {"fine": fine}))
    assert "<th>Fine Actor at ratio 0.5</th>" in html and "seed 7; Fine Actor at ratio 0.5: 70 tokens/s" in html
    assert round_figures(None) == round_figures(Round("?", {}, {})) == ""


def test_no_figure_misleads():
    """An answer too short for the share, one that still grows, and one that was stopped have none."""
    short = REPLY._replace(pane="baseline", text="It is 5.", ratio=None)  # all of it stands in Coarse's answer
    assert table(coarse=COARSE, baseline=short)["kept of Coarse"] == ["", ""]
    assert table(coarse=COARSE._replace(text="It is 5."), fine=COARSE._replace(pane="fine"))["kept of Coarse"] == [
        "",
        "",
    ]
    for finish in ("", None, "stopped", "error"):
        cells = table(coarse=COARSE, fine=REPLY._replace(finish=finish, reward=9.0))
        assert [row[1] for row in cells.values()] == [""] * 5 and cells["reward"][
            0
        ] == "+1.00"  # the best of one is none
    assert table(coarse=COARSE, fine=REPLY._replace(reward=1.004))["reward"] == ["+1.00", "+1.00"]  # alike as shown


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


def test_earlier_rounds_have_their_other_answers_folded_and_the_last_has_a_count():
    others = (Variant({}, {"fine": REPLY._replace(text="It is <6>.")}), Variant({}, {"fine": REPLY}))
    round_ = Round("a", {}, {"fine": REPLY}, {}, others, 1)
    html = conversation([round_, Round("b", {}, {"fine": REPLY})], "fine")
    assert "<summary>1 other answer</summary>" in html and "It is &lt;6&gt;." in html  # one of them is the same
    assert "other answer" not in conversation([round_], "fine")
    assert plain(variant_count(round_)) == "|Answers 2 of 3|"
    assert variant_count(None) == variant_count(Round("a", {}, {"fine": REPLY})) == ""


def test_the_last_answer_can_be_asked_again_by_a_button_that_names_its_pane():
    rounds = [Round("a", {}, {"fine": REPLY}), Round("b", {}, {"fine": REPLY})]
    button = '<button type="button" class="chip act" data-target="again-fine" aria-label="ask again: Fine Actor">'
    assert conversation(rounds, "fine", acts=True).count(button) == 1
    assert (
        conversation(rounds, "fine", end=1, acts=True).count(button) == conversation(rounds, "fine").count(button) == 0
    )
    assert "again" not in conversation([Round("a", {}, {"fine": REPLY._replace(finish=None)})], "fine", acts=True)
    unknown = REPLY._replace(pane='"><script>')  # a session that somebody edited
    assert "act" not in conversation([Round("a", {}, {"fine": unknown})], "fine", acts=True).partition("chips")[2]


@pytest.mark.parametrize(
    ("finish", "can"), [("limit", True), ("stopped", True), ("eos", False), ("stop", False), ("error", False)]
)
def test_what_was_cut_off_can_be_continued_and_what_ended_cannot(finish, can):
    html = conversation([Round("a", {}, {"fine": REPLY._replace(finish=finish)})], "fine", acts=True)
    assert ('data-target="continue-fine" aria-label="continue: Fine Actor"' in html) == can
    assert "ask again" in html


def test_a_pane_waits_beside_the_answers_of_others():
    round_ = Round("a", {}, {"coarse": COARSE})
    assert "2 before you" in conversation([round_], "fine", waiting="2 before you")
    assert "2 before you" not in conversation([round_], "coarse", waiting="2 before you")


def test_a_reward_near_zero_has_no_sign():
    assert [signed(value) for value in (-0.004, 0.004, -0.006, 1.0)] == ["0.00", "0.00", "-0.01", "+1.00"]


def test_an_empty_answer_is_seen():
    assert "(said nothing)" in answer(REPLY._replace(text=""))
    assert "(said nothing)" not in answer(REPLY._replace(text="", finish="error"))
