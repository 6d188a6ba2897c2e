"""Table of the figures of some answers to one question: a row for each figure, a column for each answer."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from lite_c2f.evaluation.overlap import shared_share, word_count
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.store.conversations import Reply

REWARD = "how the reward model likes it: 0 is its average answer, +1 one standard deviation better than that"
REPEATED = "share of its 4-grams of tokens that occurred before in the answer"
KEPT = "share of its words and signs in stretches of four or more that Coarse said too; of an answer too short, none"
TIME = "from the question to the last token; waiting for other questions counts, the loading of models does not"
END = (
    "by EOS, the model's end token, or by stop, the next turn's marker, with which a base model ends; hit the limit of "
    "new tokens; or stopped by you, which leaves it without figures"
)
WHOLE = ("eos", "stop", "limit")  # how answers end that have figures: of others nobody knows what they would become
SHORTEST = 8  # words and signs of an answer whose share is shown: two stretches of four


class FigureRow(NamedTuple):
    """One figure of all answers."""

    name: str
    tooltip: str
    cells: list[tuple[str, bool]]  # its text, "" where there is none yet, and whether it is the best


def figure_table(replies: Mapping[str, Reply], coarse: Reply | None = None, *, timed: bool = True) -> str:
    """The table as HTML; "" without answers.

    replies: by the title of the column. coarse: the answer of which the others have kept a share; None leaves the row
    out. timed: False leaves out time, seed and speed, of answers of which they are not known. Highest reward and lowest
    repetition and time are marked as best, where they differ.
    """
    if not replies:
        return ""
    ended = {title: reply for title, reply in replies.items() if reply.finish in WHOLE}
    rows = [
        _row(
            "tokens",
            "length of the answer, the ending included",
            replies,
            {title: (r.tokens, str(r.tokens)) for title, r in ended.items()},
        ),
        _row(
            "reward",
            REWARD,
            replies,
            {title: (r.reward, signed(r.reward)) for title, r in ended.items() if r.reward is not None},
            max,
        ),
        _row(
            "repeated 4-grams",
            REPEATED,
            replies,
            {title: (r.repeated, f"{r.repeated:.0%}") for title, r in ended.items()},
            min,
        ),
    ]
    if coarse is not None:
        rows.append(_row("kept of Coarse", KEPT, replies, _kept(ended, coarse)))
    if not timed:
        return fill("figure_table.html", titles=list(replies), rows=rows, seeds=[], speeds=[], ended=END)
    seconds = {title: _seconds(reply) for title, reply in ended.items()}
    rows.append(_row("time", TIME, replies, {t: (s, f"{s:.2f} s") for t, s in seconds.items() if s is not None}, min))
    seeds = {reply.seed for reply in replies.values()}
    speeds = [f"{title}: {reply.tokens_per_s:.0f} tokens/s" for title, reply in ended.items()]
    return fill("figure_table.html", titles=list(replies), rows=rows, seeds=sorted(seeds), speeds=speeds, ended=END)


def _row(
    name: str,
    tooltip: str,
    titles: Iterable[str],
    cells: Mapping[str, tuple[float, str]],
    best: Callable[[Iterable[float]], float] | None = None,
) -> FigureRow:
    """titles: of all columns; cells: value and text, by title; best: max or min over the values, None marks none."""
    texts = {text for _, text in cells.values()}
    marked = dict(cells.values())[best(value for value, _ in cells.values())] if best and len(texts) > 1 else None
    shown = [cells[title][1] if title in cells else "" for title in titles]
    return FigureRow(name, tooltip, [(text, text != "" and text == marked) for text in shown])


def _kept(ended: Mapping[str, Reply], coarse: Reply) -> dict[str, tuple[float, str]]:
    """The share that each other answer kept of Coarse's, where both are long enough for it to mean something."""
    if coarse.finish not in WHOLE or word_count(coarse.text) < SHORTEST:
        return {}
    shares = {
        title: shared_share(reply.text, coarse.text)
        for title, reply in ended.items()
        if reply.pane != coarse.pane and word_count(reply.text) >= SHORTEST
    }
    return {title: (share, f"{share:.0%}") for title, share in shares.items()}


def _seconds(reply: Reply) -> float | None:
    if reply.first_token_s is None:
        return None
    return reply.first_token_s + ((reply.tokens - 1) / reply.tokens_per_s if reply.tokens_per_s else 0.0)


def signed(value: float) -> str:
    """A reward, without a sign before zero.

    >>> signed(-0.001)
    '0.00'
    """
    return f"{value:+.2f}" if round(value, 2) else "0.00"
