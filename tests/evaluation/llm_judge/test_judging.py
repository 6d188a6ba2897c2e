"""Questions, prompts, verdicts and tables by hand; judges against a server of our own, and the toy model."""

import http.server
import json
import threading
import time
from pathlib import Path

import pytest

from lite_c2f.actors.answers import Answer
from lite_c2f.errors import ConfigError, DataError, ModelError
from lite_c2f.evaluation.actor_names import check_actors
from lite_c2f.evaluation.extras import across_turns
from lite_c2f.evaluation.llm_judge.conversations import answer_turns
from lite_c2f.evaluation.llm_judge.judges import Endpoint, retry_delay
from lite_c2f.evaluation.llm_judge.judging import (
    JudgeRequest,
    grade_table,
    grade_tasks,
    outcome,
    pair_table,
    pair_tasks,
    run_judge,
)
from lite_c2f.evaluation.llm_judge.prompts import SYSTEM, grading_prompt, pairwise_prompt
from lite_c2f.evaluation.llm_judge.questions import Question, evenly_spaced, load_questions
from lite_c2f.evaluation.llm_judge.replies import (
    FORMAT_NOTES,
    KEY_VARIABLE,
    RequestFormat,
    ServerError,
    ServerRefusal,
    format_change,
    read_error,
    read_reply,
)
from lite_c2f.evaluation.llm_judge.stage import judgment_notes, repeated_across_turns
from lite_c2f.evaluation.llm_judge.verdicts import read_grade, read_verdict

MT_BENCH = Path(__file__).parents[4] / "shared" / "data" / "mt-bench"
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
    assert [len(evenly_spaced(range(10), count)) for count in (None, 3, 20)] == [10, 3, 10] and evenly_spaced(
        range(8), 4
    ) == [
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
    assert len({question.category for question in evenly_spaced(found, 8)}) == 8  # ten of each, in order


def test_a_pair_is_shown_whole_and_in_order():
    system, asked = pairwise_prompt(ONE, ["five", "ten"], ["six", "twelve"])
    assert system == {"role": "system", "content": SYSTEM} and asked["role"] == "user"
    text = asked["content"]
    places = [text.index(f"\n{part}\n") for part in ("five", "ten", "six", "twelve")]
    assert places == sorted(places) and text.index("conversation of A") < places[0] < text.index("</conversation of A>")
    assert text.count("What is 2 + 3?") == 2 and "<reference>\n5\n\n10\n</reference>" in text
    assert "above all to the last question" in text
    plain = pairwise_prompt(TWO, ["x"], ["y"])[1]["content"]
    assert "reference" not in plain and "above all" not in plain


def test_a_grade_sees_the_conversation_up_to_its_turn():
    first, second = (grading_prompt(ONE, ["five", "ten"], turn)[1]["content"] for turn in (0, 1))
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

    said = answer_turns(speak, [ONE, TWO])
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


@pytest.mark.parametrize("names", [["fine", "fine"], [""], ["best"], ["fine@0.5"], []])
def test_actors_are_checked(names):
    with pytest.raises(ConfigError):
        check_actors(names)


class Server:
    """A chat server: what it answers is set by the test, what it heard is kept."""

    def __init__(self):
        outer, self.heard, self.answers, self.headers = self, [], [], {}
        self.reply = lambda body: (200, self.say(body))

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.heard.append((self.path, self.headers.get("Authorization"), body))
                code, content = outer.answers.pop(0) if outer.answers else outer.reply(body)
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:9/stolen")
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
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
    monkeypatch.setattr("lite_c2f.evaluation.llm_judge.judges.PAUSE", 0.01)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_server_is_asked_as_openai_wants(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    judge = Endpoint(server.url, "some-model", max_tokens=99, at_once=2)
    said = judge([pairwise_prompt(TWO, ["short"], ["a longer one"]), pairwise_prompt(TWO, ["a longer one"], ["short"])])
    assert [read_verdict(text) for text in said] == ["A", "B"]
    path, key, body = server.heard[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 99)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "secret" not in judge.name


def test_a_server_on_this_machine_is_asked_without_a_proxy(server, monkeypatch):
    """The proxy listens nowhere: a question sent to it would fail."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "VERDICT" in Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])[0]


def test_a_key_that_no_header_can_hold_is_not_repeated(server, monkeypatch):
    for key in ("sécret", "sec\nret"):
        monkeypatch.setenv(KEY_VARIABLE, key)
        with pytest.raises(ConfigError, match=KEY_VARIABLE) as caught:
            Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])
        assert key not in str(caught.value)
    assert server.heard == []


def test_a_busy_server_is_asked_again(server):
    server.answers = [(429, {}), (503, {})]
    assert "VERDICT" in Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])[0]
    assert len(server.heard) == 3


def test_a_busy_server_is_waited_for_as_long_as_it_asks(server, monkeypatch):
    """Its Retry-After in seconds or as a date, an hour at most as long as the patience; else 0.01, 0.02, 0.04 s."""
    waits = []
    monkeypatch.setattr("lite_c2f.evaluation.llm_judge.judges.time.sleep", waits.append)
    server.answers = [(429, {}), (503, {}), (200, {"error": {"code": 429, "message": "slow down"}})]
    Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])
    assert waits == [0.01, 0.02, 0.04]
    server.headers = {"Retry-After": "3600"}
    server.answers = [(429, {})]
    Endpoint(server.url, "m", patience=50.0)([pairwise_prompt(TWO, ["x"], ["y"])])
    assert waits[3:] == [50.0]
    date = {"Date": "Sun, 06 Nov 1994 08:49:28 GMT"}
    assert retry_delay(1, date | {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 9.0  # by the server's clock
    assert retry_delay(1, date | {"Retry-After": "Sun, 06 Nov 1994 08:49:00 GMT"}) == 0.0
    assert retry_delay(1, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 0.01
    waits = [retry_delay(1, date | {"Retry-After": text}) for text in ("7", " 7 ", "soon", "-1", "")]
    assert waits == [7.0, 7.0, 0.01, 0.01, 0.01]


def test_a_server_that_does_not_answer_is_given_up(server):
    server.reply = lambda body: time.sleep(0.3) or (200, server.say(body))
    with pytest.raises(ModelError, match=r"judge m at 127\.0\.0\.1: .*timed out"):
        Endpoint(server.url, "m", patience=0.05)([pairwise_prompt(TWO, ["x"], ["y"])])


@pytest.mark.parametrize(
    ("answer", "words", "requests"),
    [
        ((401, {}), "HTTP 401", 1),
        ((302, {}), "HTTP 302", 1),  # a key does not follow a redirect
        ((200, {"error": "no"}), "another form", 1),
        ((200, {"error": {"code": 401, "message": "No auth"}}), "HTTP 401: No auth", 1),
        ((200, {"choices": [{"message": {"content": 5}}]}), "another form", 1),
        ((200, b"<html>"), "another form", 1),
        ((500, {}), "HTTP 500", 4),
        (
            (404, {"object": "error", "message": "The model `m` does not exist.", "code": 404}),
            "404: The model `m` doe",
            1,
        ),
        ((404, {"error": "model 'm' not found"}), "HTTP 404: model 'm' not found", 1),
        ((404, {"detail": "Not Found"}), "HTTP 404: Not Found", 1),
        ((403, {"error": {"message": "You exceeded your quota"}}), "HTTP 403: You exceeded", 1),
        ((403, b"no JSON"), "HTTP 403", 1),
    ],
)
def test_a_server_that_will_not_is_told_in_one_line(server, answer, words, requests):
    server.answers = [answer] * 9
    with pytest.raises(ModelError, match=rf"judge m at 127\.0\.0\.1: .*{words}.*; expected .*; check --url"):
        Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])
    assert len(server.heard) == requests


def test_an_answer_cut_off_within_its_reasoning_is_unread_and_stops_nothing(server):
    server.answers = [(200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]})]
    assert Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])]) == [""]


FILTER = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
AZURE = {"message": FILTER, "type": None, "param": "prompt", "code": "content_filter", "status": 400}
AZURE["innererror"] = {"code": "ResponsibleAIPolicyViolation"}
LONG = "This model's maximum context length is 100 tokens, and max_tokens or max_completion_tokens is too large: 512."


def parts(*texts):
    return json.dumps({"choices": [{"message": {"content": list(texts)}}]}).encode()


def test_a_text_in_parts_is_read():
    """Of Mistral's reasoning models and of gateways; what is not text is left out, and where nothing is left unread."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "VERDICT: B"}]}
    assert read_reply(parts({"type": "text", "text": "A"})) == "A"
    verdict = [{"type": "text", "text": text} for text in ("VERD", "ICT: A")]
    assert read_reply(parts(thought, *verdict)) == "VERDICT: A"
    for content in ([], [thought], [{"type": "image_url", "text": 5}, {"type": "text"}, 5, None, {"type": []}]):
        assert isinstance(read_reply(parts(*content)), ServerRefusal)
    with pytest.raises(ValueError, match="no text"):
        read_reply(b'{"choices": [{"message": {"content": {"type": "text"}}}]}')


@pytest.mark.parametrize(
    ("loc", "param"),
    [(5, "5"), ("temperature", "temperature"), (["body", "a", 0], "a.0"), ({"a": 1}, "{'a': 1}"), (None, "")],
)
def test_where_an_error_is_may_have_any_form(loc, param):
    for error in ({"error": {"loc": loc}}, {"detail": [{"loc": loc}]}):
        assert read_error(json.dumps(error).encode()) == ServerError("", param, "")


def choice(content=None, ended="stop", **message):
    return 200, {"choices": [{"message": {"content": content, **message}, "finish_reason": ended}]}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (choice(), "an answer without text, finish_reason: stop"),
        (choice(refusal="I can't help\nwith that."), "I can't help with that."),
        (choice("VERDICT: A", "content_filter"), "finish_reason: content_filter"),
        (choice(ended="content_filter"), "finish_reason: content_filter"),
        ((200, {"choices": []}), "no choice in its answer"),
        ((200, {"error": {"code": 400, "message": "Provider returned error"}}), "HTTP 400: Provider returned error"),
        ((400, {"error": AZURE}), f"HTTP 400: {FILTER}"),
        ((400, {"object": "error", "message": LONG, "type": "BadRequestError", "param": None, "code": 400}), LONG),
        (
            (403, {"error": {"code": 403, "message": "Your input was flagged", "metadata": {}}}),
            "Your input was flagged",
        ),
        ((413, b"<html>too large</html>"), "HTTP 413"),
        ((422, {"detail": [{"loc": ["body", "messages"], "msg": "bad \x1b[31mtext", "input": "x"}]}), "bad [31mtext"),
        ((400, {"error": {"message": "our systems found a system prompt that is flagged, not allowed"}}), "is flagged"),
    ],
)
def test_one_question_that_is_refused_costs_that_question_alone(server, tmp_path, answer, sentence):
    """The third of ten; the sentence is kept, and what goes on after a stop does not ask it again."""
    server.reply = lambda body: answer if "about 2" in body["messages"][-1]["content"] else (200, server.say(body))
    tasks = [JudgeRequest(f"t{number}", grading_prompt(TWO, [f"about {number}"], 0)) for number in range(10)]
    for asked in (10, 0):
        server.heard.clear()
        found = run_judge(Endpoint(server.url, "m"), tasks, tmp_path / "kept.jsonl", lambda done: None)
        assert len(server.heard) == asked and list(found.refusals) == ["t2"] and sentence in found.refusals["t2"]
        assert list(map(read_grade, found.texts.values())) == [None if n == 2 else 6.0 for n in range(10)]
    assert server.heard == [] and all(read_verdict(found.texts[f"t{n}"]) for n in (0, 1, 3, 9))
    notes = judgment_notes(found.texts, found.refusals, [], read_grade)
    assert len(notes) == 1 and notes[0].startswith("1 of 10 judgments were refused") and sentence in notes[0]


@pytest.mark.parametrize(("count", "requests"), [(3, 3), (40, 8)])
def test_where_every_question_is_refused_the_first_ones_say_so(server, tmp_path, count, requests):
    """At once, with the server's sentence that was heard most often; nothing is kept of them."""
    server.reply = lambda body: (400, {"error": {"message": "API key not valid", "code": 400}})
    server.answers = [choice()]
    tasks = [JudgeRequest(f"t{number}", pairwise_prompt(TWO, [f"{number}"], ["y"])) for number in range(count)]
    words = rf"all of the first {requests} requests were refused: HTTP 400: API key not valid; .*check --url"
    with pytest.raises(ModelError, match=words):
        run_judge(Endpoint(server.url, "m", at_once=2), tasks, tmp_path / "kept.jsonl", lambda done: None)
    assert len(server.heard) == requests and not (tmp_path / "kept.jsonl").exists()
    server.reply = lambda body: (200, server.say(body))
    found = run_judge(Endpoint(server.url, "m"), tasks, tmp_path / "kept.jsonl", lambda done: None)
    assert found.refusals == {} and len(found.texts) == count


def test_what_is_left_after_a_stop_may_all_be_refused(server, tmp_path):
    """Others were judged before: it is for what is asked in these."""
    tasks = [JudgeRequest(f"t{number}", pairwise_prompt(TWO, [f"{number}"], ["y"])) for number in range(9)]
    server.reply = lambda body: (500, {}) if "\n8\n" in body["messages"][-1]["content"] else (200, server.say(body))
    with pytest.raises(ModelError, match="HTTP 500"):
        run_judge(Endpoint(server.url, "m"), tasks, tmp_path / "kept.jsonl", lambda done: None)
    server.heard.clear()
    server.reply = lambda body: (400, {"message": "no"})
    found = run_judge(Endpoint(server.url, "m"), tasks, tmp_path / "kept.jsonl", lambda done: None)
    assert len(server.heard) == 1 and found.refusals == {"t8": "HTTP 400: no"} and len(found.texts) == 9


def test_the_key_is_not_in_a_servers_sentence(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    server.answers = [(401, {"error": {"message": "Incorrect API key provided: sk-secret."}})]
    with pytest.raises(ModelError, match=r"HTTP 401: Incorrect API key provided: \*\*\*\.") as caught:
        Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])
    assert "sk-secret" not in str(caught.value)


def openai_error(message, param, code):
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


USE = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
ROLE = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
ONLY_1 = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."


def has_system(body):
    return body["messages"][0]["role"] == "system"


PICKY = {  # what a server does not take of a request, its error, and what is asked in its place
    "OpenAI max_tokens": ("max_tokens", 400, openai_error(USE, "max_tokens", "unsupported_parameter"), "limit"),
    "FastAPI max_tokens": (
        "max_tokens",
        422,
        {
            "detail": [
                {"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}
            ]
        },
        "limit",
    ),
    "OpenAI temperature": ("temperature", 400, openai_error(ONLY_1, "temperature", "unsupported_value"), "greedy"),
    "TGI temperature": (
        "temperature",
        422,
        {"error": "Input validation error: `temperature` must be positive"},
        "greedy",
    ),
    "OpenAI role": (has_system, 400, openai_error(ROLE, "messages[0].role", "unsupported_value"), "system"),
    "vLLM, Gemma": (
        has_system,
        400,
        {"object": "error", "message": "System role not supported", "type": "BadRequestError", "code": 400},
        "system",
    ),
    "llama.cpp, Gemma": (
        has_system,
        500,
        {"error": {"code": 500, "message": "Jinja Exception: System role not supported", "type": "server_error"}},
        "system",
    ),
    "vLLM, Mistral": (
        has_system,
        400,
        {"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/...", "code": 400}},
        "system",
    ),
}


@pytest.mark.parametrize("case", PICKY)
def test_a_setting_that_a_server_does_not_take_is_left_out_from_then_on(server, case):
    key, code, error, name = PICKY[case]
    refuses = key if callable(key) else lambda body: key in body
    server.reply = lambda body: (code, error) if refuses(body) else (200, server.say(body))
    judge, conversation = (
        Endpoint(server.url, "m", max_tokens=99, at_once=1),
        pairwise_prompt(TWO, ["short"], ["a longer one"]),
    )
    assert judge.adapted == [] and [read_verdict(text) for text in judge([conversation] * 3)] == ["A"] * 3
    bodies = [body for _, _, body in server.heard]
    assert list(map(refuses, bodies)) == [True, False, False, False]
    first, last = bodies[0], bodies[-1]
    if name == "system":
        assert last == first | {"messages": [{"role": "user", "content": f"{SYSTEM}\n\n{conversation[1]['content']}"}]}
    elif name == "limit":
        assert last == {k: v for k, v in first.items() if k != "max_tokens"} | {"max_completion_tokens": 4096}
    else:
        assert last == {k: v for k, v in first.items() if k != "temperature"}
    assert judge.adapted == [FORMAT_NOTES[name]] and judgment_notes({}, {}, judge.adapted, read_verdict) != []


def test_a_server_that_takes_none_of_them_is_asked_without_all(server):
    """Several questions at once, as a reasoning model of OpenAI's of 2024 answered."""
    errors = [
        (lambda body: "max_tokens" in body, openai_error(USE, "max_tokens", "unsupported_parameter")),
        (has_system, openai_error(ROLE, "messages[0].role", "unsupported_value")),
        (lambda body: "temperature" in body, openai_error(ONLY_1, "temperature", "unsupported_value")),
    ]
    server.reply = lambda body: next(((400, error) for test, error in errors if test(body)), (200, server.say(body)))
    judge = Endpoint(server.url, "m", at_once=4)
    assert [read_verdict(text) for text in judge([pairwise_prompt(TWO, ["x"], ["long"])] * 6)] == ["A"] * 6
    assert len(judge.adapted) == 3 and 9 <= len(server.heard) <= 6 + 3 * 4
    assert len(judge([pairwise_prompt(TWO, ["x"], ["long"])])) == 1 and set(server.heard[-1][2]) == {
        "model",
        "messages",
        "max_completion_tokens",
    }


ABOUT_A_QUESTION = [
    (400, "Invalid prompt: 'What temperature does water boil at?' contains invalid characters"),
    (400, "The system prompt and messages exceed the context window and cannot be processed (max 4096 tokens)."),
    (400, "Your system message is not valid: string too long"),
    (500, "system message bus not ready"),
    (400, "Only 4096 tokens are supported; the temperature of the room was in the text"),
    (422, "The system role was given a text that is not valid UTF-8."),
]


@pytest.mark.parametrize(("status", "message"), ABOUT_A_QUESTION)
def test_an_error_that_repeats_the_question_is_not_about_the_form(status, message):
    assert format_change(RequestFormat(), status, ServerError(message, "", "invalid_request_error")) == {}


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("`temperature` is deprecated for this model.", "greedy"),
        ("This model does not support the temperature parameter", "greedy"),
        ("`temperature` (=0.0) has to be a strictly positive float", "greedy"),
        ("Unknown parameter: 'temperature'", "greedy"),
        ("Developer instruction is not enabled for models/gemma-3-27b-it", "system"),
        ("Only user and assistant roles are supported!", "system"),
        ("This model doesn't support system messages", "system"),
        ("System prompts are not supported by this model", "system"),
        ("Unexpected role 'system'", "system"),
    ],
)
def test_what_servers_say_of_a_form_that_they_do_not_take(message, change):
    assert format_change(RequestFormat(), 400, ServerError(message, "", "")) == {change: False}


def test_a_form_is_kept_once_the_same_question_is_answered_in_it(server):
    """One question names a setting and all that is looked for; it is refused, and the others are asked as ever."""
    message = "Invalid prompt: 'Why is temperature not supported, and unsupported: max_tokens?'"
    server.reply = lambda body: (
        (400, {"error": {"message": message}}) if "odd" in body["messages"][-1]["content"] else (200, server.say(body))
    )
    judge = Endpoint(server.url, "m", at_once=1)
    texts = judge([pairwise_prompt(TWO, [text], ["a longer one"]) for text in ("odd", "x", "y")])
    assert texts[0] == ServerRefusal(f"HTTP 400: {message}") and [read_verdict(text) for text in texts[1:]] == [
        "A",
        "A",
    ]
    assert judge.adapted == [] and [body for _, _, body in server.heard][-1].keys() >= {"temperature", "max_tokens"}


def test_a_server_that_refuses_both_forms_is_not_asked_for_ever(server):
    server.reply = lambda body: (400, openai_error(ONLY_1, "temperature", "unsupported_value"))
    found = Endpoint(server.url, "m")([pairwise_prompt(TWO, ["x"], ["y"])])
    assert found == [ServerRefusal(f"HTTP 400: {ONLY_1}")] and len(server.heard) == 2


@pytest.mark.parametrize("url", ["ftp://x/v1", "host/v1", "http://me:pw@host/v1", "http://", "http://h:x/v1"])
def test_addresses_are_checked_and_passwords_not_repeated(url):
    with pytest.raises(ConfigError, match="--url") as caught:
        Endpoint(url, "m")
    assert "pw" not in str(caught.value)


def test_nobody_there(monkeypatch):
    monkeypatch.setattr("lite_c2f.evaluation.llm_judge.judges.PAUSE", 0.0)
    with pytest.raises(ModelError, match="refused"):
        Endpoint("http://127.0.0.1:9/v1", "m")([pairwise_prompt(TWO, ["x"], ["y"])])


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

    tasks = [JudgeRequest(f"t{number}", [{"role": "user", "content": str(number)}]) for number in range(5)]
    first, second, steps = Tired(1), Tired(9), []
    with pytest.raises(KeyboardInterrupt):
        run_judge(first, tasks, tmp_path / "kept.jsonl", steps.append)
    told = run_judge(second, tasks, tmp_path / "kept.jsonl", steps.append)
    assert first.asked == ["0", "1"] and second.asked == ["2", "3", "4"]
    assert told.texts == {f"t{number}": f"about {number}" for number in range(5)} and steps == [0, 2, 2, 4, 5]
    other = Tired(9)
    other.name = "another judge"
    run_judge(other, tasks, tmp_path / "kept.jsonl", steps.append)
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
    server.answers = [(400, {"error": AZURE})]
    done = in_process(*common, "--judge", "m", "--url", server.url, "--actors", "fine,instruct,coarse")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["refused"] == 1 and found["adapted"] == [] and done.stderr.count(FILTER) == 1
    assert all(0 <= share <= 1 for share in found["repeated_across_turns"].values())
    assert list(found["repeated_across_turns"]) == ["fine", "instruct", "coarse"]
    assert found["questions"] == 8 and len(server.heard) == (32 if mode == "pairwise" else 48)
    if mode == "pairwise":
        for pair, refused in (("fine over instruct", 1), ("fine over coarse", 0)):
            table = found["pairs"][pair]["categories"]
            assert len(table) == 9 and table["all"]["unread"] == refused
            assert table["all"]["win"] + table["all"]["tie"] + table["all"]["loss"] == 8 - refused
    else:
        assert sum(found["grades"][actor]["unread"] for actor in ("fine", "instruct", "coarse")) == 1
        assert found["grades"]["fine"]["all"] == 6.0 and found["grades"]["fine"]["turn 2"] == 6.0
    saved = json.loads((run / "evaluation" / f"judge-{mode}.json").read_text())
    assert list(saved["refusals"].values()) == [f"HTTP 400: {FILTER}"] and len(saved["judgments"]) == len(server.heard)
    assert len(saved["rows"]) == 8 and all(len(row["answers"]["fine"]) == 2 for row in saved["rows"])
    assert not list((run / "evaluation").glob("judge-*.jsonl"))
    done = in_process(*common[:-1], "--judge", toy_models.instruct)
    assert done.returncode == 0, done.stderr
    assert "8 questions, judged by" in done.stdout
