"""The page: who may reach it, what it shows, a question through its API."""

import gc
import html
import runpy
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from lite_c2f.chat import Chat, ChatSettings, Event
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError, RunError
from lite_c2f.ui import app as ui

# Gradio's server threads leave event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]

QUESTION = "Tom has 3 apples, finds 4, loses 2. How many now?"
EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_host_open_to_others_needs_a_password(host, tmp_path):
    with pytest.raises(ConfigError, match="without a password"):
        ui.launch(tmp_path, host=host)  # refused before the run is even looked at
    with pytest.raises(ConfigError, match="without a password"):
        ui.allowed_hosts(host, ("user", ""))
    assert ui.allowed_hosts(host or "example.org", ("user", "password"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
def test_this_machine_alone_needs_none(host):
    assert ui.allowed_hosts(host, None) == ["127.0.0.1", "localhost", "[::1]"]


def test_a_proxy_may_use_its_own_name():
    assert ui.allowed_hosts("127.0.0.1", None, "https://example.org/c2f")[-1] == "example.org"


def test_messages_and_status_lines_are_escaped():
    shown = ui.message(Turn("assistant", f"  {EVIL} & so"))
    text = shown["content"]["text"]
    assert "<" not in text
    assert html.unescape(text) == f"  {EVIL} & so"
    line = ui._line(Event("fine", "", 0, 0.0, "error", EVIL))
    assert "<img" not in line
    assert "&lt;img" in line


def test_without_a_run_it_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="make demo"):
        ui.find_run(None)
    for arguments, words in (
        ([], "make demo"),
        (["nowhere", "--auth", "user"], "--auth"),
        (["nowhere", "--host", "0.0.0.0"], "0.0.0.0"),
    ):
        monkeypatch.setattr("sys.argv", ["app.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(Path(__file__).parents[2] / "app.py"), run_name="__main__")
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1 and words in said


@pytest.fixture(scope="module", autouse=True)
def collected():
    """What Gradio leaves behind is collected here, where its warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def page(toy_run):
    port = free_port()
    page = ui.launch(toy_run, port=port, prevent_thread_lock=True)
    yield page
    page.close()


@pytest.fixture
def client(page):
    from gradio_client import Client

    return Client(page.local_url, verbose=False)


def ask(client, prompt, **settings):
    values = {"show_base": False, "ratio": 0.0, "temperature": 0.0, "max_tokens": 24, "top_p": 1.0, "seed": 0}
    got = client.predict(prompt=prompt, **(values | settings), api_name="/ask")
    return {"views": got[1:5], "lines": got[5:9]}


def texts(view):
    return [part["text"] for turn in view for part in turn["content"]]


@pytest.mark.slow
def test_a_question_comes_back_answered_in_three_panes(page, client, toy_run):
    got = ask(client, QUESTION)
    expected = Chat(toy_run).answer(QUESTION, ratio=0.0, temperature=0.0, max_tokens=24)
    for number, pane in enumerate(("coarse", "fine", "baseline")):
        view, line = got["views"][number], got["lines"][number]
        assert view[0]["role"] == "user"
        assert texts(view) == [QUESTION, expected[pane].text][: len(view)]
        assert f"{expected[pane].tokens} token" in line
        assert "tokens/s" in line
    assert got["views"][3] == []  # the base is not asked


@pytest.mark.slow
def test_the_conversation_goes_on_and_clear_forgets_it(client):
    ask(client, "Hi")
    second = ask(client, QUESTION)
    assert texts(second["views"][2])[0] == "Hi"
    assert QUESTION in texts(second["views"][2])
    client.predict(api_name="/clear")
    assert texts(ask(client, QUESTION)["views"][2])[0] == QUESTION


@pytest.mark.slow
def test_visitors_do_not_read_each_other(page, client):
    from gradio_client import Client

    ask(client, "my secret")
    other = ask(Client(page.local_url, verbose=False), QUESTION)
    assert "my secret" not in str(other)


@pytest.mark.slow
def test_markup_in_a_prompt_is_inert(page, client):
    got = ask(client, EVIL)
    assert all("<" not in text for text in texts(got["views"][0]))
    assert texts(got["views"][0])[0] == html.escape(EVIL, quote=False)
    chatbots = [c["props"] for c in page.get_config_file()["components"] if c["type"] == "chatbot"]
    assert len(chatbots) == 4
    assert all(props["sanitize_html"] and not props["render_markdown"] for props in chatbots)


@pytest.mark.slow
def test_an_empty_prompt_is_told(client):
    with pytest.raises(Exception, match="empty prompt"):
        ask(client, "   ")


@pytest.mark.slow
def test_the_base_can_be_asked_too(client):
    assert texts(ask(client, QUESTION, show_base=True)["views"][3])[0] == QUESTION


@pytest.mark.slow
def test_a_foreign_host_name_is_refused_and_nothing_is_loaded_from_outside(page):
    with urllib.request.urlopen(page.local_url) as answer:
        served = answer.read().decode()
    assert "fonts.googleapis" not in served
    request = urllib.request.Request(page.local_url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400


@pytest.mark.slow
def test_a_port_in_use_is_one_line(page, toy_run):
    with pytest.raises(ConfigError, match="free port"):
        ui.launch(toy_run, port=page.server_port, prevent_thread_lock=True)


@pytest.mark.slow
def test_leaving_stops_the_answer(page, toy_run):
    chat, session = Chat(toy_run), ui.Session()
    updates = ui._answer(chat, session, QUESTION, ["coarse"], ChatSettings(24, 0.0))
    next(updates)
    updates.close()
    assert session.stop.is_set()
    assert session.histories["coarse"] == []


@pytest.mark.slow
def test_clear_wins_over_an_answer_under_way(toy_run):
    """Otherwise the answer's last update could bring the forgotten conversation back."""
    chat, session = Chat(toy_run), ui.Session()
    updates = ui._answer(chat, session, QUESTION, ["coarse"], ChatSettings(24, 0.0))
    next(updates)
    ui._clear(session)
    *_, last = updates
    assert last[1:5] == [[], [], [], []]
    assert session.histories["coarse"] == []
    *_, last = ui._answer(chat, session, "Again", ["coarse"], ChatSettings(4, 0.0))
    assert last[1][0]["content"]["text"] == "Again"
