"""Results of the votes on the page: blind and open ones apart, counts with intervals, ratings, a download."""

import shlex
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lite_c2f.chat import TITLES
from lite_c2f.errors import C2FError
from lite_c2f.ui.answering import NOTIFYING, Served, failure
from lite_c2f.ui.ballot import voter_of
from lite_c2f.ui.escaping import escape, fill
from lite_c2f.ui.saving import page_of
from lite_c2f.ui.sessions import DOWNLOAD
from lite_c2f.ui.store import votes
from lite_c2f.ui.store.preferences import NoPairsError, as_jsonl

COUNTED = ("", "against", "won", "lost", "tie", "both bad", "share won (95% interval)")
KINDS = {
    True: ("Blind votes", "The voters did not know whose answers they read."),
    False: ("Open votes", "Cast in Compare: the voters saw the names, and may have preferred a name to an answer."),
}


def vote_counts(served: Served) -> str:
    """The results of all votes on this run, as HTML."""
    try:
        counted, error = votes.current(votes.recorded(served.votes).values()), ""
    except (C2FError, OSError) as unreadable:
        counted, error = [], str(unreadable)
    kinds = [_results(blind, kind) for blind in KINDS if (kind := [vote for vote in counted if vote.blind is blind])]
    run = shlex.quote(str(served.chat.run))
    return fill("vote_counts.html", error=error, columns=COUNTED, kinds=kinds, run=run)


def download_row(served: Served, identity: list[Any]) -> None:
    """The button that saves the visitor's own votes as preference data. identity: as in `blind_view`.

    Not everybody's: they hold other visitors' questions, whose sessions are not shown either. The command has them all.
    """
    text, name = (gr.Textbox(elem_classes="unseen", label=label) for label in ("text", "name"))
    with gr.Row(elem_classes="tools"):
        button = gr.Button("Download my votes (JSONL)", size="sm", elem_id="download-votes")

    def download(owner: str, session: str, request: gr.Request) -> list[str]:  # Gradio gives no request to a partial
        return _own_pairs(served, owner, session, request)

    event = button.click(download, identity, [text, name], **NOTIFYING)
    event.then(None, [text, name], None, js=DOWNLOAD)


def _own_pairs(served: Served, owner: str, session: str, request: gr.Request) -> list[str]:
    """(text, name) of the file that the browser saves; both are empty where there is nothing to save."""
    page = page_of(served, request.session_hash, owner, session)
    try:
        text, exported = as_jsonl([vote for vote in votes.read(served.votes) if vote.voter == voter_of(page)])
    except NoPairsError as nothing:
        gr.Info(escape(str(nothing)))
        return ["", ""]
    except (C2FError, OSError) as error:
        raise failure(error) from None
    left_out = ", ".join(f"{reason} {count}" for reason, count in exported.skipped.items())
    gr.Info(_plural(exported.pairs, "pair") + (f"; left out: {left_out}" if left_out else ""))
    return [text, "votes.jsonl"]


def _results(blind: bool, kind: Sequence[votes.Vote]) -> dict[str, Any]:
    """One kind of votes, at least one, as the template takes it."""
    title, about = KINDS[blind]
    voters, ratios = len({vote.voter for vote in kind}), sorted({vote.ratio for vote in kind if vote.ratio is not None})
    number = f"{_plural(len(kind), 'vote')} of {_plural(voters, 'voter')}"
    if len(kind) < votes.FEW:
        number += ": too few to say"
    elif len(ratios) > 1:
        number += f"; Fine at several ratios, counted as one: {', '.join(f'{ratio:g}' for ratio in ratios)}"
    rows = []
    for row in votes.tally(kind):
        if row.wins + row.losses + row.ties + row.both_bad:  # two of three of which the third was chosen
            counts = (row.wins, row.losses, row.ties, row.both_bad)
            rows.append((TITLES.get(row.left, row.left), TITLES.get(row.right, row.right), *counts, _share(row)))
    return {"title": title, "about": about, "number": number, "rows": rows, "ratings": _ratings(kind)}


def _share(row: votes.Tally) -> str:
    """The share of wins among wins and losses with its interval, and whether that says anything."""
    if row.rate is None:
        return ""
    share = f"{row.rate:.0%} ({row.low:.0%} to {row.high:.0%})"
    if row.wins + row.losses < votes.FEW:
        return f"{share}: too few to say"
    return f"{share}: may be chance" if row.low <= 0.5 <= row.high else share


def _ratings(kind: Sequence[votes.Vote]) -> list[tuple[str, str, int]]:
    """(actor, points with their interval, votes), the strongest first."""
    return [
        (TITLES.get(row.name, row.name), f"{row.points:+.0f} ({row.low:+.0f} to {row.high:+.0f})", row.choices)
        for row in votes.ratings(kind)
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"
