"""Conversations as HTML: questions, answers with their figures, and one line that compares the actors."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from lite_c2f.actors.reply import ENDINGS
from lite_c2f.evaluation.overlap import Span, repeated_spans, shared_share, shared_spans
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.markdown import formatted
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round

EMPTY = {
    "coarse": "The base model after PPO, under a response limit that grew as it earned it.",
    "fine": "The instruct model with a share of what the Coarse Actor learned.",
    "baseline": "The instruct model as it was.",
    "base": "The base model before this run.",
}
OTHER = {"fine": "coarse", "coarse": "fine"}  # whose answer one is compared with
REWARD = "how the reward model likes it: 0 is its average answer, +1 one standard deviation better than that"
REPEATED = "share of its 4-grams of tokens that occurred before in the answer"
NO_ROOM = "the model's context, less the answer's tokens, has no room for it: what came first is left out"
END = "EOS: the model's end token; stop: the next turn's marker, with which a base model ends; limit: max new tokens"
SEED = "the same seed, prompt and settings give the same answer, up to rounding in batches of another size"


class Chip(NamedTuple):
    """A figure under an answer."""

    text: str
    kind: str = ""  # its CSS class
    tooltip: str | None = ""


class AnswerView(NamedTuple):
    """What a page shows of a reply: its text as Markdown, or character by character with marks."""

    reply: Reply
    markdown: str  # as HTML
    pieces: list[tuple[str, str]] | None  # text and the CSS classes of its mark; None: show `markdown`
    chips: list[Chip]


class Exchange(NamedTuple):
    """A question and its answer in one pane."""

    prompt: str
    answer: AnswerView | None
    waiting: str  # shown in place of an answer
    before: AnswerView | None  # the Fine Actor's at the ratio it had before, folded
    summary: str  # of `before`


_formatted = lru_cache(maxsize=256)(formatted)  # a page is drawn anew with every token, its earlier rounds too


def conversation(
    rounds: Sequence[Round], pane: str, *, marks: bool = False, ratio: float | None = None, waiting: str = ""
) -> str:
    """One pane's conversation. ratio: of the slider, beside which an answer of the Fine Actor may be stale.

    waiting: shown below the last question while no pane has an answer to it.
    """
    exchanges = []
    for round_ in rounds:
        last = round_ is rounds[-1]
        reply = round_.replies.get(pane)
        if reply is None and not last:
            continue  # the pane was not shown then
        # Only the last answer can be made anew.
        answer = answer_view(reply, round_, marks=marks, ratio=ratio if last else None) if reply else None
        earlier = round_.replies.get(PREVIOUS_PANE) if pane == "fine" and reply is not None and reply.finish else None
        exchanges.append(
            Exchange(
                round_.prompt,
                answer,
                "" if round_.replies else waiting,
                answer_view(earlier) if earlier else None,
                _summary(earlier, reply) if earlier and reply else "",
            )
        )
    return fill("conversation.html", exchanges=exchanges, empty=EMPTY.get(pane, ""))


def answer_view(
    reply: Reply, round_: Round | None = None, *, marks: bool = False, ratio: float | None = None
) -> AnswerView:
    """A reply as a page shows it. round_: of the other answers, for marks; ratio: as of `conversation`."""
    chips = answer_chips(reply, ratio=ratio)
    if marks:
        spans = mark_spans(reply, round_) if reply.finish else {}
        return AnswerView(reply, "", marked_pieces(reply.text, spans), chips)
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


def mark_spans(reply: Reply, round_: Round | None) -> dict[str, list[Span]]:
    """What to mark: what the answer repeats, and what the Fine Actor kept of the Coarse Actor (in both)."""
    layers = {"again": repeated_spans(reply.text)}
    other = round_.replies.get(OTHER.get(reply.pane, "")) if round_ is not None else None
    if other is not None and other.text:
        layers["kept"] = shared_spans(reply.text, other.text)
    return layers


def _summary(before: Reply, reply: Reply) -> str:
    result = "the same" if before.text == reply.text else f"{before.tokens} tokens"
    return f"before, at ratio {before.ratio:g}: {result}" if before.ratio is not None else f"before: {result}"


def answer_chips(reply: Reply, *, ratio: float | None = None) -> list[Chip]:
    """The figures under an answer. ratio: as of `conversation`."""
    if reply.finish == "error":
        return [Chip(f"failed: {reply.message}", "bad", None)]
    unit = "token" if reply.tokens == 1 else "tokens"
    chips = [Chip(f"{reply.tokens} {unit}"), Chip(f"{reply.tokens_per_s:.0f} tokens/s", "", "from the first token on")]
    if reply.first_token_s is not None:
        chips.append(Chip(f"first after {reply.first_token_s:.2f} s", "", "waiting and reading the prompt included"))
    if not reply.finish:
        chips.append(Chip("writing", "live"))
    else:
        cut_off = reply.finish in ("limit", "stopped")
        chips.append(Chip(ENDINGS.get(reply.finish, reply.finish), "warn" if cut_off else "", END))
        if reply.reward is not None:
            chips.append(Chip(f"reward {signed(reply.reward)}", "score" if reply.reward > 0 else "warn", REWARD))
        chips.append(Chip(f"{reply.repeated:.0%} repeated", "warn" if reply.repeated > 0.2 else "", REPEATED))
    if reply.dropped:
        turns = "turn" if reply.dropped == 1 else "turns"
        chips.append(Chip(f"{reply.dropped} earlier {turns} not read", "warn", NO_ROOM))
    if reply.cut:
        chips.append(Chip("question cut", "warn", NO_ROOM))
    if reply.ratio is not None:
        stale = ratio is not None and abs(ratio - reply.ratio) > 1e-9
        text = f"stale: made at ratio {reply.ratio:g}" if stale else f"ratio {reply.ratio:g}"
        chips.append(Chip(text, "stale" if stale else "", "the share of the residue it was made with"))
    return [*chips, Chip(f"seed {reply.seed}", "", SEED)]


def signed(value: float) -> str:
    """A reward, without a sign before zero.

    >>> signed(-0.001)
    '0.00'
    """
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def insight(round_: Round | None) -> str:
    """One line that compares the last answers: lengths, what was kept of the Coarse Actor's, rewards."""
    ended = {
        pane: reply
        for pane, reply in (round_.replies if round_ else {}).items()
        if reply.finish in ("eos", "stop", "limit")
    }
    coarse, fine, baseline = (ended.get(pane) for pane in ("coarse", "fine", "baseline"))
    if fine is None:
        return ""
    parts = [f"{fine.tokens} tokens"]
    if coarse is not None:
        parts[0] += f" against Coarse's {coarse.tokens}"
        share = shared_share(fine.text, coarse.text)
        parts.append(f"{share:.0%} of its words and signs in stretches that Coarse said too")
        if baseline is not None:
            parts[-1] += f" (Baseline: {shared_share(baseline.text, coarse.text):.0%})"
    if baseline is not None and fine.reward is not None and baseline.reward is not None:
        parts.append(f"reward {signed(fine.reward - baseline.reward)} over Baseline")
    ratio = f" at ratio {fine.ratio:g}" if fine.ratio is not None else ""
    return fill("insight.html", ratio=ratio, parts=parts)


def title(name: str, about: str = "") -> str:
    """The head of a column."""
    return fill("head.html", name=name, about=about)
