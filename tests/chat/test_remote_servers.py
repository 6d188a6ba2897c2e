"""Models of other servers as panes: what is listed, what is asked, and their answers beside those of the run."""

import asyncio
import re
import threading
import time

import pytest
from chat_servers import ChatServer, event, says
from pico_chat import ask_servers, pico_chat
from starlette.testclient import TestClient

from lite_c2f.chat import ChatSettings, answering, remote_row, remote_servers
from lite_c2f.chat.panes import AnswerForm, Pane, pane_of, title_of
from lite_c2f.chat.remote_servers import RemoteServers
from lite_c2f.chat.server import build
from lite_c2f.chat.server_names import ServerModel, server_model_in
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError
from lite_c2f.runtime import chat_servers
from lite_c2f.runtime.chat_servers import ALSO_KEY_VARIABLE

QUESTION = {"temperature": 1.2, "seed": 3, "max_tokens": 8}


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    return pico_chat(pico, tmp_path_factory.mktemp("run"))


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def chat(made, server):
    ask_servers(made, RemoteServers([server.url]))
    made.actors.reward_model.answers.clear()
    return made


@pytest.fixture
def pane(server):
    return f"server@{server.place}/llama"


def answered(chat, pane, **more):
    (reply,) = chat.answer("w1 w2", [pane], **QUESTION | more).values()
    return reply


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, threading.enumerate()
        time.sleep(0.005)
    return True


def no_thread_left():
    return wait_for(lambda: not any(thread.name.startswith("lite_c2f-") for thread in threading.enumerate()))


def test_a_name_is_a_servers_place_and_a_model():
    assert server_model_in("server@[::1]:8000/a/b c") == ServerModel("[::1]:8000", "a/b c")
    assert pane_of("server@h/m") == Pane("server@h/m", "server", source="server@h/m")
    assert title_of("server@h:1/llama") == "llama at h:1" and len(title_of(f"server@h:1/{'x' * 200}")) == 58
    for name in ("server@h", "server@h/", "server@/m", "server@h /m", "server@u:p@h/m", f"server@h/{'x' * 201}"):
        assert server_model_in(name) is None, name
    for name in ("server@h/a\nb", "server@h/a\u202eb", "server@h/\ud800", "Server@h/m", "server", "fine@0.5"):
        assert server_model_in(name) is None, name
    with pytest.raises(ConfigError, match="pane 'server@h'"):
        pane_of("server@h")


@pytest.mark.parametrize(
    "urls",
    [["h/v1"], ["file:///etc"], ["http://"], ["http://u:p@h/v1"], ["http://h/v1", "http://H:80/x"], ["http://h:x/v1"]],
)
def test_addresses_that_are_none_are_refused_without_being_repeated(urls):
    with pytest.raises(ConfigError, match="--also") as caught:
        RemoteServers(urls)
    assert "u:p" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_answer_is_a_reply_like_the_others(chat, server, pane, monkeypatch):
    monkeypatch.setenv(ALSO_KEY_VARIABLE, "sk-1")
    ask_servers(chat, RemoteServers([server.url + "/"]))
    server.answer = says(event(role="assistant", content=""), event(" w1 w2"), event(" w1 w3 "), event(None, "stop"))
    turns = [Turn("human", "w1"), Turn("assistant", "w2"), Turn("human", "w3")]
    settings = ChatSettings(5, 0.5, 0.9, 7, 1.1, seed=11, system="w9")
    *_, reply = chat.stream({pane: turns}, [pane], settings, score=True)
    assert reply._replace(tokens_per_s=0.0, first_token_s=0.0) == reply._replace(
        pane=pane, text="w1 w2 w1 w3", tokens=5, tokens_per_s=0.0, finish="eos", message="", first_token_s=0.0,
        reward=4.0, repeated=0.0, dropped=0, cut=False, ratio=None, seed=11,
    )  # fmt: skip
    assert reply.first_token_s > 0 and reply.tokens_per_s > 0
    (method, path, headers, body) = server.requests[-1]
    assert (method, path, headers["authorization"]) == ("POST", "/v1/chat/completions", "Bearer sk-1")
    messages = [("user", "w9\n\nw1"), ("assistant", "w2"), ("user", "w3")]
    assert body.pop("messages") == [{"role": role, "content": text} for role, text in messages]
    assert body == {
        "model": "llama", "stream": True, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 11,
    }  # fmt: skip
    ((turns, answer),) = chat.actors.reward_model.answers
    assert turns[0].text == "w9\n\nw1" and answer.chat and answer.finish == "eos"
    assert chat.actors.instruct_tokenizer.decode(answer.text_tokens).split() == ["w1", "w2", "w1", "w3"]
    assert no_thread_left()


def test_it_answers_beside_the_runs_own_actors(chat, server, pane):
    alone = chat.answer("w1 w2", ["coarse", "fine"], **QUESTION)
    server.answer = says(event("w1 w2 w1 w2 w1 w2", "length"))
    together = chat.answer("w1 w2", ["coarse", pane, "fine"], **QUESTION, score=True)
    assert [together[key].text for key in alone] == [reply.text for reply in alone.values()]
    assert (together[pane].finish, together[pane].tokens, together[pane].reward) == ("limit", 6, 6.0)
    assert together[pane].repeated == pytest.approx(1 / 3)  # of three 4-grams the last is the first again
    assert {reply.reward for reply in together.values()} == {6.0, 8.0}


def test_text_grows_and_split_characters_are_whole(chat, server, pane):
    begun, go_on = event("w1 é😀"), threading.Event()
    place = begun.index(b"\\ud83d") + 3  # json.dumps writes escapes: in the middle of one

    def answer(handler):
        says(begun[:place], begun[place:])(handler)
        go_on.wait(10)
        raw = 'data: {"choices": [{"delta": {"content": " w2 é"}, "finish_reason": "stop"}]}\n\n'.encode()
        for portion in (raw[:-44], raw[-44:]):  # the last byte of é opens the second portion
            handler.wfile.write(portion)
            handler.wfile.flush()
            time.sleep(0.02)

    server.answer = answer
    stream = chat.stream("w1", [pane], ChatSettings(8))
    first = next(stream)
    go_on.set()
    *_, last = stream
    assert (first.text, first.finish) == ("w1 é😀", None) and first.first_token_s > 0
    assert (last.text, last.finish) == ("w1 é😀 w2 é", "eos")


@pytest.mark.parametrize(
    ("answer", "finish", "text", "message"),
    [
        (says(event("w1 w2"), event(None, "stop")), "eos", "w1 w2", ""),  # no [DONE]
        (says(b": hello\n\n", event("w1"), b'data: {"choices": [], "usage": {}}\n\n', event(" w2", "length")),
         "limit", "w1 w2", ""),
        (says(event(None, reasoning_content="w7"), event("w1", "stop")), "eos", "w1", ""),
        (says(event("w1", "stop"), b"data: <html>\n\n"), "eos", "w1", ""),  # what follows an ending is not read
        (says(b'{"choices": [{"message": {"content": "w1"}, "finish_reason": "stop"}]}', kind="application/json"),
         "eos", "w1", ""),
        (says(event("w1"), event(" w2", "MAX_TOKENS"), kind="text/plain"), "limit", "w1 w2", ""),
        (says(event("w1", "STOP"), content_encoding="gzip"), "error", "", "a compressed answer"),
        (says(event(None, reasoning="w7"), event(None, "length")), "error", "", "only reasoned"),
        (says(event("w1"), b"data: [DONE]\n\n"), "error", "w1", "without a finish_reason"),
        (says(event("w1")), "error", "w1", "without a finish_reason"),
        (says(event("w1"), content_length="9999"), "error", "w1", "peer closed connection"),
        (says(event("w1"), b'data: {"error": {"message": "no memory"}}\n\n'), "error", "w1", "no memory"),
        (says(event("w1"), event(None, "content_filter")), "error", "w1", "finish_reason content_filter"),
        (says(b"<html>", kind="text/html"), "error", "", "another form than OpenAI's"),
        (says(b'{"error": {"message": "model not\\nfound"}}', status=404, kind="application/json"),
         "error", "", "HTTP 404: model not found; expected an answer; choose a model that the server lists"),
        (says(b'{"error": "wrong key sk-1"}', status=401), "error", "", r"HTTP 401: wrong key \*\*\*; .*_ALSO_KEY"),
        (says(b'{"detail": "' + b"y" * 999 + b'"}', status=422), "error", "", r"HTTP 422: y{200,}\.\.\.$"),
        (says(status=302, location="http://127.0.0.1:1/"), "error", "", "HTTP 302: a redirect"),
        (lambda handler: handler.connection.close(), "error", "", "disconnected|ReadError"),
    ],
)  # fmt: skip
def test_an_answer_ends_as_the_server_says_or_fails_alone(
    chat, server, pane, monkeypatch, answer, finish, text, message
):
    monkeypatch.setenv(ALSO_KEY_VARIABLE, "sk-1")
    ask_servers(chat, RemoteServers([server.url]))
    server.answer = answer
    replies = chat.answer("w1 w2", ["fine", pane], **QUESTION, score=True)
    reply = replies[pane]
    assert (reply.finish, reply.text) == (finish, text)
    assert re.search(message, reply.message) and len(reply.message) <= 300
    assert "sk-1" not in reply.message and bool(message) == reply.message.startswith(server.place)
    assert (replies["fine"].finish, replies["fine"].tokens) == ("limit", 8) and replies["fine"].reward == 8.0
    assert (reply.reward is None) == (finish == "error")
    assert len(server.asked()) == 1  # it is never asked again, and no other address is


def test_a_newer_name_of_the_limit_is_taken_where_the_server_asks_for_it(chat, server, pane):
    refusal = b'{"error": {"message": "Unsupported parameter: use \'max_completion_tokens\' instead."}}'
    answers = iter([says(refusal, status=400), says(event("w1", "stop")), says(refusal, status=400)])
    server.answer = lambda handler: next(answers)(handler)
    assert answered(chat, pane).text == "w1"
    first, second = server.asked()
    assert second == {**{k: v for k, v in first.items() if k != "max_tokens"}, "max_completion_tokens": 8}


@pytest.mark.parametrize("headers", [True, False])
def test_a_silent_server_is_left_at_once_when_its_answer_is_stopped(chat, server, pane, headers):
    server.answer = server.silent(event("w1 w2"), headers=headers)
    stream = chat.stream("w1", [pane, "fine"], ChatSettings(8), score=True)
    seen = []
    for reply in stream:
        seen.append(reply)
        if headers and reply.pane == pane:
            break
        if not headers and reply.pane == "fine" and reply.finish:
            break
    wait_for(server.asked)
    assert not stream.finished
    stopped_at = time.monotonic()
    stream.stop(pane)
    last = {reply.pane: reply for reply in [*seen, *stream]}
    assert time.monotonic() - stopped_at < 2 and server.gone.wait(2)
    assert (last[pane].finish, last[pane].text) == ("stopped", "w1 w2" if headers else "")
    assert last["fine"].finish == "limit" and last["fine"].reward == 8.0
    assert no_thread_left()


def test_a_closed_stream_leaves_nothing(chat, server, pane):
    server.answer = server.silent(event("w1"))
    chat.stream("w1", [pane], ChatSettings(8)).close()
    stream = chat.stream("w1", [pane], ChatSettings(8))
    next(stream)
    del stream
    assert server.gone.wait(5) and no_thread_left() and chat.busy() == (0, 0)


def test_a_silent_server_takes_no_place_in_the_batch_and_no_time(chat, server, pane, monkeypatch):
    monkeypatch.setattr(answering, "MAX_ROWS", 1)
    server.answer = server.silent(event("w1"))
    stream = chat.stream("w1", [pane], ChatSettings(8))
    next(stream)
    assert answered(chat, "fine").tokens == 8
    steps, step = [], answering.AnswerRows.step
    monkeypatch.setattr(answering.AnswerRows, "step", lambda rows: steps.append(step(rows)))
    time.sleep(0.4)
    assert 1 <= len(steps) <= 12  # every 50 ms
    stream.close()
    assert no_thread_left()


def test_a_full_batch_does_not_keep_servers_waiting(chat, server, pane, monkeypatch):
    hold, step = threading.Event(), answering.AnswerRows.step
    hold.set()
    monkeypatch.setattr(answering, "MAX_ROWS", 1)
    monkeypatch.setattr(answering.AnswerRows, "step", lambda rows: time.sleep(0.005) if hold.is_set() else step(rows))
    local = chat.stream("w1", ["fine"], ChatSettings(8))
    next(local)
    assert answered(chat, pane).text == "w1" and not local.finished
    hold.clear()
    *_, last = local
    assert last.tokens == 8


def test_answers_of_servers_are_bounded(chat, server, pane, monkeypatch):
    monkeypatch.setattr(remote_row, "MAX_TEXT", 5)
    server.answer = server.silent(event("w1 w2 w3"))
    assert answered(chat, pane)[1:5:3] == ("w1 w2", "limit") and server.gone.wait(5)
    monkeypatch.setattr(remote_row, "MAX_BYTES", 100)
    server.answer = says(*[b": keep-alive\n\n"] * 20)
    assert "more than 100 bytes" in answered(chat, pane).message
    monkeypatch.setattr(remote_servers, "MAX_AT_ONCE", 0)
    assert "0 answers of other servers; expected fewer" in answered(chat, pane).message


def test_an_answer_longer_than_the_context_has_no_reward(chat, server, pane, caplog):
    server.answer = says(event("w1 " * 64, "stop"))
    replies = chat.answer("w1", [pane, "fine"], max_tokens=8, score=True)
    assert (replies[pane].tokens, replies[pane].reward, replies["fine"].reward) == (65, None, 8.0)
    assert chat.context == 64
    assert answered(chat, pane, score=True).reward is None and not caplog.records  # that is no failure


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_reached_without_a_proxy(chat, server, monkeypatch, host):
    """A proxy would be sent the key and the conversation; here one that takes every request."""
    proxy = ChatServer()
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    try:
        place = server.place.replace("127.0.0.1", host)
        ask_servers(chat, RemoteServers([f"http://{place}/v1"]))
        assert answered(chat, f"server@{place}/llama").text == "w1"
        assert len(server.requests) == 2 and proxy.requests == []
        with pytest.MonkeyPatch.context() as patch:  # one elsewhere: the proxy is in use, so the test can fail
            patch.setattr(chat_servers, "is_loopback", lambda host: False)
            RemoteServers([f"http://{place}/v1"]).listed()
        assert len(proxy.requests) == 1
    finally:
        proxy.close()


def test_only_what_is_listed_is_asked(chat, server, pane):
    server.models = ["llama", "a/b", "x\ny", "z" * 201, "llama"]
    listed = chat.listed_others()
    assert [each.name for each in listed] == [pane, f"server@{server.place}/a/b"]
    assert listed[1].label == f"a/b at {server.place} (another server)"
    other = ChatServer()
    try:
        for name in (f"server@{server.place}/other", f"server@{other.place}/llama", f"server@{server.place}/llam"):
            reply = answered(chat, name)
            assert reply.finish == "error" and ("is not listed" in reply.message or "of no server" in reply.message)
        assert other.requests == []
    finally:
        other.close()
    assert {(method, path) for method, path, *_ in server.requests} == {("GET", "/v1/models")}


def test_a_model_named_at_the_start_is_asked_whether_it_is_listed_or_not(chat, server, pane):
    ask_servers(chat, RemoteServers([f"{server.url}#models/a", f"{server.url}/#b#c"]))
    server.listing = says(b"{}", status=500)
    names = [f"server@{server.place}/{model}" for model in ("models/a", "b#c")]
    assert [each.name for each in chat.listed_others()] == names and chat.servers.messages() == []
    assert answered(chat, names[1]).text == "w1" and server.asked()[0]["model"] == "b#c"
    assert answered(chat, pane).finish == "error"
    ask_servers(chat, RemoteServers([f"{server.url}#models/a"]))
    server.listing = server.give_list
    assert [each.name for each in chat.listed_others()] == [names[0], pane]
    for urls in ([server.url, f"{server.url}#a"], [f"{server.url}#a", f"{server.url}2#a"], [f"{server.url}#a\nb"]):
        with pytest.raises(ConfigError, match="--also"):
            RemoteServers(urls)


def test_a_list_is_remembered_for_a_while_and_a_model_found_in_it_later_too(chat, server, pane, monkeypatch):
    assert chat.listed_others(fresh=False) == [] and server.requests == []
    assert len(chat.listed_others()) == len(chat.listed_others()) == len(server.requests) == 1
    assert len(chat.listed_others(fresh=False)) == 1
    server.models = ["new"]
    assert "is not listed" in answered(chat, f"server@{server.place}/new").message  # it was asked a moment ago
    monkeypatch.setattr(remote_servers, "REMEMBERED_SECONDS", 0.0)
    assert answered(chat, f"server@{server.place}/new").text == "w1"


def gone(server):
    server.close()
    server.close = lambda: None


def status(server):
    server.listing = says(b'{"error": {"message": "no\\nkey sk-1"}}', status=401)


def slow(server):
    server.listing = lambda handler: time.sleep(0.3)


def another_form(server):
    server.listing = says(b"<html>", kind="text/html")


def too_long(server):
    server.listing = says(b"[" + b" " * 2**20, kind="application/json")


def redirect(server):
    server.listing = says(status=301, location=server.url + "/other")


def empty(server):
    server.models = []


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (gone, "connection attempts failed"),
        (status, r"HTTP 401: no key \*\*\*"),
        (slow, "no answer within 0.1 s"),
        (another_form, "cannot be listed: "),
        (too_long, "more than 1048576 bytes"),
        (redirect, "HTTP 301"),
        (empty, "it lists no models"),
    ],
)
def test_a_server_without_a_list_lists_nothing_and_says_why(chat, server, pane, monkeypatch, fails, words):
    monkeypatch.setenv(ALSO_KEY_VARIABLE, "sk-1")
    monkeypatch.setattr(remote_servers, "LIST_SECONDS", 0.1 if fails is slow else 3.0)
    other = ChatServer()
    ask_servers(chat, RemoteServers([server.url, other.url]))
    fails(server)
    try:
        assert [each.name for each in chat.listed_others()] == [f"server@{other.place}/llama"]
        (message,) = chat.servers.messages()
        assert message.startswith(f"{server.place}: ") and re.search(words, message)
        replies = chat.answer("w1", ["fine", pane], max_tokens=8)
        assert replies["fine"].tokens == 8 and replies[pane].finish == "error"
        assert message in replies[pane].message and "\n" not in replies[pane].message
        assert len(server.requests) <= 1  # remembered too
    finally:
        other.close()


def test_what_is_for_this_runs_answers_alone_is_refused(chat, pane, server):
    for form in (AnswerForm(begun="w1", drawn=1), AnswerForm(raw=True), AnswerForm(logprobs=0)):
        with pytest.raises(ConfigError, match="another server"):
            chat.stream("w1", ["fine", pane], ChatSettings(8), form=form)
    with pytest.raises(ConfigError, match="temperature"):
        chat.stream("w1", [pane], ChatSettings(8, temperature=-1))
    turns = [Turn("human", "w1"), Turn("assistant", "w2"), Turn("human", "w3")]
    assert chat.rendered(turns, pane, ChatSettings(system="w4")) == "human: w4\n\nw1\n\nassistant: w2\n\nhuman: w3"
    assert server.requests == []


def test_the_server_of_a_run_does_not_lend_them(chat, server, pane):
    with TestClient(build(chat)) as client:
        body = {"model": pane, "messages": [{"role": "user", "content": "w1"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 404
        assert client.get(f"/v1/models/{pane}").status_code == 404
        assert not any(model["id"].startswith("server@") for model in client.get("/v1/models").json()["data"])
    assert server.requests == []


def test_a_notebooks_event_loop_is_no_hindrance(chat, server, pane):
    async def cell():
        return answered(chat, pane)

    assert asyncio.run(cell()).text == "w1"
