"""The app through its API and its own endpoints: many visitors, questions nobody waits for, what scripts may ask."""

import ctypes
import gc
import json
import os
import runpy
import secrets
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from lite_c2f.chat import Chat
from lite_c2f.errors import ConfigError
from lite_c2f.ui import app as ui
from lite_c2f.ui.serve import SESSIONS, launch

# Gradio's server threads leave event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]

QUESTION = "Lea has 3 apples, first gets 7, second buys 5, third drops 8. How many now?"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def collected():
    """What Gradio leaves behind is collected here, where its warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def chat(toy_run):
    return Chat(toy_run)


@pytest.fixture(scope="module")
def page(chat):
    page = launch(ui.build(chat), "the toy run", port=free_port(), prevent_thread_lock=True)
    yield page
    page.close()


def visitor(page):
    from gradio_client import Client

    return Client(page.local_url, verbose=False)


@pytest.fixture
def client(page):
    return visitor(page)


def idle(chat):
    until = time.monotonic() + 600
    while chat.busy() != (0, 0) or any(thread.name == "lite_c2f-chat" for thread in threading.enumerate()):
        assert time.monotonic() < until, chat.busy()
        time.sleep(0.05)


def test_what_is_refused_at_the_start_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LITE_C2F_AUTH", raising=False)
    for arguments, words in (
        (["nowhere", "--auth", "user"], "--auth"),
        (["nowhere", "--host", "0.0.0.0"], "0.0.0.0"),
        (["nowhere"], "nowhere"),
        (["nowhere", "--models", "nowhere"], "--models"),
        (["nowhere", "--also", "http://127.0.0.1:1/v1", "--also", "http://u:p@h/v1"], "--also"),
    ):
        monkeypatch.setattr("sys.argv", ["app.py", *arguments, "--port", str(free_port())])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(Path(__file__).parents[2] / "app.py"), run_name="__main__")
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1 and words in said


@pytest.mark.slow
def test_a_script_gets_what_the_chat_says_with_types(client, chat):
    got = client.predict(QUESTION, ["coarse", "fine"], 0.5, seed=7, max_tokens=40, api_name="/compare")
    expected = chat.answer(QUESTION, ["coarse", "fine"], score=True, ratio=0.5, seed=7, max_tokens=40)
    assert set(got) == {"coarse", "fine"}
    for pane, event in expected.items():
        same = ("text", "tokens", "finish", "seed", "ratio", "reward", "repeated")
        assert {name: got[pane][name] for name in same} == {name: getattr(event, name) for name in same}
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/compare", "/facts"}  # nothing of the page's own
    types = {item["parameter_name"]: item["python_type"]["type"] for item in described["/compare"]["parameters"]}
    assert types["prompt"] == "str" and types["seed"] == "int" and "float" in types["ratio"]
    assert client.predict(api_name="/facts")["ratio"] == chat.ratio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("  ",), "empty prompt"),
        ((QUESTION, ["fien"]), "fien"),
        ((QUESTION, []), "panes"),
        ((QUESTION, ["fine"], -1.0), "ratio=-1"),
        (("x" * 40_000,), "40000 characters"),
        ((QUESTION, ["fine"], 1.0, "", 0.7, 1.0, 0, 1.0, "x"), "wrong type"),
        ((QUESTION, ["fine"], 1.0, "", 1e-30), "temperature=1e-30"),
        ((QUESTION, ["fine"], 1.0, ["a"]), "no text"),
    ],
)
def test_what_a_script_can_correct_is_told_in_a_line(client, arguments, words):
    with pytest.raises(Exception, match=words):
        client.predict(*arguments, api_name="/compare")


@pytest.mark.slow
def test_sixteen_visitors_at_once_each_get_their_own(page, chat):
    def asked(number):
        return f"Ann has {number} books, first buys 3, second loses 1. How many now?"

    alone = [chat.answer(asked(number), seed=number, ratio=number / 16, max_tokens=64) for number in range(16)]
    got, failed = {}, []

    def visit(number):
        try:
            given = {"ratio": number / 16, "seed": number, "max_tokens": 64}
            got[number] = visitor(page).predict(asked(number), **given, api_name="/compare")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for number in range(16):
        assert {p: r["text"] for p, r in got[number].items()} == {p: e.text for p, e in alone[number].items()}


def post(page, path, content):
    request = urllib.request.Request(
        f"{page.local_url.rstrip('/')}/gradio_api/{path}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def resident_mib():
    """What is in use, without what was freed and only not given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_eighty_aborted_requests_leave_nothing(page, chat):
    """As a browser's page asks, and goes away: some at once, some with a few words read."""
    config = page.get_config_file()
    ask = next(function for function in config["dependencies"] if function["api_name"] == "ask")
    inputs = {found["id"]: found["props"] for found in config["components"] if found["id"] in ask["inputs"]}
    labels = [inputs[number]["label"] for number in ask["inputs"]]
    values = [inputs[number].get("value") for number in ask["inputs"]]

    def abort(number):
        data = [*values]
        for label, value in (
            ("Question", QUESTION),
            ("Max new tokens", 1024),
            ("Temperature", 2),
            ("Seed", str(number)),
        ):
            data[labels.index(label)] = value
        session = secrets.token_hex(8)
        post(page, "queue/join", {"data": data, "fn_index": ask["id"], "session_hash": session})
        stream = urllib.request.urlopen(f"{page.local_url.rstrip('/')}/gradio_api/queue/data?session_hash={session}")
        for _ in range(number % 5):
            stream.readline()
        stream.close()

    def abort_script(number):
        event = post(page, "call/compare", {"data": [QUESTION, ["coarse"], 1.0, "", 2.0, 1.0, 0, 1.0, 2000, number]})
        stream = urllib.request.urlopen(f"{page.local_url.rstrip('/')}/gradio_api/call/compare/{event['event_id']}")
        for _ in range(number % 3):
            stream.readline()
        stream.close()

    def aborted(count):
        for number in range(count):
            (abort_script if number % 4 == 0 else abort)(number)
        idle(chat)
        return resident_mib()

    sizes = [aborted(SESSIONS + 20)]  # until Gradio, which keeps 0.65 MiB per page, keeps no more of them
    for _ in range(6):  # on a busy machine more go on at once than before; what leaks grows every time
        sizes.append(aborted(80))
        if sizes[-1] - sizes[-2] < 6:
            break
    assert sizes[-1] - sizes[-2] < 6, sizes  # MiB: 75 KiB a request
    assert chat.answer(QUESTION, max_tokens=8)["fine"].finish == "limit"


@pytest.mark.slow
def test_a_foreign_host_name_is_refused_and_nothing_is_loaded_from_outside(page):
    with urllib.request.urlopen(page.local_url) as answer:
        served = answer.read().decode()
    assert "fonts.googleapis" not in served and "cdnjs" not in served
    request = urllib.request.Request(page.local_url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400


@pytest.mark.slow
def test_a_port_in_use_is_told_before_anything_is_loaded(page, tmp_path):
    with pytest.raises(ConfigError, match="free port"):
        ui.serve(tmp_path, port=page.server_port)
