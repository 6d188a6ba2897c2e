"""The server at a real address, with OpenAI's own client, many clients at once, the judge, and as a process."""

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn

from lite_c2f.chat import Chat, ChatSettings
from lite_c2f.chat.remote_servers import RemoteServers
from lite_c2f.chat.server import build
from lite_c2f.chat.server.serve import ApiServer
from lite_c2f.evaluation.llm_judge.judges import Endpoint
from lite_c2f.evaluation.llm_judge.replies import KEY_VARIABLE
from lite_c2f.runtime.address import bound_socket
from lite_c2f.runtime.chat_servers import ALSO_KEY_VARIABLE

pytestmark = pytest.mark.slow
openai = pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]
QUESTION = "Tom has 3 apples, finds 4, loses 2. How many now?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def chat(toy_run):
    return Chat(toy_run)


@pytest.fixture(scope="module")
def url(chat):
    with bound_socket("127.0.0.1", 0) as bound:
        config = uvicorn.Config(build(chat, key="k"), ws="none", lifespan="off", log_level="error")
        server = ApiServer(config, "ready")
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as made:
        yield made


def idle(chat):
    """Wait until nothing is answered, and the thread that answered has ended too: it ends a moment after."""
    until = time.monotonic() + 60
    while chat.busy() != (0, 0) or "lite_c2f-chat" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < until, chat.busy()
        time.sleep(0.01)


def test_openais_client_reads_every_response(chat, client):
    assert "fine@0.5" in [model.id for model in client.models.list()]
    reply = chat.answer(QUESTION, ["coarse"], max_tokens=60, temperature=0.0)["coarse"]
    options = {"model": "coarse", "messages": MESSAGES, "max_tokens": 60, "temperature": 0}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].message.content == reply.text
    assert whole.choices[0].finish_reason == ("length" if reply.finish == "limit" else "stop")
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == reply.text
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens > 10
    raw = client.completions.create(
        model="base", prompt=f"\n\nHuman: {QUESTION}\n\nAssistant:", max_tokens=4, logprobs=1
    )
    assert len(raw.choices[0].logprobs.tokens) == 4 and raw.choices[0].text == "".join(raw.choices[0].logprobs.tokens)


def test_openais_client_raises_its_own_errors(url, client):
    for error, more in (
        (openai.NotFoundError, {"model": "other"}),
        (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "3 apples " * 200}]}),
    ):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**({"model": "fine", "messages": MESSAGES} | more))
        assert caught.value.code in ("model_not_found", "unsupported_parameter", "context_length_exceeded")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()


def test_sixteen_clients_at_once_get_their_own_answers(chat, url, client):
    questions = [f"Tom has {number % 9 + 1} apples, finds {number // 2 + 1}. How many now?" for number in range(16)]

    def ask(question):
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(model="coarse", messages=messages, temperature=0, max_tokens=24)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, questions))
    expected = [chat.answer(question, ["coarse"], temperature=0.0, max_tokens=24)["coarse"] for question in questions]
    assert [each.choices[0].message.content for each in together] == [reply.text for reply in expected]
    assert [each.usage.completion_tokens for each in together] == [reply.tokens for reply in expected]


def test_two_hundred_aborted_requests_leave_nothing(chat, url):
    """Half are streams left after the first event, half wait for an answer that they give up."""
    body = {"model": "base", "prompt": "Tom has 3", "max_tokens": 2000, "temperature": 1.5}
    headers = {"authorization": "Bearer k"}

    def abort(client, number):
        mine = {**headers, "x-openwebui-user-id": str(number % 16)}
        if number % 2:
            more = {"json": body | {"stream": True}, "headers": mine, "timeout": 60}
            with client.stream("POST", f"{url}/completions", **more) as stream:
                assert stream.status_code == 200 and next(stream.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{url}/completions", json=body, headers=mine, timeout=httpx.Timeout(60, read=0.05))

    with httpx.Client() as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(functools.partial(abort, client), range(200)))
    idle(chat)
    reply = httpx.post(f"{url}/completions", json=body | {"max_tokens": 3}, headers=headers, timeout=60)
    assert reply.json()["usage"]["completion_tokens"] == 3


def test_the_judge_asks_it(chat, url, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "k")
    judge = Endpoint(url, "fine", max_tokens=40)
    (answer,) = judge([[{"role": "system", "content": "Tom has apples."}, *MESSAGES]])
    expected = chat.answer(QUESTION, ["fine"], max_tokens=40, temperature=0.0, system="Tom has apples.")["fine"].text
    assert answer == expected and answer
    assert judge.adapted == []  # it took every setting


def test_the_app_asks_it_for_another_pane(chat, url, monkeypatch):
    """The answer that comes over HTTP is the actor's own, with its figures counted here from the text."""
    monkeypatch.setenv(ALSO_KEY_VARIABLE, "k")
    servers = RemoteServers([url])
    for part in (chat, chat._loaded.result()):
        monkeypatch.setattr(part, "servers", servers)
    name = f"server@{url.split('/')[2]}/fine"
    assert name in [listed.name for listed in chat.listed_others()]
    own, other = chat.answer(QUESTION, ["fine", name], max_tokens=60, temperature=0.7, seed=3, score=True).values()
    assert other.text == own.text and other.finish == own.finish
    assert other.seed == own.seed
    if own.finish == "eos":  # the text of an answer that is cut need not encode to the tokens that were drawn
        assert (other.tokens, other.repeated) == (own.tokens, own.repeated)
        assert other.reward == pytest.approx(own.reward, abs=1e-4)
    stream = chat.stream(QUESTION, [name], ChatSettings(max_tokens=3000, temperature=1.5, top_p=0.99))
    next(stream)
    stream.close()
    idle(chat)  # the server stops writing too
    monkeypatch.setenv(ALSO_KEY_VARIABLE, "wrong")
    servers = RemoteServers([url])
    for part in (chat, chat._loaded.result()):
        monkeypatch.setattr(part, "servers", servers)
    assert chat.servers.listed() == [] and "HTTP 401" in chat.servers.messages()[0]
    assert "HTTP 401" in chat.answer(QUESTION, [name])[name].message


def environment():
    kept = {name: value for name, value in os.environ.items() if name != "LITE_C2F_API_KEY"}
    return kept | {"PYTHONPATH": str(ROOT)}


def test_the_process_says_where_it_is_and_ends_with_ctrl_c(toy_run):
    command = [sys.executable, "-m", "lite_c2f", "serve", str(toy_run), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            ready, curl = process.stdout.readline(), process.stdout.readline()
            url = ready.split(" at ")[1].split()[0]
            assert "coarse, fine, fine@RATIO, baseline, base" in ready and f"curl {url}/chat/completions" in curl
            body = {"model": "base", "prompt": "Tom has 3", "max_tokens": 3000, "stream": True, "temperature": 1.5}
            with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as stream:
                pieces = stream.iter_text()
                next(pieces)
                process.send_signal(signal.SIGINT)
                rest = "".join(pieces)
            assert '"server_stopped"' in rest  # it was being written: its reader is told
            assert process.wait(60) == 130 and process.stderr.read() == ""
        finally:
            process.kill()


def test_a_wrong_address_is_one_line(call, toy_run, monkeypatch):
    monkeypatch.delenv("LITE_C2F_API_KEY", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for words, expected in (
            (("--port", taken.getsockname()[1]), "a free port"),
            (("--host", "0.0.0.0"), "without a key"),
            (("--api-key", ""), "an empty API key"),
            (("--api-key", "a b"), "an API key with a space"),
        ):
            code, out, err = call("serve", toy_run, *words)
            assert (code, out, err.count("\n")) == (2, "", 1) and expected in err
