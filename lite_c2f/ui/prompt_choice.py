"""Prompts that the Evaluation tab shows: the held-out ones of the run, or a set of the visitor's own questions."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lite_c2f.errors import C2FError
from lite_c2f.evaluation.page import Block, Heading, Text
from lite_c2f.evaluation.prompt_table import PromptRow
from lite_c2f.evaluation.row_figures import blocks_of_rows
from lite_c2f.storage.files import jsonl_text
from lite_c2f.ui import evaluation_html, run_html
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.evaluation_html import Version, prompt_rows, version_of
from lite_c2f.ui.prompt_sets import PromptSets
from lite_c2f.ui.runs import follow
from lite_c2f.ui.store import prompt_sets
from lite_c2f.ui.store.prompt_sets import PromptSet, Stamp

HELD_OUT = ""  # in place of a set's id


class SetVersion(NamedTuple):
    """A set as it is now."""

    folder: Path
    owner: str
    id: str
    stamp: Stamp


Shown = Version | SetVersion | str  # HTML where there is nothing to show


class Controls(NamedTuple):
    """What the controls of sets show."""

    choices: tuple[tuple[str, str], ...]  # label and id; the held-out prompts first
    which: str  # the id of the set that is shown
    status: str  # HTML
    can_stop: bool
    can_go_on: bool


def state_of_run(run: Path) -> Version | str:
    """The version of a run's evaluation; HTML that says what is missing where there is none, or a file is damaged."""
    version = version_of(run)
    if version[0] is None:
        state = follow(run)
        return evaluation_html.unevaluated(state, run_html.header(state) + run_html.bars(state.stages))
    try:
        prompt_rows(run, version)
    except C2FError as error:
        return evaluation_html.damaged(error)
    return version


class Prompts(NamedTuple):
    """The prompts of a run and the sets of its visitors."""

    run: Path
    sets: PromptSets

    def state(self, owner: str, which: str) -> Shown:
        """What there is to show now; it differs from what it was when something has changed."""
        if which == HELD_OUT:
            return state_of_run(self.run)
        try:
            version = SetVersion(self.sets.folder, owner, which, prompt_sets.stamp_of(self.sets.folder, owner, which))
            loaded(version)
        except (C2FError, OSError) as error:
            return evaluation_html.damaged(C2FError(str(error)))
        return version

    def rows(self, state: Shown) -> tuple[PromptRow, ...]:
        """The rows of the table."""
        if isinstance(state, SetVersion):
            return loaded(state)[1]
        return prompt_rows(self.run, state) if isinstance(state, tuple) else ()

    def summary(self, state: Shown) -> str:
        """What stands above the table, as HTML."""
        if isinstance(state, SetVersion):
            return set_summary(state)
        return evaluation_html.summary(self.run, state) if isinstance(state, tuple) else state

    def controls(self, owner: str, which: str) -> Controls:
        """The list of sets, and what can be done now. A set that is no longer there is not shown."""
        try:
            entries = prompt_sets.list_sets(self.sets.folder, owner)
        except C2FError:  # the page does not know its owner yet
            entries = []
        choices = [("Held-out prompts of the run", HELD_OUT)]
        for entry in entries:
            created = entry.created[:16].replace("T", " ")
            choices.append((f"{entry.name} ({_questions(entry.questions)}, {created} UTC)", entry.id))
        chosen = next((entry for entry in entries if entry.id == which), None)
        work = self.sets.work_of(owner)
        working = work is not None and work.active
        unfinished = chosen is not None and chosen.answered < chosen.questions
        status = ""
        if work is not None and working:
            total = len(work.prompt_set.questions)
            left = work.seconds_left
            status = fill(
                "prompt_set_status.html",
                name=work.prompt_set.name,
                answered=total - len(work.todo) + work.answered,
                total=total,
                left="" if left is None else run_html.duration(left),
                stopping=work.stopping,
            )
        elif unfinished and chosen is not None:
            message = work.message if work is not None and work.prompt_set.id == chosen.id else ""
            numbers = {"answered": chosen.answered, "total": chosen.questions}
            status = fill("prompt_set_unfinished.html", message=message, **numbers)
        can_stop = working and work is not None and not work.stopping
        return Controls(tuple(choices), which if chosen else HELD_OUT, status, can_stop, unfinished and not working)


def _questions(count: int) -> str:
    return f"{count} question{'s'[: count != 1]}"


@lru_cache(maxsize=4)
def loaded(version: SetVersion) -> tuple[PromptSet, tuple[PromptRow, ...]]:
    """A set and its rows, read once until its file changes. Raises RunError for a damaged one."""
    prompt_set = prompt_sets.load(version.folder, version.owner, version.id)
    return prompt_set, prompt_sets.table(prompt_set)


@lru_cache(maxsize=4)
def set_summary(version: SetVersion) -> str:
    """How a set was asked, and the figures of its answers so far."""
    prompt_set, _ = loaded(version)
    settings, count = prompt_set.settings, len(prompt_set.questions)
    asked = f"{_questions(count)}, at most {settings.get('max_tokens')} new tokens, temperature "
    asked += f"{settings.get('temperature')}; seed {settings.get('seed')} for the first, one more for each after it."
    blocks: list[Block] = [Heading(prompt_set.name), Text(asked), *blocks_of_rows(prompt_set.rows)]
    return evaluation_html.summary_of(blocks)


def exported(sets: PromptSets, owner: str, which: str) -> tuple[str, str]:
    """A set's rows as the text of a responses.jsonl, and a name for the file. Raises RunError: no such set."""
    prompt_set = prompt_sets.load(sets.folder, owner, which)
    return jsonl_text(list(prompt_set.rows)), f"lite_c2f-prompts-{prompt_set.id[:8]}.jsonl"
