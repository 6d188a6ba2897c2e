"""Questions, prompts, verdicts and tables by hand; judges against a server of our own, and the toy model."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from lite_c2f.answers import Answer
from lite_c2f.errors import ConfigError, DataError, ModelError
from lite_c2f.evaluation.extras import across_turns
from lite_c2f.judging.contest import Task, ask, grade_table, grade_tasks, outcome, pair_table, pair_tasks
from lite_c2f.judging.judges import KEY, Endpoint
from lite_c2f.judging.prompts import SYSTEM, pairwise, single
from lite_c2f.judging.questions import Question, load_questions, spread
from lite_c2f.judging.speak import check_actors, converse
from lite_c2f.judging.stage import repeated_across_turns
from lite_c2f.judging.verdicts import read_verdict

MT_BENCH = Path(__file__).parents[3] / "shared" / "data" / "mt-bench"
ONE = Question("1", "math", ("What is 2 + 3?", "And doubled?"), ("5", "10"))
TWO = Question("2", "writing", ("Write a line.",))


def write(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_questions_and_references(tmp_path):
    file = write(
        tmp_path / "q.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": "x", "turns": ["c"]},
    )
    references = write(tmp_path / "r.jsonl", {"question_id": 81, "choices": [{"turns": ["A", "B"]}]})
    found = load_questions(file, references)
    assert found == [Question("81", "writing", ("a", "b"), ("A", "B")), Question("x", "other", ("c",), ())]
    assert [len(spread(range(10), count)) for count in (None, 3, 20)] == [10, 3, 10] and spread(range(8), 4) == [
        0,
        2,
        4,
        6,
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{oops", "q.jsonl:2 is not JSON"),
        ('{"question_id": 2, "turns": []}', "q.jsonl:2: no question"),
        ('{"question_id": 2, "turns": [3]}', "q.jsonl:2: no question"),
        ('{"turns": ["a"]}', "q.jsonl:2: no question"),
        ("[1]", "q.jsonl:2: no question"),
        ('{"question_id": 1, "turns": ["a"]}', "question_id 1 twice"),
    ],
)
def test_bad_questions_are_named(tmp_path, row, words):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question_id": 1, "turns": ["a"]}\n' + row + "\n")
    with pytest.raises(DataError, match=words):
        load_questions(file)
    with pytest.raises(DataError, match="no questions"):
        load_questions(write(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="No such file"):
        load_questions(tmp_path / "gone.jsonl")


def test_all_of_mt_bench_can_be_read():
    if not MT_BENCH.is_dir():
        pytest.skip("MT-Bench's files are not here")
    found = load_questions(MT_BENCH / "question.jsonl", MT_BENCH / "reference_answer_gpt-4.jsonl")
    assert len(found) == 80 and all(len(question.turns) == 2 for question in found)
    assert {question.category for question in found if question.reference} >= {"math", "reasoning", "coding"}
    assert len({question.category for question in spread(found, 8)}) == 8  # ten of each, in order


def test_a_pair_is_shown_whole_and_in_order():
    system, asked = pairwise(ONE, ["five", "ten"], ["six", "twelve"])
    assert system == {"role": "system", "content": SYSTEM} and asked["role"] == "user"
    text = asked["content"]
    places = [text.index(f"\n{part}\n") for part in ("five", "ten", "six", "twelve")]
    assert places == sorted(places) and text.index("conversation of A") < places[0] < text.index("</conversation of A>")
    assert text.count("What is 2 + 3?") == 2 and "<reference>\n5\n\n10\n</reference>" in text
    assert "above all to the last question" in text
    plain = pairwise(TWO, ["x"], ["y"])[1]["content"]
    assert "reference" not in plain and "above all" not in plain


def test_a_grade_sees_the_conversation_up_to_its_turn():
    first, second = (single(ONE, ["five", "ten"], turn)[1]["content"] for turn in (0, 1))
    assert (
        "five" in first and "ten" not in first.replace("sentences", "") and "\n5\n" in first and "\n10\n" not in first
    )
    assert "five" in second and "\nten\n" in second and "\n10\n" in second and "\n5\n" not in second


def test_both_orders_have_to_agree():
    results = {(a, b): outcome(a, b) for a in ("A", "B", "tie") for b in ("A", "B", "tie")}
    assert results[("A", "B")] == "win" and results[("B", "A")] == "loss"
    assert all(found == "tie" for pair, found in results.items() if pair not in (("A", "B"), ("B", "A")))
    assert outcome(None, "A") is None and outcome("B", None) is None


def test_the_pair_table():
    questions = [ONE, ONE._replace(number="3"), TWO, TWO._replace(number="4")]
    said = {actor: [[actor] * len(question.turns) for question in questions] for actor in ("fine", "instruct")}
    tasks = pair_tasks(questions, said, "fine", "instruct")
    assert [task.name for task in tasks[:2]] == ["1 fine instruct", "1 instruct fine"] and len(tasks) == 8
    told = dict.fromkeys((task.name for task in tasks), "VERDICT: A")  # always the first: a tie everywhere
    told |= {"1 instruct fine": "VERDICT: B", "4 instruct fine": "I cannot say"}
    found = pair_table(questions, told, "fine", "instruct")
    assert found["categories"]["all"] == {"win": 1, "tie": 2, "loss": 0, "unread": 1, "rate": 0.6667, "se": 0.1667}
    assert found["categories"]["math"] == {"win": 1, "tie": 1, "loss": 0, "unread": 0, "rate": 0.75, "se": 0.25}
    assert found["categories"]["writing"]["unread"] == 1 and found["agreement"] == pytest.approx(1 / 3, abs=1e-4)


def test_the_grade_table():
    said = {"fine": [["a", "b"], ["c"]]}
    told = {"1 fine 0": "GRADE: 4", "1 fine 1": "GRADE: 8", "2 fine 0": "hm"}
    assert [task.name for task in grade_tasks([ONE, TWO], said, ["fine"])] == list(told)
    found = grade_table([ONE, TWO], told, ["fine"])["fine"]
    assert found == {"all": 6.0, "turn 1": 4.0, "turn 2": 8.0, "math": 6.0, "se": 2.0, "unread": 1}


def test_turns_build_on_what_was_said():
    heard = []

    def speak(conversations):
        heard.append([[turn.text for turn in turns] for turns in conversations])
        return [Answer(f"answer to {turns[-1].text}", 3, "eos", []) for turns in conversations]

    said = converse(speak, [ONE, TWO])
    assert heard == [
        [["What is 2 + 3?"], ["Write a line."]],
        [["What is 2 + 3?", "answer to What is 2 + 3?", "And doubled?"]],
    ]
    assert said == [["answer to What is 2 + 3?", "answer to And doubled?"], ["answer to Write a line."]]


def test_what_an_actor_repeats_of_its_earlier_turns():
    twice = ["a b c d e", "x a b c d"]  # later: x a b c | a b c d, the second was said
    assert repeated_across_turns([twice, ["a b c d", "e f g h"], ["only one turn"]]) == round(1 / 3, 4)  # of all three
    assert repeated_across_turns([["a b c d e", "Yes."], ["a b c d", "a b c d"]]) == 1.0  # a short answer has none
    assert repeated_across_turns([["one"], ["two", "three"]]) is None
    told = across_turns({"repeated_across_turns": {"fine": 0.25, "base": None}})
    assert told == ["Of the 4-word sequences in later turns, earlier turns had: fine 25.0%."]
    assert across_turns({}) == across_turns({"repeated_across_turns": {"fine": None}}) == []


@pytest.mark.parametrize("names", [["fine", "fine"], [""], ["best"], []])
def test_actors_are_checked(names):
    with pytest.raises(ConfigError):
        check_actors(names)


class Server:
    """A chat server: what it answers is set by the test, what it heard is kept."""

    def __init__(self):
        outer, self.heard, self.answers = self, [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.heard.append((self.path, self.headers.get("Authorization"), body))
                code, content = outer.answers.pop(0) if outer.answers else (200, outer.say(body))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:9/stolen")
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1/"

    @staticmethod
    def say(body):
        """Likes the shorter conversation; says so in OpenAI's form."""
        text = body["messages"][-1]["content"]
        sides = (
            [text.split(f"<conversation of {who}>")[1].split("</conversation")[0] for who in "AB"]
            if "of A>" in text
            else []
        )
        verdict = "TIE" if not sides or len(sides[0]) == len(sides[1]) else "AB"[len(sides[0]) > len(sides[1])]
        return {"choices": [{"message": {"content": f"Reasons. VERDICT: {verdict}\nGRADE: 6"}}]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("lite_c2f.judging.judges.PAUSE", 0.01)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_server_is_asked_as_openai_wants(server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    judge = Endpoint(server.url, "some-model", max_tokens=99, at_once=2)
    said = judge([pairwise(TWO, ["short"], ["a longer one"]), pairwise(TWO, ["a longer one"], ["short"])])
    assert [read_verdict(text) for text in said] == ["A", "B"]
    path, key, body = server.heard[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 99)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "secret" not in judge.name


def test_a_busy_server_is_asked_again(server):
    server.answers = [(429, {}), (503, {})]
    assert "VERDICT" in Endpoint(server.url, "m")([pairwise(TWO, ["x"], ["y"])])[0]
    assert len(server.heard) == 3


@pytest.mark.parametrize(
    ("answer", "words", "requests"),
    [
        ((401, {}), "HTTP 401", 1),
        ((302, {}), "HTTP 302", 1),  # a key does not follow a redirect
        ((200, {"error": "no"}), "another form", 1),
        ((200, {"choices": [{"message": {"content": None}}]}), "another form", 1),
        ((200, b"<html>"), "another form", 1),
        ((500, {}), "HTTP 500", 4),
    ],
)
def test_a_server_that_will_not_is_told_in_one_line(server, answer, words, requests):
    server.answers = [answer] * 9
    with pytest.raises(ModelError, match=rf"judge m at 127\.0\.0\.1: .*{words}.*; expected .*; check --url"):
        Endpoint(server.url, "m")([pairwise(TWO, ["x"], ["y"])])
    assert len(server.heard) == requests


def test_an_answer_cut_off_within_its_reasoning_is_unread_and_stops_nothing(server):
    server.answers = [(200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]})]
    assert Endpoint(server.url, "m")([pairwise(TWO, ["x"], ["y"])]) == [""]


@pytest.mark.parametrize("url", ["ftp://x/v1", "host/v1", "http://me:pw@host/v1", "http://"])
def test_addresses_are_checked_and_passwords_not_repeated(url):
    with pytest.raises(ConfigError, match="--url") as caught:
        Endpoint(url, "m")
    assert "pw" not in str(caught.value)


def test_nobody_there(monkeypatch):
    monkeypatch.setattr("lite_c2f.judging.judges.PAUSE", 0.0)
    with pytest.raises(ModelError, match="refused"):
        Endpoint("http://127.0.0.1:9/v1", "m")([pairwise(TWO, ["x"], ["y"])])


def test_a_stopped_judgment_goes_on(tmp_path):
    class Tired:
        name, at_once = "tired", 2

        def __init__(self, strength):
            self.strength, self.asked = strength, []

        def __call__(self, conversations):
            if self.strength <= 0:
                raise KeyboardInterrupt
            self.strength -= 1
            self.asked += [messages[0]["content"] for messages in conversations]
            return [f"about {messages[0]['content']}" for messages in conversations]

    tasks = [Task(f"t{number}", [{"role": "user", "content": str(number)}]) for number in range(5)]
    first, second, steps = Tired(1), Tired(9), []
    with pytest.raises(KeyboardInterrupt):
        ask(first, tasks, tmp_path / "kept.jsonl", steps.append)
    told = ask(second, tasks, tmp_path / "kept.jsonl", steps.append)
    assert first.asked == ["0", "1"] and second.asked == ["2", "3", "4"]
    assert told == {f"t{number}": f"about {number}" for number in range(5)} and steps == [0, 2, 2, 4, 5]
    other = Tired(9)
    other.name = "another judge"
    ask(other, tasks, tmp_path / "kept.jsonl", steps.append)
    assert len(other.asked) == 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pairwise", "single"])
def test_mt_bench_from_the_command_line(in_process, toy_run, toy_models, tmp_path, server, mode):
    """Eight of the 80 questions, one a category, two turns: by a server, and by the toy instruct model itself."""
    import shutil

    if not MT_BENCH.is_dir():
        pytest.skip("MT-Bench's files are not here")
    run = shutil.copytree(toy_run, tmp_path / "run")
    common = ("judge", run, "--questions", MT_BENCH / "question.jsonl", "--mode", mode, "--limit", "8")
    common += ("--references", MT_BENCH / "reference_answer_gpt-4.jsonl", "--set", "evaluation.max_tokens=24", "--json")
    done = in_process(*common, "--judge", "m", "--url", server.url, "--actors", "fine,instruct,coarse")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(0 <= share <= 1 for share in found["repeated_across_turns"].values())
    assert list(found["repeated_across_turns"]) == ["fine", "instruct", "coarse"]
    assert found["questions"] == 8 and len(server.heard) == (32 if mode == "pairwise" else 48)
    if mode == "pairwise":
        for pair in ("fine over instruct", "fine over coarse"):
            table = found["pairs"][pair]["categories"]
            assert len(table) == 9 and table["all"]["unread"] == 0
            assert table["all"]["win"] + table["all"]["tie"] + table["all"]["loss"] == 8
    else:
        assert found["grades"]["fine"]["all"] == 6.0 and found["grades"]["fine"]["turn 2"] == 6.0
    saved = json.loads((run / "evaluation" / f"judge-{mode}.json").read_text())
    assert len(saved["rows"]) == 8 and all(len(row["answers"]["fine"]) == 2 for row in saved["rows"])
    assert not list((run / "evaluation").glob("judge-*.jsonl"))
    done = in_process(*common[:-1], "--judge", toy_models.instruct)
    assert done.returncode == 0, done.stderr
    assert "8 questions, judged by" in done.stdout
