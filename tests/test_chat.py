"""Answers side by side: the same tokens as the batched sampler, panes that do not disturb each other, the terminal."""

import io
import itertools
import threading

import pytest

from lite_c2f import chat as chat_module
from lite_c2f import chat_terminal
from lite_c2f.actors import answer_base
from lite_c2f.chat import ALL_PANES, PANES, Chat, ChatSettings, Event, shown, with_answers
from lite_c2f.chat_terminal import printable, run_terminal
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError, RunError
from lite_c2f.sampling import Sampling

STOP = "\n\nHuman:"
QUESTION = "Tom has 3 apples, finds 4, loses 2. How many now?"
GREEDY = ChatSettings(max_tokens=40, temperature=0.0)


@pytest.fixture(scope="module")
def chat(toy_run):
    return Chat(toy_run)


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
        "coarse": Event("coarse", "Hello", 2, 1.0, "eos"),
        "fine": Event("fine", "", 0, 0.0, "error", "no memory"),
    }
    after = with_answers({"coarse": [question], "fine": [question]}, events)
    assert after == {"coarse": [question, Turn("assistant", "Hello")], "fine": []}


def test_status_is_one_line():
    assert Event("fine", "Hi", 1, 84.6, "eos").status == "1 token, 85 tokens/s, ended (EOS)"
    assert Event("fine", "", 0, 0.0, "error", "no memory").status == "failed: no memory"


def test_printable_drops_what_would_steer_the_terminal():
    assert printable("a\x1b[31mb\r\x07\n\tc") == "a[31mb\n\tc"


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        Chat(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_stream_says_what_the_batched_sampler_says(chat, temperature):
    """Seed 0 gives the sampler's first row the very same random numbers, so sampled answers agree too."""
    turns, sampling = (Turn("human", QUESTION),), Sampling(40, temperature, seed=0)
    expected = {
        "coarse": answer_base(chat.roles, "policy", chat.tokenizer, chat.config, [turns], sampling)[0],
        "base": answer_base(chat.roles, "reference", chat.tokenizer, chat.config, [turns], sampling)[0],
    }
    for pane, ratio in (("fine", chat.ratio), ("baseline", 0.0)):
        with chat.instruct.ratio(ratio):
            expected[pane] = chat.instruct.answer([turns], sampling)[0]
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
def test_panes_take_turns_and_text_only_grows(chat):
    events = list(chat.stream(QUESTION, settings=GREEDY))
    assert [event.pane for event in events[:6]] == [*PANES, *PANES]
    for pane in PANES:
        own = [event for event in events if event.pane == pane]
        assert [event.tokens for event in own] == list(range(1, len(own) + 1))
        assert all(after.text.startswith(before.text) for before, after in itertools.pairwise(own))
        assert all("Human" not in event.text for event in own)
        assert [bool(event.finish) for event in own] == [False] * (len(own) - 1) + [True]


@pytest.mark.slow
def test_stop_ends_every_pane(chat):
    stop, events = threading.Event(), []
    for event in chat.stream(QUESTION, settings=GREEDY, stop=stop):
        events.append(event)
        if len(events) == 4:  # the second token of the first pane
            stop.set()
    assert {pane: event.finish for pane, event in finished(events).items()} == dict.fromkeys(PANES, "stopped")
    assert {pane: event.tokens for pane, event in finished(events).items()} == {"coarse": 2, "fine": 1, "baseline": 1}


@pytest.mark.slow
def test_a_failing_pane_leaves_the_others_alone(chat, monkeypatch):
    expected = chat.answer(QUESTION, max_tokens=40, temperature=0.0)

    def broken(*_):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(chat.roles, "use", broken)
    got = chat.answer(QUESTION, max_tokens=40, temperature=0.0)
    assert (got["coarse"].finish, got["coarse"].message) == ("error", "RuntimeError: out of memory")
    assert got["fine"].text == expected["fine"].text
    assert got["baseline"].text == expected["baseline"].text


@pytest.mark.slow
def test_two_visitors_at_once_get_what_each_gets_alone(chat):
    alone = {ratio: chat.answer(QUESTION, ratio=ratio, max_tokens=24, temperature=0.0) for ratio in (0.0, 40.0)}
    together = {}

    def visit(ratio):
        together[ratio] = chat.answer(QUESTION, ratio=ratio, max_tokens=24, temperature=0.0)

    threads = [threading.Thread(target=visit, args=(ratio,)) for ratio in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ratio, events in alone.items():
        assert {p: e.text for p, e in together[ratio].items()} == {p: e.text for p, e in events.items()}


@pytest.mark.slow
def test_each_pane_reads_its_own_conversation(chat, monkeypatch):
    read = {}
    speak = chat_module.speak

    def spy(model, prompt, *args, **kwargs):
        read.setdefault("prompts", []).append(chat.tokenizer.decode(prompt))
        return speak(model, prompt, *args, **kwargs)

    monkeypatch.setattr(chat_module, "speak", spy)
    again = Turn("human", "Ann has 2 books, buys 1. How many now?")
    turns = {
        pane: [Turn("human", QUESTION), Turn("assistant", f"The answer is {n}."), again] for n, pane in enumerate(PANES)
    }
    got = finished(chat.stream(turns, settings=GREEDY))
    assert set(got) == set(PANES)
    for n, prompt in enumerate(read["prompts"]):
        assert f"The answer is {n}." in prompt
        assert "Ann has 2 books" in prompt


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
