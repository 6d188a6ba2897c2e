"""Answers side by side: the same tokens as the batched sampler, panes and visitors that do not disturb each other."""

import contextlib
import gc
import io
import itertools
import threading
import time

import pytest
from likeness import alike

from lite_c2f.actors.models import InstructModel, answer_base
from lite_c2f.actors.reply import Reply
from lite_c2f.chat import ALL_PANES, PANES, Chat, ChatSettings, Pane, answering, fair_queue, loaded, with_answers
from lite_c2f.chat.panes import AnswerForm
from lite_c2f.chat.prompts import shown
from lite_c2f.cli import chat_terminal
from lite_c2f.cli.chat_terminal import printable, run_terminal
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError, RunError
from lite_c2f.runs.manifest import open_run
from lite_c2f.sampling import Sampling

STOP = "\n\nHuman:"
QUESTION = "Tom has 3 apples, finds 4, loses 2. How many now?"
GREEDY = ChatSettings(max_tokens=40, temperature=0.0)


@pytest.fixture(scope="module")
def chat(toy_run):
    return Chat(toy_run)


@pytest.fixture
def held(chat, monkeypatch):
    """Inside `with held():` answers that have begun stay as they are, and all else of the chat goes on."""
    hold, step = threading.Event(), answering.AnswerRows.step

    def step_or_wait(rows):
        if hold.is_set() and all(len(row.tokens) >= 2 for row in rows.rows if row.finish is None):
            time.sleep(0.005)
        else:
            step(rows)

    @contextlib.contextmanager
    def holding():
        hold.set()
        try:
            yield
        finally:
            hold.clear()

    monkeypatch.setattr(answering.AnswerRows, "step", step_or_wait)
    return holding


def finished(events):
    return {event.pane: event for event in events if event.finish}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 5.", "It is 5."),
        ("It is 5.\n\nHuman: and", "It is 5."),  # whole
        ("It is 5.\n\nHum", "It is 5."),  # begun
        ("It is 5.\n", "It is 5."),
        ("\n\nHuman:", ""),  # at the very beginning
        ("Humans are", "Humans are"),  # not the marker: no line breaks before it
        ("caf\N{REPLACEMENT CHARACTER}", "caf"),  # half of an e with an accent
    ],
)
def test_shown_holds_back_stop_sequences_and_half_characters(text, expected):
    assert shown(text, [STOP]) == expected


def test_a_failed_pane_forgets_the_question_and_the_others_keep_it():
    question = Turn("human", "Hi")
    events = {
        "coarse": Reply("coarse", "Hello", 2, 1.0, "eos"),
        "fine": Reply("fine", "", 0, 0.0, "error", "no memory"),
    }
    after = with_answers({"coarse": [question], "fine": [question]}, events)
    assert after == {"coarse": [question, Turn("assistant", "Hello")], "fine": []}


def test_status_is_one_line():
    assert Reply("fine", "Hi", 1, 84.6, "eos").status == "1 token, 85 tokens/s, ended (EOS)"
    assert Reply("fine", "", 0, 0.0, "error", "no memory").status == "failed: no memory"


def test_printable_drops_what_would_steer_the_terminal():
    assert printable("a\x1b[31mb\r\x07\n\tc") == "a[31mb\n\tc"


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        Chat(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_stream_says_what_the_batched_sampler_says(chat, toy_run, temperature):
    """Seed 0 gives the sampler's first row the very same random numbers, so sampled answers agree too."""
    turns, sampling = (Turn("human", QUESTION),), Sampling(40, temperature, seed=0)
    expected = {
        "coarse": answer_base(chat.actors.roles, "policy", chat.actors.tokenizer, chat.config, [turns], sampling)[0],
        "base": answer_base(chat.actors.roles, "reference", chat.actors.tokenizer, chat.config, [turns], sampling)[0],
    }
    instruct = InstructModel(chat.config, open_run(toy_run)[1].instruct, toy_run / "coarse" / "adapter")
    for pane, ratio in (("fine", chat.ratio), ("baseline", 0.0)):
        with instruct.ratio(ratio):
            expected[pane] = instruct.answer([turns], sampling)[0]
    got = chat.answer(QUESTION, ALL_PANES, max_tokens=40, temperature=temperature, seed=0)
    for pane, answer in expected.items():
        assert (got[pane].tokens, got[pane].finish) == (answer.tokens, answer.finish)
        assert got[pane].text == shown(answer.text, [STOP])


@pytest.mark.slow
def test_one_seed_gives_one_answer_and_others_differ(chat):
    def answers(seed):
        got = chat.answer(QUESTION, max_tokens=24, temperature=1.5, seed=seed)
        return {pane: event.text for pane, event in got.items()}

    first = answers(1)
    assert answers(1) == first
    assert any(answers(seed) != first for seed in (2, 3, 4))


@pytest.mark.slow
def test_ratio_zero_is_the_baseline_and_a_large_one_is_not(chat):
    got = chat.answer(QUESTION, ratio=0.0, max_tokens=24, temperature=0.7)
    assert got["fine"].text == got["baseline"].text
    assert got["fine"].tokens == got["baseline"].tokens
    far = chat.answer(QUESTION, ratio=40.0, max_tokens=24, temperature=0.0)
    near = chat.answer(QUESTION, ratio=0.0, max_tokens=24, temperature=0.0)
    assert far["fine"].text != near["fine"].text
    assert far["baseline"].text == near["baseline"].text


@pytest.mark.slow
def test_text_only_grows_and_a_panes_last_word_has_its_finish(chat):
    events = list(chat.stream(QUESTION, settings=GREEDY))
    for pane in PANES:
        own = [event for event in events if event.pane == pane]
        counts = [event.tokens for event in own]
        assert counts == sorted(set(counts)) and len(counts) > 1
        assert all(after.text.startswith(before.text) for before, after in itertools.pairwise(own))
        assert all("Human" not in event.text for event in own)
        assert [bool(event.finish) for event in own] == [False] * (len(own) - 1) + [True]
        assert own[-1].first_token_s > 0


@pytest.mark.slow
def test_a_cut_answer_that_is_continued_says_what_one_long_answer_says(chat):
    """The toy tokenizer encodes an answer's text to the tokens that were drawn."""
    settings = {"temperature": 0.7, "seed": 3}
    whole, cut = (chat.answer(QUESTION, ALL_PANES, max_tokens=most, **settings) for most in (60, 4))
    for pane, reply in cut.items():
        if reply.finish != "limit":
            continue
        form = AnswerForm(begun=reply.text, drawn=reply.tokens)
        events = list(chat.stream(QUESTION, [pane], ChatSettings(max_tokens=60, **settings), form=form, score=True))
        assert all(event.text.startswith(reply.text) and event.tokens >= 4 for event in events)
        assert (events[-1].text, events[-1].tokens, events[-1].finish) == (*whole[pane][1:3], whole[pane].finish)
        assert events[-1].reward is not None and events[-1].repeated == whole[pane].repeated
    assert sum(reply.finish == "limit" for reply in cut.values()) >= 2
    with pytest.raises(ConfigError, match="has 9 already"):
        chat.stream(QUESTION, ["fine"], ChatSettings(max_tokens=9), form=AnswerForm(begun="a", drawn=9))


@pytest.mark.slow
def test_stop_ends_one_pane_or_all(chat, held):
    long = ChatSettings(max_tokens=96, temperature=0.0)
    with held():
        stream = chat.stream(QUESTION, settings=long)
        next(stream)
        stream.stop("coarse")
    got = finished(stream)
    whole = chat.answer(QUESTION, max_tokens=96, temperature=0.0)
    assert got["coarse"].finish == "stopped" and got["coarse"].tokens < whole["coarse"].tokens
    assert whole["coarse"].text.startswith(got["coarse"].text)
    assert (got["fine"].text, got["fine"].finish) == (whole["fine"].text, whole["fine"].finish)
    with held():
        stream = chat.stream(QUESTION, ["fine"], long, score=True)
        next(stream)
        stream.stop("coarse")  # a pane that is not part of the question
    got = finished(stream)
    assert got["fine"].text == whole["fine"].text and got["fine"].reward is not None
    with held():
        stream = chat.stream(QUESTION, settings=long, score=True)
        next(stream)
        stream.stop()
    got = finished(stream)
    assert {event.finish for event in got.values()} == {"stopped"}


@pytest.mark.slow
def test_stopping_leaves_what_had_ended_by_itself(chat, held, monkeypatch):
    """The baseline's second token is made its last."""
    append = answering.AnswerRow.append

    def short(row, *arguments):
        append(row, *arguments)
        if row.ratio == 0.0 and row.model == 1 and row.finish is None and len(row.tokens) == 2:
            row.end("limit")

    monkeypatch.setattr(answering.AnswerRow, "append", short)
    with held():
        stream = chat.stream(QUESTION, ["coarse", "baseline"], ChatSettings(max_tokens=96, temperature=0.0), score=True)
        while (event := next(stream)).pane != "baseline" or not event.finish:
            pass
        stream.stop()
    got = finished(stream)
    assert got["coarse"].finish == "stopped" and got["baseline"].reward is not None


def test_no_thread_is_left(collect=True):
    if collect:
        gc.collect()
    until = time.monotonic() + 300
    while any(thread.name == "lite_c2f-chat" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_what_is_dropped_stops_at_once(chat, held):
    gc.disable()  # nothing is left to the next collection
    try:
        with held():
            stream = chat.stream(QUESTION, settings=ChatSettings(max_tokens=400, temperature=2.0))
            next(stream)
            question = stream._question
            del stream
            test_no_thread_is_left(collect=False)
    finally:
        gc.enable()
    assert {row.finish for row in question.rows.values()} == {"stopped"}


@pytest.mark.slow
def test_aborted_questions_leave_nothing(chat):
    for kind in range(60):
        stream = chat.stream(QUESTION, settings=ChatSettings(max_tokens=300, temperature=1.0, seed=kind))
        if kind % 3:
            next(stream)
        if kind % 2:
            stream.close()
        del stream  # dropped without a word
    test_no_thread_is_left()
    assert chat.busy() == (0, 0)


@pytest.mark.slow
def test_a_failing_pane_leaves_the_others_alone(chat, monkeypatch):
    expected = chat.answer(QUESTION, max_tokens=40, temperature=0.0)
    encode_history = loaded.encode_history

    def broken(actor, *arguments, **options):
        if actor == "coarse":
            raise RuntimeError("no\ntemplate")
        return encode_history(actor, *arguments, **options)

    monkeypatch.setattr(loaded, "encode_history", broken)
    got = chat.answer(QUESTION, max_tokens=40, temperature=0.0, score=True)
    assert (got["coarse"].finish, got["coarse"].message) == ("error", "RuntimeError: no template")
    assert got["fine"].text == expected["fine"].text and got["fine"].reward is not None
    assert got["baseline"].text == expected["baseline"].text


@pytest.mark.slow
def test_a_bug_in_the_batch_ends_every_question_and_not_the_chat(chat, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(answering.AnswerRows, "step", lambda rows: 1 / 0)
        got = chat.answer(QUESTION, max_tokens=40)
    assert {event.finish for event in got.values()} == {"error"}
    assert "ZeroDivisionError" in got["fine"].message
    assert chat.answer(QUESTION, max_tokens=4)["fine"].finish != "error"


@pytest.mark.slow
def test_visitors_at_once_get_what_each_gets_alone(chat):
    """More than fit into one batch; each with a question, a ratio and a seed of its own."""

    def visit(number):
        question = f"Tom has {number % 9 + 1} apples, finds 4, loses 2. How many now?"
        settings = {"ratio": number / 8, "seed": number, "max_tokens": 32 + number, "temperature": 1.0}
        return {pane: event.text for pane, event in chat.answer(question, **settings).items()}

    alone = [visit(number) for number in range(20)]
    together = {}
    threads = [
        threading.Thread(target=lambda number=number: together.update({number: visit(number)})) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(20)] == alone


@pytest.mark.slow
def test_the_line_is_fair_and_ends_somewhere(chat, held, monkeypatch):
    monkeypatch.setattr(answering, "MAX_ROWS", 3)  # one question at a time
    monkeypatch.setattr(fair_queue, "MAX_WAITING", 4)
    with held():
        first = chat.stream(QUESTION, settings=ChatSettings(max_tokens=96, temperature=1.0))
        next(first)
        others = [chat.stream(QUESTION, settings=ChatSettings(max_tokens=24, seed=seed)) for seed in range(4)]
        assert [stream.waiting for stream in others] == [1, 2, 3, 4]
        with pytest.raises(C2FError, match="4 questions wait"):
            chat.stream(QUESTION)
        others[1].close()
    begun = []
    for stream in others:
        events = finished(stream)
        begun.append(max(event.first_token_s or 0.0 for event in events.values()))
        assert set(events) == set(PANES)
    assert begun[0] < begun[2] < begun[3] and begun[1] == 0.0  # who left was never begun


@pytest.mark.slow
def test_panes_may_differ_in_ratio_alone(chat):
    panes = [Pane(f"at {ratio}", "fine", ratio) for ratio in (0.0, 0.5, 40.0)]
    got = chat.answer(QUESTION, panes, max_tokens=24, temperature=0.0)
    assert [got[pane.key].ratio for pane in panes] == [0.0, 0.5, 40.0]
    plain = chat.answer(QUESTION, max_tokens=24, temperature=0.0, ratio=0.5)
    assert got["at 0.5"].text == plain["fine"].text
    assert got["at 0.0"].text == plain["baseline"].text
    assert got["at 40.0"].text != got["at 0.0"].text


@pytest.mark.slow
def test_the_merged_model_says_what_the_residue_says_unmerged(chat, toy_run):
    """Not token by token: the merged weights are quantised after the residue was added."""
    merged = Chat(toy_run, merged=True)
    near = far = 0
    for number in range(2, 8):
        question = f"Ann has {number} books, buys 3, loses 2. How many now?"
        live = chat.answer(question, ["fine", "baseline"], max_tokens=96, temperature=0.0)
        published = merged.answer(question, ["fine", "baseline"], max_tokens=96, temperature=0.0)
        near += alike(live["fine"].text, published["fine"].text)
        far += alike(live["fine"].text, published["baseline"].text)
        other = merged.answer(question, ["fine"], max_tokens=96, temperature=0.0, ratio=0.0)["fine"]
        assert other.text == published["baseline"].text
    assert near > 2 * far


@pytest.mark.slow
def test_each_answer_is_scored_as_the_comparison_scores_it(chat):
    got = chat.answer(QUESTION, ALL_PANES, max_tokens=96, temperature=0.0, score=True)
    turns, sampling = (Turn("human", QUESTION),), Sampling(96, 0.0, seed=0)
    for pane, role in (("coarse", "policy"), ("base", "reference")):
        answers = answer_base(chat.actors.roles, role, chat.actors.tokenizer, chat.config, [turns], sampling)
        assert [got[pane].reward] == pytest.approx(chat.actors.reward_model([turns], answers), abs=1e-3)
    assert all(event.reward is not None for event in got.values())
    assert len({round(event.reward, 2) for event in got.values()}) > 1
    plain = chat.answer(QUESTION, max_tokens=96, temperature=0.0)
    assert plain["coarse"].reward is None


@pytest.mark.slow
def test_each_pane_reads_its_own_conversation_and_the_system_prompt(chat):
    again = Turn("human", "Ann has 2 books, buys 1. How many now?")
    for number, pane in enumerate(ALL_PANES):
        turns = [Turn("human", QUESTION), Turn("assistant", f"The answer is {number}."), again]
        read = chat.rendered(turns, pane, ChatSettings(system="Think."))
        assert f"The answer is {number}." in read and "Ann has 2 books" in read
        assert read.index("Think") < read.index("Tom") < read.index("Ann") and read.count("Think") == 1
    long = [turn for _ in range(40) for turn in (Turn("human", QUESTION), Turn("assistant", "The answer is 5."))]
    read = chat.rendered([*long, again], "fine", ChatSettings(system="Think."))
    assert "Think" in read and "Ann" in read  # the oldest turns go, the system prompt stays
    stream = chat.stream([*long, again], settings=ChatSettings(max_tokens=4))
    assert all(event.dropped > 40 and not event.cut for event in finished(stream).values())
    stream = chat.stream(f"{QUESTION} " * 40, settings=ChatSettings(max_tokens=4))
    assert all(event.cut and not event.dropped for event in finished(stream).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"max_tokens": 0},
        {"max_tokens": 10**6},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"seed": -1},
        {"repetition_penalty": 0.0},
        {"top_k": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(chat, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}="):
        chat.stream(QUESTION, settings=ChatSettings(**settings))


@pytest.mark.slow
def test_empty_prompts_and_unknown_panes_are_refused(chat):
    with pytest.raises(C2FError, match="empty prompt"):
        chat.stream("  \n ")
    with pytest.raises(C2FError, match="empty prompt"):
        chat.stream([Turn("human", "Hi"), Turn("assistant", "Hello")])
    with pytest.raises(ConfigError, match="pane 'fien'"):
        chat.stream("Hi", ["fien"])


@pytest.mark.slow
def test_terminal_answers_a_pipe_line_by_line(toy_run, chat, monkeypatch, capsys):
    lines = f"{QUESTION}\n\n/ratio x\n/ratio -1\n/nonsense\n/tokens 3\nHi\n/clear\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    monkeypatch.setattr(chat_terminal, "Chat", lambda _: chat)
    run_terminal(toy_run)
    out = capsys.readouterr().out.replace("\n", " ")
    answers = out.split("error: ")
    assert [out.count(f"{pane} (") for pane in PANES] == [2, 2, 2]
    assert len(answers) == 4  # three commands are wrong
    assert "/ratio 'x'" in answers[1]
    assert "ratio=-1.0" in answers[2]
    assert "/nonsense" in answers[3]
    assert "never read" not in out
    assert out.count("(3 tokens") + out.count("(2 tokens") + out.count("(1 token,") >= 3


@pytest.mark.slow
def test_terminal_leaves_at_the_end_of_input(toy_run, chat, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(chat_terminal, "Chat", lambda _: chat)
    run_terminal(toy_run)
