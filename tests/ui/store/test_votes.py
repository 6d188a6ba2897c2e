"""Blind votes: counted by hand, exported to pairs that the reader of preference data takes as they are."""

import json
import random
import re
import threading
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lite_c2f.config.data import Source
from lite_c2f.data.records import Pair, Turn, load_pairs
from lite_c2f.errors import DataError, RunError
from lite_c2f.evaluation.wins import sign_test, wilson
from lite_c2f.ui.store.preferences import export
from lite_c2f.ui.store.tuples import as_row
from lite_c2f.ui.store.votes import Vote, conversation_of, current, key_of, read, record, recorded, tally, votes_of

ROOT = Path(__file__).parents[3]
TURNS = (Turn("human", "Hi"), Turn("assistant", "Hello"), Turn("human", "What is 2 plus 3?"))
TEXTS = {"fine": "We add 3 to 2. It is 5.", "coarse": "It is 5, and", "baseline": "5"}
ENDED = {"fine": True, "coarse": False, "baseline": True}


def vote(choice="A", shown=("fine", "coarse"), voter="a" * 32, **changes):
    answers = changes.pop("answers", TEXTS)
    made = Vote(
        time="2026-01-01T00:00:00+00:00",
        voter=voter,
        turns=TURNS,
        shown=shown,
        answers={pane: answers[pane] for pane in shown},
        ended={pane: ENDED[pane] for pane in shown},
        choice=choice,
        seeds=dict.fromkeys(shown, 7),
        ratio=0.75,
        settings={"temperature": 0.7},
        run={"name": "toy", "adapter": "ab12"},
    )
    return made._replace(**changes)


def loaded(file):
    found = load_pairs([Source(path=str(file))])
    return found._replace(items=[pair._replace(source="") for pair in found.items])


def test_what_is_recorded_is_read(tmp_path):
    file = votes_of(tmp_path)
    assert file == tmp_path / "app" / "votes.jsonl" and read(file) == []
    votes = [vote(), vote("C", ("baseline", "fine", "coarse"), system="Be\u2028kind.", ratio=None), vote("both_bad")]
    for each in votes:
        record(file, each)
    assert read(file) == votes
    assert [each.winner for each in votes] == ["fine", "coarse", None]
    record(tmp_path / "half.jsonl", vote(system="a\ud800"))
    assert read(tmp_path / "half.jsonl") == [vote(system="a?")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (vote("C"), "choice 'C'; expected one of A, B, tie, both_bad, taken_back"),
        (vote("left"), "choice 'left'"),
        (vote(shown=("fine",)), "1 answers shown; expected 2 or 3"),
        (vote(shown=("fine", "fine")), "2 answers shown"),
        (vote(answers=TEXTS, seeds={"fine": 1}), "answers, endings or seeds of other panes"),
        (vote(before={"base": ()}), "answers, endings or seeds of other panes"),
        (vote(before={"fine": (Turn("system", "x"),)}), "a speaker without a role"),
        (vote(turns=()), "no question"),
        (vote(turns=TURNS[:2]), "no question"),
        (vote(turns=(Turn("human", " "),)), "no question"),
        (vote(turns=(Turn("system", "x"), TURNS[0])), "a speaker without a role"),
    ],
)
def test_a_vote_that_contradicts_itself_is_refused(wrong, message, tmp_path):
    with pytest.raises(DataError, match=message):
        record(tmp_path / "votes.jsonl", wrong)
    assert list(tmp_path.iterdir()) == []
    record(tmp_path / "votes.jsonl", vote())
    with (tmp_path / "votes.jsonl").open("a") as file:
        file.write(json.dumps(as_row(wrong)) + "\n")
    with pytest.raises(DataError, match=rf"votes.jsonl:2: {message}"):
        read(tmp_path / "votes.jsonl")


def test_half_a_line_costs_that_vote_alone(tmp_path):
    file = tmp_path / "votes.jsonl"
    record(file, vote())
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:50])
    record(file, vote("B"))
    with pytest.raises(RunError, match=r"votes.jsonl:2 is not JSON"):
        read(file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[2])
    assert read(file) == [vote(), vote("B")]
    file.write_bytes(b"{}\n")
    with pytest.raises(DataError, match=r"votes.jsonl:1: vote has no 'time'"):
        read(file)


def test_many_at_once_leave_whole_lines(tmp_path):
    file = tmp_path / "app" / "votes.jsonl"

    def work(mark):
        for index in range(50):
            text = mark * (index * 997)  # up to 49,000 characters: longer than any buffer on the way
            record(file, vote(voter=f"{mark}{index}", answers={**TEXTS, "fine": text}))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in "abcdefgh"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    found = read(file)
    assert {each.voter for each in found} == {f"{mark}{index}" for mark in "abcdefgh" for index in range(50)}
    assert len(found) == 400
    assert all(each.answers["fine"] == each.voter[0] * (int(each.voter[1:]) * 997) for each in found)


def people(*choices, **given):
    return [vote(choice, voter=str(number), **given) for number, choice in enumerate(choices)]


def test_tally_by_hand():
    votes = people("A", "A", "B", "tie", "both_bad")  # fine over coarse: 2, 1, 1 tie, 1 both bad
    votes += people("A", "B", shown=("coarse", "fine"))  # other places; the same voters and answers: they changed
    votes += people("C", "tie", shown=("baseline", "coarse", "fine"))  # other answers: fine over both, then a tie
    found = {(row.left, row.right): row[2:6] for row in tally(votes)}
    # Voter 0 says coarse now, voter 1 fine; 2 coarse, 3 tie, 4 both bad; and with three: fine, tie.
    assert found == {
        ("fine", "coarse"): (2, 2, 1, 2),
        ("fine", "baseline"): (1, 1, 0, 0),
        ("coarse", "baseline"): (0, 1, 0, 0),
    }
    rows = {(row.left, row.right): row for row in tally(votes)}
    assert rows["fine", "coarse"].rate == 0.5 and rows["fine", "coarse"].p == 1.0
    assert rows["coarse", "baseline"][6:] == (None, 0.0, 1.0, 1.0)
    assert tally([]) == []


def test_who_votes_again_has_changed_their_mind():
    other = vote("B", answers={**TEXTS, "coarse": "new"})
    votes = [vote("A"), vote("A", voter="b"), other, vote("tie")]
    assert current(votes) == [vote("A", voter="b"), other, vote("tie")]


def test_a_vote_that_is_taken_back_does_not_count(tmp_path):
    back = vote("taken_back", time="2026-01-02T00:00:00+00:00")
    for votes, left in (
        ([vote("A"), back], []),
        ([vote("A"), back, vote("B")], [vote("B")]),  # and voted on again
        ([vote("A", voter="b"), vote("A"), back], [vote("A", voter="b")]),  # another's stays
        (
            [vote("A", turns=TURNS[:1]), vote("A"), back],
            [vote("A", turns=TURNS[:1])],
        ),  # so does that on a question before
    ):
        assert current(votes) == left
    votes = [vote("A", voter="b"), vote("B"), vote("A"), back]
    assert [row[2:6] for row in tally(votes)] == [(1, 0, 0, 0)]
    record(tmp_path / "votes.jsonl", back)
    assert read(tmp_path / "votes.jsonl") == [back] and back.winner is None
    done = export(votes, tmp_path / "out.jsonl")
    assert done.pairs == 1 and done.skipped == {"changed": 2, "taken back": 1}
    with pytest.raises(DataError, match="taken back: 1"):
        export([vote(), back], tmp_path / "none.jsonl")


def test_sign_test_is_the_count_of_all_coin_throws():
    assert sign_test(0, 0) == 1.0 and sign_test(5, 1) == 2 * 7 / 64 and sign_test(10, 0) == 2 / 1024
    assert sign_test(8, 2) == sign_test(2, 8) == 2 * (1 + 10 + 45) / 1024
    for wins, losses in product(range(6), range(6)):
        count = wins + losses
        as_far = sum(abs(2 * sum(throw) - count) >= abs(wins - losses) for throw in product((0, 1), repeat=count))
        assert Fraction(sign_test(wins, losses)) == Fraction(as_far, 2**count)
    assert 0 < sign_test(5200, 4800) < 1e-4


def test_wilson_by_hand_and_by_its_equation():
    # n = 10, p = 0.8, z = 2: (0.8 + 0.2 -+ 2 sqrt(0.016 + 0.01)) / 1.4
    low, high = wilson(8, 10, 2.0)
    assert low == pytest.approx((1 - 2 * 0.026**0.5) / 1.4, abs=1e-12)
    assert high == pytest.approx((1 + 2 * 0.026**0.5) / 1.4, abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)
    for wins, count in ((0, 3), (1, 3), (3, 3), (70, 100)):
        share = wins / count
        for end in wilson(wins, count):  # the shares from which what was seen is z spreads away
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-9)
    assert wilson(0, 3)[0] == 0.0 and wilson(3, 3)[1] == 1.0


def test_exported_pairs_by_hand(tmp_path):
    votes = [
        vote("A"),  # fine over coarse
        vote("A", voter="b"),  # again
        vote("B", voter="c"),  # outvoted
        vote("C", ("baseline", "coarse", "fine"), system="Be kind."),  # fine over both, under a system prompt
        vote("tie", voter="d"),
        vote("both_bad", voter="e"),
        vote("A", answers={**TEXTS, "coarse": TEXTS["fine"]}, voter="f"),  # the same text, cut off on one side
        vote("A", ("fine", "baseline"), answers={**TEXTS, "baseline": f" {TEXTS['fine']}\n"}),  # all the same
        vote("A", answers={**TEXTS, "coarse": " "}),
        vote("A", ("fine", "baseline"), voter="g"),  # two who say the opposite
        vote("A", ("baseline", "fine"), voter="h"),
        vote("tie", answers={"fine": "x", "coarse": "Human: y\n\nAssistant: z"}),
        vote("B", answers={"fine": "x", "coarse": "Human: y\n\nAssistant: z"}),  # changed from a tie
    ]
    done = export(votes, tmp_path / "out.jsonl")
    found = loaded(tmp_path / "out.jsonl")
    kind = (Turn("human", "Be kind.\n\nHi"), *TURNS[1:])
    assert found.items == [
        Pair(TURNS, "We add 3 to 2. It is 5.", "It is 5, and", True, False),
        Pair(kind, "We add 3 to 2. It is 5.", "5", True, True),
        Pair(kind, "We add 3 to 2. It is 5.", "It is 5, and", True, False),
        Pair(TURNS, "We add 3 to 2. It is 5.", "We add 3 to 2. It is 5.", True, False),
        Pair(TURNS, "Human: y\n\nAssistant: z", "x", False, True),
    ]
    assert found.skipped == {} and done.pairs == 5
    assert done.skipped == {
        "changed": 1, "tie": 1, "both bad": 1, "sides equal": 1, "empty answer": 1, "repeated": 1, "outvoted": 1,
        "contradictory": 2,
    }  # fmt: skip
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["prompt"][-1] == {"role": "user", "content": "What is 2 plus 3?"}
    assert (first["chosen_pane"], first["rejected_pane"]) == ("fine", "coarse")


def test_nothing_is_written_over_or_empty(tmp_path):
    for votes, message in (([], "no votes"), (people("tie", "tie", "both_bad"), "tie: 2, both bad: 1")):
        with pytest.raises(DataError, match=message):
            export(votes, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"ends with \.jsonl"):
        export([vote()], tmp_path / "out.txt")
    (tmp_path / "old.jsonl").write_text("old")
    with pytest.raises(DataError, match="exists"):
        export([vote()], tmp_path / "old.jsonl")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.jsonl", "old")]


TEXT = st.sampled_from(["", " ", "a", "b", " a", "\n\nHuman: b", "ü\u2028\r\n", "Assistant: a"])
TALK = st.lists(TEXT, max_size=2).map(
    lambda texts: tuple(Turn(("human", "assistant")[number % 2], text) for number, text in enumerate(texts))
)


@st.composite
def any_votes(draw):
    shown = tuple(draw(st.permutations(["fine", "coarse", "baseline"]))[: draw(st.integers(2, 3))])
    before = draw(TALK)
    turns = (*before[: len(before) // 2 * 2], Turn("human", draw(TEXT.filter(str.strip))))
    made = vote(draw(st.sampled_from([*"ABC"[: len(shown)], "tie", "both_bad"])), shown, draw(st.sampled_from("xyz")))
    ended = {pane: draw(st.booleans()) for pane in shown}
    return made._replace(turns=turns, ended=ended, answers={pane: draw(TEXT) for pane in shown}, system=draw(TEXT))


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(any_votes(), max_size=12))
def test_every_pair_that_is_exported_is_loaded(tmp_path, votes):
    file = tmp_path / "out.jsonl"
    file.unlink(missing_ok=True)
    (tmp_path / "votes.jsonl").unlink(missing_ok=True)
    for each in votes:
        record(tmp_path / "votes.jsonl", each)
    assert read(tmp_path / "votes.jsonl") == votes
    try:
        done = export(votes, file)
    except DataError:
        assert not file.exists()
        return
    found = loaded(file)
    assert found.skipped == {} and len(found.items) == done.pairs
    for pair in found.items:
        opposite = pair._replace(
            chosen=pair.rejected,
            rejected=pair.chosen,
            chosen_ended=pair.rejected_ended,
            rejected_ended=pair.chosen_ended,
        )
        assert opposite not in found.items


# -- the command


@pytest.fixture
def voted(tmp_path):
    """A run directory of which no more is needed than that it is one."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    for each in [*people("A", "A", "A", "B", "tie"), *people("B", "B", shown=("baseline", "fine"), ratio=1.0)]:
        record(votes_of(run), each)
    return run


def test_votes_are_printed_and_exported(call, voted, tmp_path):
    out = tmp_path / "own.jsonl"
    code, said, err = call("votes", voted, "--export", out)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if " over " in line]
    assert code == 0 and err == ""
    # 2 * (1 + 4) / 16, and 2 / 4; the intervals are those of `wilson`
    assert lines == [
        ["fine over coarse", "3", "1", "0", "1", "0.75", "0.30–0.95", "0.625"],
        ["fine over baseline", "2", "0", "0", "0", "1.00", "0.34–1.00", "0.500"],
    ]
    assert "7 votes, 5 voters" in said and "several ratios, counted as one here: 0.75, 1" in said
    assert "wrote 2 pairs" in said and "repeated 3" in said and "outvoted 1" in said and "tie 1" in said
    assert [pair.chosen for pair in loaded(out).items] == [TEXTS["fine"]] * 2
    code, said, _ = call("votes", voted, "--json")
    assert code == 0 and [row["wins"] for row in json.loads(said)["pairs"]] == [3, 2]
    assert json.loads(said)["open"] == {"votes": 0, "pairs": [], "ratings": []} and "Open votes" not in said
    for file in (out, votes_of(voted)):  # nothing is written over
        before = file.read_bytes()
        code, said, err = call("votes", voted, "--export", file)
        assert code == 2 and said == "" and "exists" in err and file.read_bytes() == before


def test_blind_and_open_votes_are_counted_apart(call, voted):
    for number, choice in enumerate("BBBA"):
        record(votes_of(voted), vote(choice, voter=str(number), blind=False))  # the same people, on the same answers
    code, said, _ = call("votes", voted)
    _, blind, opened = re.split("Blind votes|Open votes", said)
    assert code == 0 and "fine over coarse" in blind and "0.75 " in blind and "7 votes" in blind
    assert "fine over coarse" in opened and "0.25 " in opened and "4 votes" in opened
    _, said, _ = call("votes", voted, "--json")
    found = json.loads(said)
    assert (found["votes"], found["open"]["votes"]) == (7, 4)
    assert [(row["wins"], row["losses"]) for row in found["open"]["pairs"]] == [(1, 3)]


def test_six_votes_give_ratings(call, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for each in people(*"AAAAA"):
        record(votes_of(tmp_path), each)
    _, said, _ = call("votes", tmp_path)
    assert "fine over coarse" in said and "rating" not in said  # five votes are too few
    record(votes_of(tmp_path), vote("A", voter="6"))
    _, said, _ = call("votes", tmp_path)
    # with the imagined tie 6.5 to 0.5: 400 log10(13) = 446 points between them
    assert "rating: fine +223 (" in said and ", coarse -223 (" in said
    _, said, _ = call("votes", tmp_path, "--json")
    assert [(row["name"], round(row["points"])) for row in json.loads(said)["ratings"]] == [
        ("fine", 223),
        ("coarse", -223),
    ]


def test_votes_written_before_there_were_open_ones_are_blind(tmp_path):
    old = {name: value for name, value in as_row(vote()).items() if name not in ("blind", "before")}
    (tmp_path / "votes.jsonl").write_text(json.dumps(old) + "\n")
    assert read(tmp_path / "votes.jsonl") == [vote()] and vote().blind and vote().before == {}


def test_answers_given_in_other_conversations_have_votes_of_their_own():
    before = {"fine": TURNS[:2], "coarse": (TURNS[0], Turn("assistant", "Good day"))}
    votes = [vote("A", turns=TURNS[2:], before=before), vote("B", turns=TURNS[2:], before={})]
    assert current(votes) == votes
    assert conversation_of(votes[0], "coarse") == (TURNS[0], Turn("assistant", "Good day"), TURNS[2])


def test_equal_answers_are_no_comparison():
    """Fine and Baseline say the same: who prefers Fine prefers it to Coarse alone."""
    same = {**TEXTS, "baseline": TEXTS["fine"]}
    (row,) = [row for row in tally([vote("A", ("fine", "coarse", "baseline"), answers=same)]) if row.wins + row.losses]
    assert row[:6] == ("fine", "coarse", 1, 0, 0, 0)


def test_a_file_is_read_again_when_it_has_changed(tmp_path):
    file = tmp_path / "votes.jsonl"
    assert recorded(file) == {}
    for made in (vote("A"), vote("B"), vote("A", blind=False)):
        record(file, made)
        assert recorded(file)[key_of(made)] == made
    assert [each.choice for each in recorded(file).values()] == ["B", "A"]


def test_what_the_command_refuses(call, voted, tmp_path):
    with votes_of(voted).open("a") as file:
        file.write("{oops\n")
    code, _, err = call("votes", voted)
    assert code == 2 and "votes.jsonl:8 is not JSON" in err and len(err.splitlines()) == 1
    votes_of(voted).unlink()
    code, _, err = call("votes", voted)
    assert code == 2 and "no votes in" in err and f"lite-c2f app {voted}" in err


def toy_votes(file, count):
    """What people would say who like right analyses: of the toy world's pairs, shown in either order."""
    from lite_c2f.toy.world import pairs

    order, made = random.Random(0), pairs(count, seed=0)
    for number, pair in enumerate(made):
        shown = ("fine", "baseline") if order.random() < 0.5 else ("baseline", "fine")
        given = {"fine": pair.chosen, "baseline": pair.rejected}
        ended = {"fine": pair.chosen_ended, "baseline": pair.rejected_ended}
        choice = "AB"[shown.index("fine")]
        record(file, vote(choice, shown, str(number), turns=pair.turns, answers=given)._replace(ended=ended))
    return made


def test_the_toy_worlds_pairs_come_back_as_they_were(tmp_path):
    made = toy_votes(tmp_path / "votes.jsonl", 300)
    export(read(tmp_path / "votes.jsonl"), tmp_path / "own.jsonl")
    assert loaded(tmp_path / "own.jsonl").items == list(dict.fromkeys(made))


@pytest.mark.slow
def test_a_reward_model_is_trained_on_votes(in_process, toy_models, tmp_path):
    run = tmp_path / "voted"
    toy_votes(votes_of(run), 480)
    (run / "run.json").write_text("{}")
    done = in_process("votes", run, "--export", tmp_path / "own.jsonl")
    assert done.returncode == 0 and "lite-c2f train CONFIG" in done.stdout, done.stderr
    command = ["train", ROOT / "configs" / "toy.yaml", f"data.preferences=[{tmp_path / 'own.jsonl'}]"]
    dry = in_process(*command, "--dry-run", "--run-dir", tmp_path / "new")
    assert dry.returncode == 0, dry.stderr
    done = in_process(*command, "--stage", "reward", "--run-dir", tmp_path / "new", "reward.epochs=2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "new" / "reward" / "metrics.json").read_text())
    assert found["accuracy"] > 0.7  # held-out votes; the toss of a coin is 0.5
