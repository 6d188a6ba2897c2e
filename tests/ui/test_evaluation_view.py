"""Evaluation tab: what a visitor's clicks lead to, what is shown of any run, and that no text of a model is markup."""

import gc
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lite_c2f.evaluation.prompt_table import ActorAnswer, PromptRow, Query
from lite_c2f.ui import evaluation_html, evaluation_view, prompt_choice, prompt_set_view
from lite_c2f.ui.evaluation_view import Place

EVIL = '<img src=x onerror="window.hit=1">${window.hit=2} {{x}} `y`'


def answer(reward, tokens=4, finish="eos", text="It is 5."):
    return ActorAnswer(text, finish, tokens, reward, 0.25)


def prompt_rows(count):
    """Fine loses to the instruct model on all but the first prompt, by more and more."""
    return [
        PromptRow(number, f"prompt {number}", "", "", {"instruct": answer(number), "fine": answer(0.0, 10 + number)})
        for number in range(count)
    ]


def asked(place, preset="all", search=""):
    return (preset, search, "", "", place)


def drawn(rows, *query):
    names = ("table", "back", "on", "answers", "before", "after", "place")
    return dict(zip(names, evaluation_view._draw(rows, *query), strict=True))


def test_pages_of_fifty_rows():
    rows = prompt_rows(120)
    first, last = (drawn(rows, *asked(Place(page=page))) for page in (0, 99))  # one that is no more is the last
    assert "1 to 50 of 120" in first["table"] and "101 to 120 of 120" in last["table"]
    assert first["table"].count("data-row=") == 50 and last["table"].count("data-row=") == 20
    assert (first["back"].interactive, first["on"].interactive) == (False, True)
    assert (last["back"].interactive, last["on"].interactive) == (True, False)


def test_steps_follow_the_order_of_the_table_and_its_pages():
    """Worst loss first: 119, 118, ... 1. From the 50th (70) the next one (69) is on the second page."""
    rows, place = prompt_rows(120), Place(chosen=70)
    found = evaluation_view._found(rows, *asked(place, preset="lost"))
    assert [row.number for row in found[:3]] == [119, 118, 117] and len(found) == 119
    assert evaluation_view._stepper(1)(found, place, "") == Place(chosen=69, page=1)
    assert evaluation_view._stepper(-1)(found, place, "") == Place(chosen=71)
    assert evaluation_view._stepper(1)(found, Place(chosen=1), "") == Place(chosen=1, page=2)  # the last one
    assert evaluation_view._stepper(1)(found, Place(chosen=0), "") == Place(chosen=119)  # not among them: the first
    shown = drawn(rows, *asked(place, preset="lost"))
    assert "prompt 50 of 119 in the table" in shown["answers"] and "<blockquote" in shown["answers"]
    assert "not among the prompts" in drawn(rows, *asked(Place(chosen=0), preset="lost"))["answers"]


def test_a_column_shows_its_highest_first_and_then_the_other_way():
    place = evaluation_view._sort([], Place(page=2), "tokens:fine")
    assert place == Place("tokens:fine", descending=True)
    assert evaluation_view._sort([], place, "tokens:fine") == Place("tokens:fine", descending=False)
    assert evaluation_view._sort([], place, "prompt") == Place("prompt", descending=False)
    table = drawn(prompt_rows(3), *asked(place))["table"]
    assert table.count("aria-sort") == 1 and 'aria-sort="descending"' in table
    assert table.index("prompt 2") < table.index("prompt 1") < table.index("prompt 0")


@pytest.mark.parametrize("sent", ["", "-1", "7", "../../etc/passwd", "nonsense:fine", "1.0", "١"])
def test_what_a_browser_sends_is_looked_up_and_nothing_else(sent):
    rows = prompt_rows(3)
    assert evaluation_view._choose(rows, Place(chosen=2), sent) == Place(chosen=2)
    assert "1 to 3 of 3" in drawn(rows, sent, "", "", "", evaluation_view._sort(rows, Place(), sent))["table"]


def test_no_text_is_markup():
    rows = [PromptRow(0, EVIL, EVIL, EVIL, {"fine": answer(1.0, text=EVIL), "coarse": answer(0.5)})]
    for markup in (
        evaluation_html.table(rows, rows, Query(), 0),
        evaluation_html.answers(rows[0], "1 of 1"),
    ):
        assert "<img" not in markup and "&lt;img" in markup and not set(markup) & set("${}`")


def test_a_run_says_what_is_missing_and_then_what_was_found(tmp_path):
    """64 of 100 won: Wilson's 95% interval is (0.542, 0.727)."""
    run, folder = tmp_path / "run", tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    state = prompt_choice.state_of_run(run)
    assert isinstance(state, str) and "have not been compared yet" in state and "Comparison" in state
    lines = [
        {
            "prompt": "?",
            "actor": actor,
            "response": "!",
            "finish": "eos",
            "tokens": 3,
            "reward": 0.5,
            "repeated_4gram": 0,
        }
        for actor in ("instruct", "fine")
    ]
    (folder / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wins = {"rate": 0.64, "se": 0.048, "controlled": 0.6, "length_effect": 0.1, "prompts": 100}
    figures = {"fine": {"reward_se": 0.125, "distinct_1": 0.5}}
    (folder / "metrics.json").write_text(json.dumps({"actors": figures, "wins": {"fine over instruct": wins}}))
    (run / "summary.json").write_text(json.dumps({"actors": {"fine": {"reward": 0.25}}}))
    state = prompt_choice.state_of_run(run)
    shown = evaluation_html.summary(run, state)
    assert "<td>0.542</td><td>0.727</td>" in shown and "<td>0.250 ± 0.125</td>" in shown and "<svg" in shown
    assert "lite-c2f judge" in shown and "lite-c2f eval --tasks" in shown
    (folder / "general.json").write_text("{}")  # of another format
    changed = prompt_choice.state_of_run(run)
    assert changed != state
    assert "general.json" in evaluation_html.summary(run, changed)
    (folder / "responses.jsonl").write_text("{}\n")
    assert "has another format" in prompt_choice.state_of_run(run)


@pytest.fixture
def refresh():
    """The view's function that its timer calls, on three prompts of a set that is being answered; and its prompts."""
    controls = prompt_choice.Controls((("Held-out prompts of the run", ""), ("mine", "m")), "m", "", True, False)
    evaluation = SimpleNamespace(max_tokens=8, temperature=0.0)
    chat = SimpleNamespace(config=SimpleNamespace(evaluation=evaluation, run=SimpleNamespace(seed=0)), context=64)
    prompts = SimpleNamespace(
        sets=SimpleNamespace(chat=chat, work_of=lambda owner: None, go_on=None, delete=None),
        version=("version", 1),
        rows=lambda state: prompt_rows(3),
        summary=lambda state: "summary",
        state=lambda owner, which: prompts.version,
        controls=lambda owner, which: controls._replace(which=which),
    )
    with gr.Blocks() as page, gr.Tabs(), gr.Tab("Evaluation"):
        evaluation_view.evaluation_view(prompts, gr.Textbox())
    (found,) = {each.fn for each in page.fns.values() if each.name == "refresh"}
    yield found, prompts, page
    del page
    gc.collect()


def skipped(update):
    return update == gr.skip()


# Gradio leaves event loops and their sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_visitor_chose_while_the_timers_answer_was_on_its_way_is_drawn_by_the_next(refresh):
    """The timer never sets the place, the filters or the list of sets back to what it read when it began."""
    refresh, prompts, _ = refresh
    sent, *first = refresh(None, "o", "m", "all", "", "", "", Place())
    table, place, which = 4, 10, 11  # of the updates after what was sent
    assert "data-row" in first[table] and first[place] == Place()
    assert all(skipped(update) for update in refresh(sent, "o", "m", "all", "", "", "", Place()))
    prompts.version = ("version", 2)
    _, *late = refresh(sent, "o", "m", "all", "", "", "", Place())  # began before a click on a row
    assert "data-row" in late[table] and skipped(late[place]) and "value" not in late[2]._constructor_args[0]
    sent, *after = refresh(sent, "o", "m", "all", "", "", "", Place(chosen=1))
    assert "prompt 2 of 3" in after[7] and skipped(after[place])
    sent, *searched = refresh(sent, "o", "m", "all", "prompt 2", "", "", Place(chosen=1))  # its own answer was lost
    assert searched[table].count("data-row=") == 1 and skipped(searched[0])
    assert all(skipped(update) for update in refresh(sent, "o", "m", "all", "prompt 2", "", "", Place(chosen=1)))
    assert skipped(searched[which])
    sent, *other = refresh(sent, "o", "", "all", "", "", "", Place(chosen=1))  # other prompts: from the beginning
    assert other[place] == Place()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_event_is_left_out_while_one_before_it_is_answered(refresh):
    """A tab that is opened right after another; filters and searches, of which the last one counts."""
    modes = [(each.name, {name for _, name in each.targets}, each.trigger_mode) for each in refresh[2].fns.values()]
    assert ("only_here", {"select"}, "multiple") in modes
    assert [mode for name, on, mode in modes if name == "handler" and "input" in on] == ["always_last"]
    assert [mode for name, on, mode in modes if name == "handler" and on == {"change"}] == ["always_last"]


def test_a_list_of_sets_that_has_grown_keeps_what_is_chosen():
    controls = prompt_choice.Controls((("Held-out prompts of the run", ""),), "", "", False, False)
    grown = controls._replace(choices=(*controls.choices, ("mine", "m")))
    (which, *_) = prompt_set_view.updates(grown, controls, "")
    assert which._constructor_args[0] == {"choices": list(grown.choices)}
    (which, *_) = prompt_set_view.updates(grown._replace(which="m"), controls, "")
    assert which._constructor_args[0]["value"] == "m"
