"""Prompt sets at work, on the chat's real queue and streams; when an answer ends is decided by the test."""

import threading
import time

import pytest
from likeness import alike

pytest.importorskip("gradio")

from lite_c2f.actors.reply import Reply
from lite_c2f.chat import ALL_PANES, Chat, ChatSettings
from lite_c2f.chat.fair_queue import FairQueue
from lite_c2f.chat.panes import check_settings, pane_of
from lite_c2f.chat.stream import AnswerStream, PendingQuestion
from lite_c2f.errors import C2FError
from lite_c2f.ui import prompt_sets as at_work
from lite_c2f.ui.prompt_choice import HELD_OUT, Prompts, exported
from lite_c2f.ui.prompt_sets import PromptSets
from lite_c2f.ui.store import prompt_sets

OWNER, OTHER = "ab" * 16, "cd" * 16
SETTINGS = ChatSettings(max_tokens=8, seed=7)
RUN = {"name": "toy", "made_of": {"coarse": "1"}}


class Engine:
    """The queue and the streams of `Chat`, with room for `room` questions; answers end where the test says so."""

    def __init__(self, room=100):
        self.queue, self.active, self.lock, self.room = FairQueue(), [], threading.Lock(), room
        self.asked = []  # (text, seed, asker) in the order in which they were asked

    def check(self, settings):
        check_settings(settings, 4096)

    def busy(self):
        with self.lock:
            return len(self.active), len(self.queue)

    def stream(self, text, panes, settings, *, score, asker):
        question = PendingQuestion([pane_of(pane) for pane in panes], {"text": text}, settings, client=asker)
        with self.lock:
            self.queue.put(question, self.active)
            self.asked.append((text, settings.seed, asker))
            self._begin()
        return AnswerStream(question, self._reply_of, lambda _: 0, 0.0)

    def _begin(self):
        while len(self.active) < self.room and self.queue.first() is not None:
            self.active.append(self.queue.pop())

    def _reply_of(self, question, pane):
        finish, message = question.not_started.get(pane.key, (None, ""))
        text = f"{pane.key} on {question.histories['text']}"
        return Reply(pane.key, text, 4, 0.0, finish, message, reward=0.25, seed=question.settings.seed)

    def texts(self):
        with self.lock:
            self.active = [question for question in self.active if not question.cancelled]
            return [question.histories["text"] for question in self.active]

    def end(self, text, failing=""):
        """All answers to a question end; failing: but for this pane's."""
        with self.lock:
            question = next(each for each in self.active if each.histories["text"] == text)
            self.active.remove(question)
            for pane in ALL_PANES:
                question.not_started[pane] = ("error", "no memory") if pane == failing else ("eos", "")
            self._begin()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(at_work, "PAUSE", 0.002)
    monkeypatch.setattr(at_work, "RETRY", 0.002)
    monkeypatch.setattr(at_work, "SAVE_EVERY", 0.0)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def sets(engine, tmp_path):
    sets = PromptSets(engine, tmp_path, RUN)
    yield sets
    for owner in (OWNER, OTHER):
        sets.stop(owner)


def saved(sets, id):
    return prompt_sets.load(sets.folder, OWNER, id)


def test_a_set_is_stopped_and_continued_where_it_was(sets, engine, tmp_path):
    id = sets.begin(OWNER, "", "a\nb\nc\nd", SETTINGS).id
    until(lambda: engine.texts() == ["a", "b", "c"])
    engine.end("b")
    until(lambda: engine.texts() == ["a", "c", "d"])
    sets.stop(OWNER)
    assert engine.texts() == [] and not sets.work_of(OWNER).active  # what was being answered is given up
    assert prompt_sets.unanswered(saved(sets, id)) == [0, 2, 3]
    engine.asked.clear()
    restarted = PromptSets(engine, tmp_path, RUN)  # as after the end of the server: by the disk alone
    assert "1 of 4 questions" in Prompts(tmp_path, restarted).controls(OWNER, id).status
    restarted.go_on(OWNER, id)
    until(lambda: engine.texts() == ["a", "c", "d"])
    assert engine.asked == [(text, seed, f"set of {OWNER}") for text, seed in (("a", 7), ("c", 9), ("d", 10))]
    for text in "dca":
        engine.end(text)
    until(lambda: not restarted.work_of(OWNER).active)
    done = saved(sets, id)
    assert prompt_sets.unanswered(done) == [] and (done.name, done.settings["seed"]) == ("a", 7)
    assert [(row["prompt"], row["actor"]) for row in done.rows[:5]] == [
        *(("a", actor) for actor in ("base", "instruct", "coarse", "fine")),
        ("b", "base"),
    ]
    row = {"prompt": "a", "actor": "instruct", "response": "baseline on a", "finish": "eos", "tokens": 4}
    assert done.rows[1] == row | {"reward": 0.25, "repeated_4gram": 0.0, "seed": 7}
    with pytest.raises(C2FError, match="a set with all of its answers"):
        restarted.go_on(OWNER, id)


def test_what_a_killed_server_had_is_on_the_disk(sets, engine):
    id = sets.begin(OWNER, "", "a\nb\nc\nd", SETTINGS).id
    until(lambda: len(engine.texts()) == 3)
    engine.end("a")
    until(lambda: prompt_sets.unanswered(saved(sets, id)) == [1, 2, 3])  # while the others are being answered


def test_a_set_asks_one_question_at_a_time_while_others_ask(sets, engine):
    visitor = engine.stream("hello", ["fine"], ChatSettings(), score=True, asker="ben")
    sets.begin(OWNER, "", "a\nb\nc\nd\ne", SETTINGS)
    for text in "ab":
        until(lambda text=text: text in engine.texts())
        time.sleep(0.03)
        assert engine.texts() == ["hello", text]
        engine.end(text)
    until(lambda: "c" in engine.texts())
    engine.end("hello")
    until(lambda: engine.texts() == ["c", "d", "e"])
    visitor.close()


def test_a_visitor_waits_for_one_question_of_a_set(sets):
    """Room for one: `a` is answered and two more wait; the visitor is before them, the owner in Compare too."""
    sets.chat = engine = Engine(room=1)
    sets.begin(OWNER, "", "a\nb\nc\nd", SETTINGS)
    until(lambda: engine.busy() == (1, 2))
    visitors = [engine.stream(name, ["fine"], ChatSettings(), score=True, asker=name) for name in ("ben", OWNER)]
    for text in ("a", "ben", OWNER):
        assert engine.texts() == [text]
        engine.end(text)
    assert engine.texts() == ["b"] and len(visitors) == 2


def test_a_full_queue_is_tried_again_and_never_exceeded(sets):
    sets.chat = engine = Engine(room=0)
    crowd = [engine.stream("?", ["fine"], ChatSettings(), score=True, asker=None) for _ in range(64)]
    id = sets.begin(OWNER, "", "a", SETTINGS).id
    time.sleep(0.03)
    assert engine.busy() == (0, 64) and sets.work_of(OWNER).active
    crowd.pop().close()
    engine.room = 1
    with engine.lock:
        engine._begin()  # the first of the crowd begins
    until(lambda: ("a", 7, f"set of {OWNER}") in engine.asked)
    assert saved(sets, id).rows == () and crowd


def test_a_failed_answer_is_shown_counts_nowhere_and_is_asked_again(sets, engine, tmp_path):
    id = sets.begin(OWNER, "", "a\nb", SETTINGS).id
    until(lambda: engine.texts() == ["a", "b"])
    engine.end("a", failing="fine"), engine.end("b")
    until(lambda: not sets.work_of(OWNER).active)
    prompts = Prompts(tmp_path, sets)
    failed = prompts.rows(prompts.state(OWNER, id))[0].answers["fine"]
    assert (failed.finish, failed.reward, failed.message) == ("error", None, "no memory")
    controls = prompts.controls(OWNER, id)
    assert "1 of 2 questions" in controls.status and controls.can_go_on and not controls.can_stop
    sets.go_on(OWNER, id)
    until(lambda: engine.texts() == ["a"])
    engine.end("a")
    until(lambda: not sets.work_of(OWNER).active)
    assert prompts.controls(OWNER, id).status == "" and len(saved(sets, id).rows) == 8


def test_one_set_of_an_owner_and_so_many_of_all_are_at_work(sets, engine, monkeypatch):
    sets.begin(OWNER, "first", "a", SETTINGS)
    with pytest.raises(C2FError, match="your set 'first' is being answered; expected one at a time; wait for it"):
        sets.begin(OWNER, "", "b", SETTINGS)
    sets.begin(OTHER, "", "b", SETTINGS)
    monkeypatch.setattr(at_work, "MAX_WORKING", 2)
    with pytest.raises(C2FError, match="2 sets of other visitors"):
        sets.begin("ef" * 16, "", "c", SETTINGS)
    assert [entry.name for entry in prompt_sets.list_sets(sets.folder, OWNER)] == ["first"]  # nothing of the refused


@pytest.mark.parametrize(
    ("owner", "text", "settings", "message"),
    [
        (OWNER, "", SETTINGS, "no question"),
        (OWNER, "a", SETTINGS._replace(max_tokens=5000), "max_tokens=5000"),
        (OWNER, "a\nb", SETTINGS._replace(seed=2**63 - 1), "seed="),  # of the second question
        ("../" + OWNER, "a", SETTINGS, "no such prompt set"),
        ("", "a", SETTINGS, "no such prompt set"),
    ],
)
def test_what_is_refused_leaves_nothing(sets, tmp_path, owner, text, settings, message):
    with pytest.raises(C2FError, match=message):
        sets.begin(owner, "", text, settings)
    assert list(tmp_path.iterdir()) == [] and sets.work_of(owner) is None


def test_a_deleted_set_does_not_come_back(sets, engine):
    id = sets.begin(OWNER, "", "a\nb", SETTINGS).id
    until(lambda: len(engine.texts()) == 2)
    engine.end("a")
    with pytest.raises(C2FError, match="no such prompt set"):
        sets.delete(OTHER, id)
    sets.delete(OWNER, id)
    time.sleep(0.02)
    assert prompt_sets.list_sets(sets.folder, OWNER) == [] and engine.texts() == []


def test_other_actors_do_not_continue_a_set(sets, engine, tmp_path):
    id = sets.begin(OWNER, "", "a\nb", SETTINGS).id
    sets.stop(OWNER)
    retrained = PromptSets(engine, tmp_path, RUN | {"made_of": {"coarse": "2"}})
    with pytest.raises(C2FError, match="other actors of this run"):
        retrained.go_on(OWNER, id)


def test_what_cannot_be_saved_is_said(sets, engine, tmp_path):
    id = sets.begin(OWNER, "", "a\nb", SETTINGS).id
    until(lambda: len(engine.texts()) == 2)
    (tmp_path / OWNER).rename(tmp_path / "away")
    (tmp_path / OWNER).write_text("a file in place of the folder")
    engine.end("a")
    until(lambda: not sets.work_of(OWNER).active)
    assert "the last answers are not saved" in sets.work_of(OWNER).message and engine.texts() == []
    (tmp_path / OWNER).unlink()
    (tmp_path / "away").rename(tmp_path / OWNER)
    assert "are not saved" in Prompts(tmp_path, sets).controls(OWNER, id).status


def test_the_tab_shows_a_set_with_its_figures_and_no_text_is_markup(sets, engine, tmp_path):
    evil = '<img src=x onerror="window.hit=1">${window.hit=2} {{x}} `y`'
    id = sets.begin(OWNER, evil, f"{evil}\nb", SETTINGS).id
    until(lambda: len(engine.texts()) == 2)
    prompts = Prompts(tmp_path, sets)
    before = prompts.state(OWNER, id)
    assert "0 of 2 answered" in prompts.controls(OWNER, id).status
    assert [row.answers for row in prompts.rows(before)] == [{}, {}]
    engine.end(evil)
    until(lambda: prompts.state(OWNER, id) != before)
    controls, state = prompts.controls(OWNER, id), prompts.state(OWNER, id)
    assert "1 of 2 answered, about" in controls.status and controls.can_stop and not controls.can_go_on
    summary = prompts.summary(state)
    assert "<td>0.250 ± 0.000</td><td>4.000 ± 0.000</td>" in summary  # reward and tokens
    assert "fine over instruct" in summary and "<svg" in summary and "temperature 0.7" in summary
    for markup in (summary, controls.status):
        assert "<img" not in markup and "&lt;img" in markup and not set(markup) & set("${}`")
    text, name = exported(sets, OWNER, id)
    assert text.count("\n") == 4 and OWNER not in text and name == f"lite_c2f-prompts-{id[:8]}.jsonl"
    assert prompts.controls(OTHER, id).which == HELD_OUT and len(prompts.controls(OTHER, id).choices) == 1
    assert "no such prompt set" in prompts.state(OTHER, id)
    assert prompts.controls("", "").choices == prompts.controls(OTHER, "").choices  # a page without its owner yet


@pytest.mark.slow
def test_a_visitor_is_answered_while_a_set_of_the_toy_actors_is_at_work(toy_run, tmp_path):
    """150 questions of about 45 tokens each: a visitor who has to wait for one or two of them is done long before."""
    chat = Chat(toy_run)
    sets = PromptSets(chat, tmp_path, RUN)
    questions = [
        f"Tom has {a} apples, finds {b}, loses {c}. How many now?"
        for a in range(1, 7)
        for b in range(1, 6)
        for c in range(1, 6)
    ]
    id = sets.begin(OWNER, "", "\n".join(questions), ChatSettings(max_tokens=64, temperature=0.0)).id
    try:
        until(lambda: sets.work_of(OWNER).answered >= 3)
        before = sets.work_of(OWNER).answered
        replies = chat.stream("Lea has 3 books, gets 2, sells 1. How many now?", ["fine"], score=True, asker=OTHER)
        assert {reply.finish for reply in replies if reply.finish} <= {"eos", "stop", "limit"}
        assert sets.work_of(OWNER).active and sets.work_of(OWNER).answered - before < 100
    finally:
        sets.stop(OWNER)
    first = [row for row in saved(sets, id).rows if row["prompt"] == questions[0]]
    alone = chat.answer(questions[0], ALL_PANES, max_tokens=64, temperature=0.0)
    for row in first:  # as in Compare, up to rounding in batches of another size
        text = alone[at_work.PANES[row["actor"]]].text
        assert alike(row["response"], text) >= min(10, len(text))
    assert all(isinstance(row["reward"], float) for row in first)
