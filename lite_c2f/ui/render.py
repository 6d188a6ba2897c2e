"""Conversations as HTML. Every text of a person or a model goes through `escape` or `formatted`: none is ever HTML."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

from lite_c2f.actors.reply import ENDINGS
from lite_c2f.evaluation.overlap import Span, repeated_spans, shared_share, shared_spans
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.markdown import formatted
from lite_c2f.ui.store.conversations import PREVIOUS_FINE, Reply, Round

EMPTY = {
    "coarse": "The base model after PPO, under a response limit that grew as it earned it.",
    "fine": "The instruct model with a share of what the Coarse Actor learned.",
    "baseline": "The instruct model as it was.",
    "base": "The base model before this run.",
}
REWARD = "how the reward model likes it: 0 is its average answer, +1 one spread better than that"
REPEATED = "share of its stretches of four tokens that it had said before"
NO_ROOM = "the model's context, less the answer's tokens, has no room for it: what came first is left out"
END = "EOS: the model's end token; stop: the next turn's marker, with which a base model ends; limit: max new tokens"


_formatted = lru_cache(maxsize=256)(formatted)  # a page is drawn anew with every token, its earlier rounds too


def marked(text: str, layers: Mapping[str, Sequence[Span]]) -> str:
    """Text with <mark> around spans, by class; where spans of two classes overlap, both are given.

    >>> marked("abc", {"x": [Span(0, 2)], "y": [Span(1, 3)]})
    '<mark class="x">a</mark><mark class="x y">b</mark><mark class="y">c</mark>'
    """
    cuts = sorted({0, len(text), *(cut for spans in layers.values() for span in spans for cut in span)})
    parts, ahead = [], {name: list(spans) for name, spans in layers.items()}
    for start, end in itertools.pairwise(cuts):
        names = []
        for name, spans in ahead.items():
            while spans and spans[0].end <= start:
                spans.pop(0)
            if spans and spans[0].start <= start:
                names.append(name)
        piece = escape(text[start:end])
        parts.append(f'<mark class="{" ".join(names)}">{piece}</mark>' if names else piece)
    return "".join(parts)


def talk(
    rounds: Sequence[Round], pane: str, *, marks: bool = False, ratio: float | None = None, waiting: str = ""
) -> str:
    """One pane's conversation. ratio: of the slider, beside which an answer of the Fine Actor may be stale."""
    parts = []
    for round_ in rounds:
        reply = round_.replies.get(pane)
        if reply is None and round_ is not rounds[-1]:
            continue  # the pane was not shown then
        parts.append(f'<div class="you">{escape(round_.prompt)}</div>')
        if reply is not None:
            # Only the last answer can be made anew.
            parts.append(answer(reply, round_, marks=marks, ratio=ratio if round_ is rounds[-1] else None))
            if pane == "fine" and PREVIOUS_FINE in round_.replies and reply.finish:
                parts.append(before(round_.replies[PREVIOUS_FINE], reply))
        elif waiting and not round_.replies:
            parts.append(f'<div class="chips"><span class="chip live">{escape(waiting)}</span></div>')
    if not parts:
        parts = [f'<div class="nothing">{escape(EMPTY.get(pane, ""))}</div>']
    return f'<div class="talk">{"".join(parts)}</div>'


def answer(reply: Reply, round_: Round | None = None, *, marks: bool = False, ratio: float | None = None) -> str:
    """One answer and its figures."""
    layers = (spans_of(reply, round_) if reply.finish else {}) if marks else None
    nothing = "" if reply.finish == "error" else '<div class="said hint">(said nothing)</div>'
    return (said(reply, layers) if reply.text or not reply.finish else nothing) + chips(reply, ratio=ratio)


def said(reply: Reply, layers: Mapping[str, Sequence[Span]] | None = None) -> str:
    """What an answer says: read as Markdown, or letter by letter where stretches of it are marked."""
    live = "" if reply.finish else " writing"
    if layers is None:
        read = _formatted if reply.finish else formatted
        return f'<div class="said{live}">{read(reply.text)}</div>'
    return f'<div class="said plain{live}">{marked(reply.text, layers)}</div>'


def before(old: Reply, new: Reply) -> str:
    """The Fine Actor's answer at the ratio it had before, folded."""
    same = "the same" if old.text == new.text else f"{old.tokens} tokens"
    name = f"before, at ratio {old.ratio:g}: {same}" if old.ratio is not None else f"before: {same}"
    return f'<details class="before"><summary>{escape(name)}</summary>{said(old)}{chips(old)}</details>'


def spans_of(reply: Reply, round_: Round | None) -> dict[str, list[Span]]:
    """What to mark: what the answer says again, and what the Fine Actor kept of the Coarse Actor (in both)."""
    layers = {"again": repeated_spans(reply.text)}
    pair = {"fine": "coarse", "coarse": "fine"}
    other = round_.replies.get(pair.get(reply.pane, "")) if round_ is not None else None
    if other is not None and other.text:
        layers["kept"] = shared_spans(reply.text, other.text)
    return layers


def chips(reply: Reply, *, ratio: float | None = None) -> str:
    """The figures under an answer."""
    if reply.finish == "error":
        return f'<div class="chips"><span class="chip bad">failed: {escape(reply.message)}</span></div>'
    unit = "token" if reply.tokens == 1 else "tokens"
    items = [(f"{reply.tokens} {unit}", "", ""), (f"{reply.tokens_per_s:.0f} tokens/s", "", "from the first token on")]
    if reply.first_token_s is not None:
        items.append((f"first after {reply.first_token_s:.2f} s", "", "waiting and reading the prompt included"))
    if not reply.finish:
        items.append(("writing", "live", ""))
    else:
        items.append(
            (ENDINGS.get(reply.finish, reply.finish), "warn" if reply.finish in ("limit", "stopped") else "", END)
        )
        if reply.reward is not None:
            items.append((f"reward {signed(reply.reward)}", "score" if reply.reward > 0 else "warn", REWARD))
        items.append((f"{reply.repeated:.0%} repeated", "warn" if reply.repeated > 0.2 else "", REPEATED))
    if reply.dropped:
        turns = "turn" if reply.dropped == 1 else "turns"
        items.append((f"{reply.dropped} earlier {turns} not read", "warn", NO_ROOM))
    if reply.cut:
        items.append(("question cut", "warn", NO_ROOM))
    if reply.ratio is not None:
        stale = ratio is not None and abs(ratio - reply.ratio) > 1e-9
        word = f"stale: made at ratio {reply.ratio:g}" if stale else f"ratio {reply.ratio:g}"
        items.append((word, "stale" if stale else "", "the share of the residue it was made with"))
    items.append(
        (
            f"seed {reply.seed}",
            "",
            "the same seed, prompt and settings give the same answer, up to rounding in batches of another size",
        )
    )
    text = f'<button type="button" class="chip copy" data-text="{escape(reply.text)}">copy</button>'
    copy = text if reply.finish and reply.text else ""
    return f'<div class="chips">{"".join(_chip(*chip) for chip in items)}{copy}</div>'


def signed(value: float) -> str:
    """A reward, without a sign before zero.

    >>> signed(-0.001)
    '0.00'
    """
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def _chip(word: str, kind: str, tip: str) -> str:
    return f'<span class="chip {kind}" title="{escape(tip)}">{escape(word)}</span>'


def insight(round_: Round | None) -> str:
    """What the last answers say of Coarse-to-Fine, in a line: how long, how much was kept, how they are liked."""
    done = {
        pane: reply
        for pane, reply in (round_.replies if round_ else {}).items()
        if reply.finish in ("eos", "stop", "limit")
    }
    coarse, fine, baseline = (done.get(pane) for pane in ("coarse", "fine", "baseline"))
    if fine is None:
        return ""
    parts = [f"{fine.tokens} tokens"]
    if coarse is not None:
        share = shared_share(fine.text, coarse.text)
        parts[0] += f" against Coarse's {coarse.tokens}"
        parts.append(f"{share:.0%} of its words and signs in stretches that Coarse said too")
        if baseline is not None:
            before = shared_share(baseline.text, coarse.text)
            parts[-1] += f" (Baseline: {before:.0%})"
    if baseline is not None and fine.reward is not None and baseline.reward is not None:
        parts.append(f"reward {signed(fine.reward - baseline.reward)} over Baseline")
    at = f" at ratio {fine.ratio:g}" if fine.ratio is not None else ""
    return f"<b>Fine{at}</b>: {escape('; '.join(parts))}."


def title(name: str, about: str = "") -> str:
    """The head of a column."""
    return f'<div class="head" title="{escape(about)}"><b>{escape(name)}</b> <span>{escape(about)}</span></div>'
