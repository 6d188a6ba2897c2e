"""Conversations as HTML: questions, answers, and the table that compares the last ones."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from lite_c2f.actors.names import FINE
from lite_c2f.actors.reply import ENDINGS
from lite_c2f.chat.panes import title_of
from lite_c2f.chat.server_names import SERVER
from lite_c2f.evaluation.overlap import Span, repeated_spans, shared_spans
from lite_c2f.evaluation.word_diff import word_diff
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.figures import figure_table
from lite_c2f.ui.markdown import formatted
from lite_c2f.ui.other_pane import actor_of, known, slot_of
from lite_c2f.ui.page_session import Display
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round
from lite_c2f.ui.store.variants import CUT_OFF, other_replies

EMPTY = {
    "coarse": "The base model after reinforcement learning, which rewards a thorough answer.",
    "fine": "The instruct model with a share of what the Coarse Actor learned.",
    "baseline": "The instruct model as it was.",
    "base": "The base model before this run.",
}
EMPTY_OTHER = "It answers from the next question on."
OTHER = {"fine": "coarse", "coarse": "fine"}  # whose answer one is compared with
NO_ROOM = "the model's context, less the answer's tokens, has no room for it: what came first is left out"
END = "EOS: the model's end token; stop: the next turn's marker, with which a base model ends; limit: max new tokens"


class Chip(NamedTuple):
    """A remark under an answer."""

    text: str
    kind: str = ""  # its CSS class
    tooltip: str | None = ""


class Act(NamedTuple):
    """A button under an answer."""

    target: str  # element id of the button that page.js clicks in its place
    label: str
    pane: str  # its title
    pressed: bool | None = None  # of a button that stays pressed


class BestVote(NamedTuple):
    """Which of the last answers can be voted the best, and which one was."""

    panes: tuple[str, ...]
    chosen: str | None


class AnswerView(NamedTuple):
    """What a page shows of a reply: its text as Markdown, or character by character with marks."""

    reply: Reply
    markdown: str  # as HTML
    pieces: list[tuple[str, str]] | None  # text and the CSS classes of its mark; None: show `markdown`
    chips: list[Chip]
    acts: Sequence[Act] = ()


class Exchange(NamedTuple):
    """A question and its answer in one pane."""

    prompt: str
    answer: AnswerView | None
    waiting: str  # shown in place of an answer
    before: AnswerView | None  # the Fine Actor's at the ratio it had before, folded
    summary: str  # of `before`
    others: list[AnswerView]  # of the pane to this question, in the variants that are not in view; folded


_formatted = lru_cache(maxsize=256)(formatted)  # a page is drawn anew with every token, its earlier rounds too


def conversation(
    rounds: Sequence[Round],
    pane: str,
    display: Display = Display(),
    *,
    begin: int = 0,
    end: int | None = None,
    waiting: str = "",
    acts: bool = False,
    best: BestVote | None = None,
) -> str:
    """One pane's rounds from `begin` up to `end`.

    display: its ratio is that beside which an answer of the Fine Actor may be stale.
    waiting: shown below the last question while the pane has no answer to it. acts: has its answer buttons? best: of
    the votes among them, None without. Each round has its place, by which page.js gives it the same height in every
    pane; in a pane that was not shown then it is empty. The variants that are not in view are shown folded, but for the
    last round, which has buttons for them.
    """
    exchanges: list[Exchange | None] = []
    for round_ in rounds[begin:end]:
        last = round_ is rounds[-1]
        reply = round_.replies.get(pane)
        if reply is None and not last:
            exchanges.append(None)
            continue
        # Only the last answer can be made anew, and only that of a pane without a ratio of its own is then another.
        shown = display if last and not known(pane) else display._replace(ratio=None)
        answer = answer_view(reply, round_, shown) if reply else None
        if answer and acts and last:
            answer = answer._replace(acts=_acts(answer.reply, best))
        earlier = round_.replies.get(PREVIOUS_PANE) if pane == "fine" and reply is not None and reply.finish else None
        exchanges.append(
            Exchange(
                round_.prompt,
                answer,
                waiting if last else "",
                answer_view(earlier) if earlier else None,
                _summary(earlier, reply) if earlier and reply else "",
                [] if last else [answer_view(other) for other in other_replies(round_, pane)],
            )
        )
    if not any(exchanges):
        exchanges = []
    return fill("conversation.html", exchanges=exchanges, begin=begin, empty=EMPTY.get(pane, EMPTY_OTHER))


def _acts(reply: Reply, best: BestVote | None = None) -> list[Act]:
    """What can be done with the last answer of a pane, once it has ended."""
    title, pane, slot = title_of(reply.pane), reply.pane, slot_of(reply.pane)
    if not title or not reply.finish:
        return []
    goes_on = reply.finish in CUT_OFF and actor_of(pane) != SERVER
    continues = [Act(f"continue-{slot}", "continue", title)] if goes_on else []
    voting = []
    if best is not None and pane in best.panes:
        voting = [Act(f"best-{pane}", "best", title, pane == best.chosen)]
    return [*voting, *continues, Act(f"again-{slot}", "ask again", title)]


def answer_view(
    reply: Reply,
    round_: Round | None = None,
    display: Display = Display(),
) -> AnswerView:
    """A reply as a page shows it. round_: of the other answers, for marks and changes."""
    chips = answer_chips(reply, ratio=display.ratio)
    other = _compared(reply, round_, display.against)
    if display.marks or other is not None:
        layers = mark_spans(reply, round_) if display.marks and reply.finish else {}
        if other is None:
            return AnswerView(reply, "", marked_pieces(reply.text, layers), chips)
        return AnswerView(reply, "", changed_pieces(other.text, reply.text, layers), chips)
    return AnswerView(reply, (_formatted if reply.finish else formatted)(reply.text), None, chips)


def marked_pieces(text: str, layers: Mapping[str, Sequence[Span]]) -> list[tuple[str, str]]:
    """A text in pieces, each with the names of the layers that mark it; where two overlap, both are given.

    >>> marked_pieces("abcd", {"x": [Span(0, 2)], "y": [Span(1, 3)]})
    [('a', 'x'), ('b', 'x y'), ('c', 'y'), ('d', '')]
    """
    cuts = sorted({0, len(text), *(cut for spans in layers.values() for span in spans for cut in span)})
    pieces, ahead = [], {name: list(spans) for name, spans in layers.items()}
    for start, end in itertools.pairwise(cuts):
        names = []
        for name, spans in ahead.items():
            while spans and spans[0].end <= start:
                spans.pop(0)
            if spans and spans[0].start <= start:
                names.append(name)
        pieces.append((text[start:end], " ".join(names)))
    return pieces


def changed_pieces(before: str, after: str, layers: Mapping[str, Sequence[Span]]) -> list[tuple[str, str]]:
    """`marked_pieces` of `after` with one layer more, "added", and with the words it lacks as pieces "removed".

    >>> changed_pieces("It is red.", "It is a box.", {})
    [('It is ', ''), ('red ', 'removed'), ('a box', 'added'), ('.', '')]
    """
    diff = word_diff(before, after)
    pieces, removed, place = list[tuple[str, str]](), list(diff.removed), 0
    # A layer of empty spans cuts the text where words were removed.
    cuts = [Span(where, where) for where, _ in removed]
    for text, kinds in marked_pieces(after, {**layers, "added": diff.added, "": cuts}):
        if removed and removed[0][0] == place:
            pieces.append((removed.pop(0)[1] + " ", "removed"))
        pieces.append((text, kinds.strip()))
        place += len(text)
    return [*pieces, *((f" {text}", "removed") for _, text in removed)]


def _compared(reply: Reply, round_: Round | None, against: str) -> Reply | None:
    """The answer beside which the changes of a whole answer of the Fine Actor are shown; None where they are not."""
    other = round_.replies.get(against) if round_ is not None and _is_fine(reply) and reply.finish else None
    return other if other is not None and other.finish and other.finish != "error" else None


def _is_fine(reply: Reply) -> bool:
    """Is it a Fine Actor's, at whatever ratio and of whatever run?"""
    return actor_of(reply.pane) == FINE


def mark_spans(reply: Reply, round_: Round | None) -> dict[str, list[Span]]:
    """What to mark: what the answer repeats, and what the Fine Actor kept of the Coarse Actor (in both)."""
    layers = {"again": repeated_spans(reply.text)}
    other = round_.replies.get(OTHER.get(actor_of(reply.pane), "")) if round_ is not None else None
    if other is not None and other.text:
        layers["kept"] = shared_spans(reply.text, other.text)
    return layers


def _summary(before: Reply, reply: Reply) -> str:
    result = "the same" if before.text == reply.text else f"{before.tokens} tokens"
    return f"before, at ratio {before.ratio:g}: {result}" if before.ratio is not None else f"before: {result}"


def answer_chips(reply: Reply, *, ratio: float | None = None) -> list[Chip]:
    """What to know under an answer beside its figures: how it ended, what was not read. ratio: see `conversation`."""
    if reply.finish == "error":
        return [Chip(f"failed: {reply.message}", "bad", None)]
    if not reply.finish:
        chips = [Chip("writing", "live")]
    else:
        chips = [Chip(ENDINGS.get(reply.finish, reply.finish), "warn" if reply.finish in CUT_OFF else "", END)]
    if reply.dropped:
        turns = "turn" if reply.dropped == 1 else "turns"
        chips.append(Chip(f"{reply.dropped} earlier {turns} not read", "warn", NO_ROOM))
    if reply.cut:
        chips.append(Chip("question cut", "warn", NO_ROOM))
    if reply.ratio is not None and ratio is not None and abs(ratio - reply.ratio) > 1e-9:
        chips.append(
            Chip(f"stale: made at ratio {reply.ratio:g}", "stale", "the share of the residue it was made with")
        )
    return chips


def variant_count(round_: Round | None) -> str:
    """Which of a question's answers are in view, as HTML; "" where it got no others."""
    if round_ is None or not round_.others:
        return ""
    return fill("variant_count.html", place=round_.place + 1, count=len(round_.others) + 1)


def round_figures(round_: Round | None) -> str:
    """The table of the last answers' figures."""
    replies = round_.replies if round_ else {}
    shown = {_column(reply): replies[pane] for pane, reply in replies.items() if title_of(pane)}
    return figure_table(shown, replies.get("coarse"))


def _column(reply: Reply) -> str:
    title = title_of(reply.pane)
    return f"{title} at ratio {reply.ratio:g}" if reply.pane == FINE and reply.ratio is not None else title


def title(name: str, about: str = "") -> str:
    """The head of a column."""
    return fill("head.html", name=name, about=about)
