"""Blind vote: two answers without names, a verdict, then the names; votes become preference data."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, combinations
from typing import Any

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
    Snapshot,
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
from lite_c2f.ui.ballot import LAST_VOTE, LETTERS, VIEW, Ballot, cast, skip, take_back
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.figures import figure_table
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.render import answer_view, title
from lite_c2f.ui.saving import page_of
from lite_c2f.ui.store import votes
from lite_c2f.ui.vote_results import download_row, vote_counts

FOCUS = "() => document.querySelector('#vote-prompt textarea')?.focus()"  # the button that was pressed is gone
CHOICES = {"A": "A is better", "B": "B is better", "tie": "Tie", "both_bad": "Both bad"}
KEYS = {"A": "1", "B": "2", "tie": "3", "both_bad": "0"}  # page.js presses the button whose label ends with the key
ANY = "Any two of Coarse, Fine and Baseline"
ENDED = {"": "writing", "limit": "cut off", "stopped": "cut off", "error": "failed"}  # shown until the vote
PAIRS = [(f"{TITLES[a]} and {TITLES[b]}", f"{a} {b}") for a, b in combinations(ALL_PANES, 2)]
Change = Callable[[PageSession], Ballot | None]


def blind_view(served: Served, identity: list[Any]) -> gr.HTML:
    """Add the view to the page that is being built. identity: hidden boxes, of the owner and of the session.

    Returns the results of the votes, which `vote_counts` fills.
    """
    heads, views = {}, {}
    with gr.Row(equal_height=True):
        for letter in LETTERS:
            with gr.Column(min_width=250, elem_classes="pane"):
                heads[letter] = gr.HTML(title(f"Answer {letter}"))
                views[letter] = gr.HTML(_answer(None, letter), elem_classes="view", elem_id=f"blind-{letter}")
    verdict = gr.HTML(_verdict(None), elem_classes="verdict")
    with gr.Row(elem_classes="tools"):
        buttons = {
            choice: gr.Button(f"{label} ({KEYS[choice]})", interactive=False, elem_id=f"vote-{choice}")
            for choice, label in CHOICES.items()
        }
        skipping = gr.Button("Skip", interactive=False, elem_id="vote-skip")
        taking_back = gr.Button("Take last vote back", interactive=False, elem_id="vote-back")
    prompt, send, halt = ask_row("Ask two of them, without knowing which", "vote-")
    example_row(served.chat, prompt)
    with gr.Row():
        pair = gr.Dropdown([(ANY, ""), *PAIRS], value="", label="Who meets whom", min_width=260)
        ratio = ratio_slider(served.chat, "vote-ratio")
    settings = settings_fold(served.chat)
    with gr.Accordion("Results of the votes", open=True):
        count = gr.HTML(vote_counts(served), elem_id="vote-results", padding=False)
        download_row(served, identity)

    shown = [*heads.values(), *views.values(), verdict, *buttons.values(), skipping, taking_back, send, halt]

    def stop(request: gr.Request) -> None:
        served.pages.of(request.session_hash).stop(VIEW)

    gr.on(
        [prompt.submit, send.click],
        _asker(served, 1 + len(shown)),
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
    changes: list[tuple[gr.Button, Change]] = [
        (button, partial(cast, served, choice=choice)) for choice, button in buttons.items()
    ]
    changes += [(skipping, skip), (taking_back, partial(take_back, served))]
    for button, change in changes:
        button.click(_changing(served, change), identity, [*shown, count], trigger_mode="once", **NOTIFYING).then(
            None, None, None, js=FOCUS
        )
    return count


def _asker(served: Served, outputs: int) -> Any:
    """The handler that asks a question. outputs: how many components it draws."""

    def ask(
        request: gr.Request, text: str, pair: str, ratio: float, *settings_and_identity: Any
    ) -> Iterator[list[Any]]:
        """Two answers in random order; where two are not voted on yet, they answer again, as they were asked."""
        *inputs, owner, session = settings_and_identity
        page, settings = page_of(served, request.session_hash, owner, session), page_settings(ratio, *inputs)
        state, box = page.view_state, ""
        try:
            with page.lock:  # rewards of the answers before arrive at any moment
                ballot = _next_ballot(page, text, pair, settings)
                snapshots = _answering(served, page, ballot)
                first = next(snapshots)  # settings are refused here, before anything has changed
                before = state[VIEW] = ballot
        except Notice as notice:
            gr.Info(str(notice))
            yield [gr.skip()] * outputs
            return
        for snapshot in chain([first], snapshots):
            with page.lock:
                if state.get(VIEW) is not before:  # of a reloaded page, skipped, or another question's
                    break
                before = state[VIEW] = ballot = ballot._replace(replies=snapshot.replies, waits_for=snapshot.waits_for)
            yield [box, *_draw(ballot, page)]
            box = gr.skip()
        with page.lock:
            if mine := state.get(VIEW) is before:
                ballot = state[VIEW] = ballot._replace(done=True)
        if mine or VIEW not in state:  # skipped: what was on its way then is taken off again
            yield [box, *_draw(ballot if mine else None, page)]
        else:  # Gradio sends an event's last update once more when it ends
            yield [gr.skip()] * outputs

    return ask


def _next_ballot(page: PageSession, text: str, pair: str, settings: ChatSettings) -> Ballot:
    """The ballot of a question. pair: two actors; "" for any two. Raises Notice where none can be asked."""
    refuse_while_answering(page, VIEW)
    question = question_of(text)
    last: Ballot | None = page.view_state.get(VIEW)
    if last and last.can_follow:
        return last.followed_by(question)
    actors = pair.split() or random.sample(ALL_PANES[:3], 2)
    return Ballot(question, tuple(random.sample(actors, 2)), settings, {})


def _answering(served: Served, page: PageSession, ballot: Ballot) -> Iterator[Snapshot]:
    panes = [Pane(letter, actor) for letter, actor in zip(LETTERS, ballot.actors, strict=True)]
    turns = {letter: [*ballot.history(letter), Turn("human", ballot.prompt)] for letter in LETTERS}
    return answers(served, page, VIEW, turns, panes, ballot.settings)


def _draw(ballot: Ballot | None, page: PageSession) -> list[Any]:
    """Heads, answers, verdict and buttons, in the order of `shown`."""
    voted = bool(ballot and ballot.choice)
    names = [f"Answer {letter}" for letter in LETTERS]
    if ballot and voted:
        names = [f"Answer {letter}: {TITLES[actor]}" for letter, actor in zip(LETTERS, ballot.actors, strict=True)]
    can_vote = bool(ballot and ballot.complete and not voted)
    writing = bool(ballot and ballot.writing)
    can_skip, can_take_back = ballot is not None and not voted, LAST_VOTE in page.view_state
    can_act = (*[can_vote] * len(CHOICES), can_skip, can_take_back, not writing, writing)
    buttons = [gr.Button(interactive=can) for can in can_act]
    return [*map(title, names), *(_answer(ballot, letter) for letter in LETTERS), _verdict(ballot), *buttons]


def _reopener(served: Served) -> Any:
    def reopen(tab: str, request: gr.Request) -> list[Any]:
        """The ballot that the tab had before it was reloaded, and the count."""
        page = served.pages.continued(request.session_hash, tab)
        state = page.view_state
        if ballot := state.get(VIEW):
            ballot = state[VIEW] = ballot._replace(replies=restored(ballot.replies), done=True, waits_for="")
        return [*_draw(ballot, page), vote_counts(served)]

    return reopen


def _changing(served: Served, change: Change) -> Any:
    """The handler of a button that votes, takes a vote back or skips the question."""

    def handler(owner: str, session: str, request: gr.Request) -> list[Any]:
        page = page_of(served, request.session_hash, owner, session)
        try:
            ballot = change(page)
        except Notice as notice:
            gr.Info(str(notice))
            ballot = page.view_state.get(VIEW)
        except (C2FError, OSError) as error:
            raise failure(error) from None
        return [*_draw(ballot, page), vote_counts(served)]

    return handler


def _answer(ballot: Ballot | None, letter: str) -> str:
    """One answer; until the vote without the figures that could tell which actor gave it."""
    if ballot is None:
        return fill("blind_answer.html", prompt=None)
    reply = ballot.replies.get(letter)
    return fill(
        "blind_answer.html",
        earlier=[(prompt, answer_view(replies[letter])) for prompt, replies in ballot.earlier],
        prompt=ballot.prompt,
        answer=answer_view(reply) if reply else None,
        voted=bool(ballot.choice),
        state=ENDED.get(reply.finish or "", "ended") if reply else ballot.waits_for or "waiting",
    )


def _verdict(ballot: Ballot | None) -> str:
    if ballot is None:
        return ""
    if ballot.same:
        return "Both say the same: there is nothing to choose. Ask again, or something else."
    if not ballot.choice:
        return "Which is better? Vote, or ask both of them something more." if ballot.complete else ""
    names = dict(zip(LETTERS, (TITLES[actor] for actor in ballot.actors), strict=True))
    others = {votes.TIE: "a tie", votes.BOTH_BAD: "both bad", votes.TAKEN_BACK: "taken back"}
    verdict = others.get(ballot.choice) or f"for {names[ballot.choice]}"
    table = figure_table({f"{letter}: {names[letter]}": reply for letter, reply in ballot.replies.items()})
    return fill("blind_verdict.html", verdict=verdict, names=names, table=table)
