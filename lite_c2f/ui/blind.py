"""Blind vote: two answers without names, a verdict, then the names; votes become preference data."""

import hashlib
import random
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.chat import ALL_PANES, TITLES, ChatSettings, Pane
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.ui.answering import (
    NOTIFYING,
    QUICK,
    TAB_NUMBER,
    Notice,
    Served,
    answers,
    ask_row,
    example_row,
    failure,
    page_settings,
    question_of,
    ratio_slider,
    refuse_while_answering,
    restored,
    settings_fold,
)
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.figures import figure_table
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.render import answer_view, title
from lite_c2f.ui.saving import page_of
from lite_c2f.ui.store import votes
from lite_c2f.ui.store.conversations import Reply

VIEW = "vote"
FOCUS = "() => document.querySelector('#vote-prompt textarea')?.focus()"  # the button that was pressed is gone
LETTERS = ("A", "B")
CHOICES = {"A": "A is better", "B": "B is better", "tie": "Tie", "both_bad": "Both bad"}
ANY = "Any two of Coarse, Fine and Baseline"
ENDED = {"": "writing", "limit": "cut off", "stopped": "cut off", "error": "failed"}  # shown until the vote
COUNTED = ("", "against", "won", "lost", "tie", "both bad", "share won (95% interval)")
PAIRS = [(f"{TITLES[a]} and {TITLES[b]}", f"{a} {b}") for a, b in combinations(ALL_PANES, 2)]


class Ballot(NamedTuple):
    """Two answers to vote on."""

    prompt: str
    actors: tuple[str, ...]  # A's, B's
    settings: ChatSettings
    replies: dict[str, Reply]  # by letter
    choice: str = ""  # "" until the vote
    done: bool = False  # both answers are whole, and scored: nothing more will be drawn

    @property
    def writing(self) -> bool:
        """Whether an answer is still to come or being written."""
        return not self.done and not (
            len(self.replies) == len(LETTERS) and all(r.finish for r in self.replies.values())
        )

    @property
    def complete(self) -> bool:
        """Whether it can be voted on: both answers are whole and scored, neither failed, and they differ.

        A vote before the scores would be drawn over by them.
        """
        finishes = [reply.finish for reply in self.replies.values()]
        answered = len(finishes) == len(LETTERS) and all(finish and finish != "error" for finish in finishes)
        return self.done and answered and not self.same

    @property
    def same(self) -> bool:
        """Whether both answers are whole with the same text."""
        replies = list(self.replies.values())
        ended = len(replies) == len(LETTERS) and all(reply.finish for reply in replies)
        return self.done and ended and len({reply.text for reply in replies}) == 1


def blind_view(served: Served, identity: list[Any]) -> None:
    """Add the view to the page that is being built. identity: hidden boxes, of the owner and of the session."""
    heads, views = {}, {}
    with gr.Row(equal_height=True):
        for letter in LETTERS:
            with gr.Column(min_width=250, elem_classes="pane"):
                heads[letter] = gr.HTML(title(f"Answer {letter}"))
                views[letter] = gr.HTML(_answer(None, letter), elem_classes="view", elem_id=f"blind-{letter}")
    verdict = gr.HTML(_verdict(None), elem_classes="verdict")
    with gr.Row(elem_classes="tools"):
        buttons = {
            choice: gr.Button(label, interactive=False, elem_id=f"vote-{choice}") for choice, label in CHOICES.items()
        }
    prompt, send, halt = ask_row("Ask two of them, without knowing which", "vote-")
    example_row(served.chat, prompt)
    with gr.Row():
        pair = gr.Dropdown([(ANY, ""), *PAIRS], value="", label="Who meets whom", min_width=260)
        ratio = ratio_slider(served.chat, "vote-ratio")
    settings = settings_fold(served.chat)
    with gr.Accordion("The count so far", open=False):
        count = gr.HTML(vote_counts(served), elem_classes="figures")

    shown = [*heads.values(), *views.values(), verdict, *buttons.values(), send, halt]

    def ask(
        request: gr.Request, text: str, pair: str, ratio: float, *settings_and_identity: Any
    ) -> Iterator[list[Any]]:
        """Two answers in random order."""
        *inputs, owner, session = settings_and_identity
        page, settings = page_of(served, request.session_hash, owner, session), page_settings(ratio, *inputs)
        actors = tuple(pair.split()) if pair else tuple(random.sample(ALL_PANES[:3], 2))
        actors = tuple(random.sample(actors, 2))
        try:
            refuse_while_answering(page, VIEW)
            ballot = Ballot(question_of(text), actors, settings, {})
        except Notice as notice:
            gr.Info(str(notice))
            yield [gr.skip()] * (1 + len(shown))
            return
        panes = [Pane(letter, actor) for letter, actor in zip(LETTERS, actors, strict=True)]
        question, box = [Turn("human", ballot.prompt)], ""
        state, before = page.view_state, page.view_state.get(VIEW)
        for snapshot in answers(served, page, VIEW, dict.fromkeys(LETTERS, question), panes, settings):
            if state.get(VIEW) is not before:  # of a reloaded page, or another question's
                break
            before = state[VIEW] = ballot = ballot._replace(replies=snapshot.replies)
            yield [box, *_draw(ballot)]
            box = gr.skip()
        if state.get(VIEW) is not before:  # Gradio sends an event's last update once more when it ends
            yield [gr.skip()] * (1 + len(shown))
            return
        ballot = state[VIEW] = ballot._replace(done=True)
        yield [box, *_draw(ballot)]

    def stop(request: gr.Request) -> None:
        served.pages.of(request.session_hash).stop(VIEW)

    gr.on(
        [prompt.submit, send.click],
        ask,
        [prompt, pair, ratio, *settings, *identity],
        [prompt, *shown],
        show_progress="hidden",
        trigger_mode="multiple",  # a second question gets a notice
        concurrency_limit=None,
        api_visibility="private",
    )
    halt.click(stop, None, None, **QUICK)
    if Context.root_block is not None:  # the page is as old as the server
        Context.root_block.load(_reopener(served), identity[1], [*shown, count], js=TAB_NUMBER, **QUICK)
    for choice, button in buttons.items():
        button.click(_voter(served, choice), identity, [*shown, count], trigger_mode="once", **NOTIFYING).then(
            None, None, None, js=FOCUS
        )


def _draw(ballot: Ballot | None) -> list[Any]:
    """Heads, answers, verdict and buttons, in the order of `shown`."""
    voted = bool(ballot and ballot.choice)
    names = [f"Answer {letter}" for letter in LETTERS]
    if ballot and voted:
        names = [f"Answer {letter}: {TITLES[actor]}" for letter, actor in zip(LETTERS, ballot.actors, strict=True)]
    can_vote = bool(ballot and ballot.complete and not voted)
    writing = bool(ballot and ballot.writing)
    buttons = [gr.Button(interactive=can) for can in (*[can_vote] * len(CHOICES), not writing, writing)]
    return [*map(title, names), *(_answer(ballot, letter) for letter in LETTERS), _verdict(ballot), *buttons]


def _reopener(served: Served) -> Any:
    def reopen(tab: str, request: gr.Request) -> list[Any]:
        """The ballot that the tab had before it was reloaded, and the count."""
        state = served.pages.continued(request.session_hash, tab).view_state
        if ballot := state.get(VIEW):
            ballot = state[VIEW] = ballot._replace(replies=restored(ballot.replies), done=True)
        return [*_draw(ballot), vote_counts(served)]

    return reopen


def _voter(served: Served, choice: str) -> Any:
    def vote(owner: str, session: str, request: gr.Request) -> list[Any]:
        page = page_of(served, request.session_hash, owner, session)
        with page.lock:
            ballot = page.view_state.get(VIEW)
            if ballot is None or not ballot.complete or ballot.choice:  # such as after a second click
                return [*_draw(ballot), vote_counts(served)]
            ballot = ballot._replace(choice=choice)
            try:
                votes.record(served.votes, vote_of(ballot, page, served))
            except (C2FError, OSError) as error:
                raise failure(error) from None
            page.view_state[VIEW] = ballot
        return [*_draw(ballot), vote_counts(served)]

    return vote


def vote_of(ballot: Ballot, page: PageSession, served: Served) -> votes.Vote:
    """A ballot as a line of votes.jsonl."""
    by_actor = {actor: ballot.replies[letter] for letter, actor in zip(LETTERS, ballot.actors, strict=True)}
    settings = ballot.settings._asdict()
    return votes.Vote(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        voter=hashlib.sha256(page.owner.encode()).hexdigest()[:32],  # tells voters apart, and opens nothing
        turns=(Turn("human", ballot.prompt),),
        shown=ballot.actors,
        answers={actor: reply.text for actor, reply in by_actor.items()},
        ended={actor: reply.finish in ("eos", "stop") for actor, reply in by_actor.items()},
        choice=ballot.choice,
        seeds={actor: reply.seed for actor, reply in by_actor.items()},
        ratio=served.chat.ratio if ballot.settings.ratio is None else ballot.settings.ratio,
        settings=settings,
        run=served.facts,
        system=str(settings["system"]),
    )


def _answer(ballot: Ballot | None, letter: str) -> str:
    """One answer; until the vote without the figures that could tell which actor gave it."""
    if ballot is None:
        return fill("blind_answer.html", prompt=None)
    reply = ballot.replies.get(letter)
    view = answer_view(reply) if reply else None
    state = ENDED.get(reply.finish or "", "ended") if reply else "waiting"
    return fill("blind_answer.html", prompt=ballot.prompt, answer=view, voted=bool(ballot.choice), state=state)


def _verdict(ballot: Ballot | None) -> str:
    if ballot is None:
        return ""
    if ballot.same:
        return "Both say the same: there is nothing to choose. Ask again, or something else."
    if not ballot.choice:
        return "Which is better?" if ballot.complete else ""
    names = dict(zip(LETTERS, (TITLES[actor] for actor in ballot.actors), strict=True))
    verdict = {"tie": "a tie", "both_bad": "both bad"}.get(ballot.choice) or f"for {names[ballot.choice]}"
    table = figure_table({f"{letter}: {names[letter]}": reply for letter, reply in ballot.replies.items()})
    return fill("blind_verdict.html", verdict=verdict, names=names, table=table)


def vote_counts(served: Served) -> str:
    """The count of all votes on this run, as a table."""
    try:
        counts, error = votes.tally(votes.read(served.votes)), ""
    except C2FError as unreadable:
        counts, error = [], str(unreadable)
    rows = []
    for row in counts:
        rate = "" if row.rate is None else f"{row.rate:.0%} ({row.low:.0%} to {row.high:.0%})"
        rows.append((TITLES[row.left], TITLES[row.right], row.wins, row.losses, row.ties, row.both_bad, rate))
    run = shlex.quote(str(served.chat.run))
    return fill("vote_counts.html", error=error, columns=COUNTED, rows=rows, run=run)
