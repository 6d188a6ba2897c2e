"""Where a page is served, who may reach it, and which run is shown when none is named."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("gradio")

from lite_c2f.cli import chat as chat_commands
from lite_c2f.errors import ConfigError, RunError
from lite_c2f.runtime import lingering_threads
from lite_c2f.ui import address, app, gradio_import, serve
from lite_c2f.ui.loading import load_behind

ROOT = Path(__file__).parents[2]
AUTH = ("user", "password")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.5", "example.org", "", "127.0.0.1.evil.example"])
def test_a_host_open_to_others_needs_a_password(host):
    for auth in (None, ("user", ""), ("", "password")):
        with pytest.raises(ConfigError, match="without a password"):
            address.check_address(host, 7860, auth, None)
    assert address.allowed_hosts(host, AUTH)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_this_machine_alone_needs_none(host):
    assert address.allowed_hosts(host, None) == ["127.0.0.1", "localhost", "[::1]"]


def test_a_browser_may_call_it_by_its_own_names_only():
    local = ["127.0.0.1", "localhost", "[::1]"]
    assert address.allowed_hosts("127.0.0.2", None) == [*local, "127.0.0.2"]
    assert address.allowed_hosts("127.0.0.1", None, "https://example.org/c2f") == [*local, "example.org"]
    assert address.allowed_hosts("127.0.0.1", None, "/c2f") == local
    assert address.allowed_hosts("192.168.1.5", AUTH) == [*local, "192.168.1.5", socket.gethostname()]
    assert address.allowed_hosts("fd00::5", AUTH)[3] == "[fd00::5]"
    assert address.allowed_hosts("0.0.0.0", AUTH) == address.allowed_hosts("::", AUTH) == ["*"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ""),
        ("", ""),
        ("/", ""),
        ("/c2f/", "/c2f"),
        ("/a/b", "/a/b"),
        ("https://example.org/c2f/", "https://example.org/c2f"),
    ],
)
def test_a_root_path_loses_its_last_slash(given, expected):
    assert address.checked_root(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        "c2f",
        "//evil.example",
        "ftp://example.org",
        "https://",
        "http://[",
        "http://a:99999",
        "/a b",
        "/a?b",
        "/a#b",
        "/%2e",
        "/\\",
        "javascript:x",
    ],
)
def test_other_root_paths_are_refused(given):
    with pytest.raises(ConfigError, match="--root-path"):
        address.checked_root(given)


def test_a_password_comes_from_the_option_or_the_environment(monkeypatch):
    monkeypatch.delenv("LITE_C2F_AUTH", raising=False)
    assert address.parse_auth(None) is None
    assert address.parse_auth(" user :a:b ") == ("user", "a:b ")  # only the first colon parts them
    monkeypatch.setenv("LITE_C2F_AUTH", "other:secret")
    assert address.parse_auth(None) == ("other", "secret")
    assert address.parse_auth("user:password") == AUTH
    monkeypatch.setenv("LITE_C2F_AUTH", "")
    assert address.parse_auth(None) is None
    for given in ("user", "user:", ":password", "", " :password"):
        with pytest.raises(ConfigError, match="user:password"):
            address.parse_auth(given)


def test_a_port_in_use_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="free port"):
            address.check_address("127.0.0.1", taken.getsockname()[1], None, None)
    with pytest.raises(ConfigError, match="free port"):
        address.check_port("192.0.2.1", 7860)  # no address of this machine


def test_nothing_goes_through_a_proxy_at_launch(monkeypatch):
    import httpx

    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for before in (None, "example.org"):
        monkeypatch.delenv("no_proxy", raising=False) if before is None else monkeypatch.setenv("no_proxy", before)
        with pytest.raises(KeyError), serve.unproxied():
            with httpx.Client() as client:
                assert not client._mounts
            raise KeyError
        assert os.environ.get("no_proxy") == before
        with httpx.Client() as client:
            assert client._mounts  # outside the block the proxy is in use: the test can fail


@pytest.mark.parametrize(
    ("accept", "encoding"), [("text/html,*/*;q=0.8", "gzip"), ("text/event-stream", None), ("*/*", None)]
)
def test_the_page_is_sent_compressed_and_nothing_else_is(accept, encoding):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<p>It is 5.</p>" * 1000})

    async def get():
        transport = httpx.ASGITransport(serve.GzippedPage(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/", headers={"accept": accept, "accept-encoding": "gzip"})

    response = asyncio.run(get())
    assert response.headers.get("content-encoding") == encoding and response.text == "<p>It is 5.</p>" * 1000
    assert encoding is None or int(response.headers["content-length"]) < 1500


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json"])
def test_a_line_is_shown_until_the_page_is_drawn(kind):
    """In HTML alone, once, and the length that is announced is the one that is sent."""
    before = b"<head></head><body>" + b"x" * 100
    parts = [(before, True), (b"</head></body>", False)]
    sent = []

    async def app(scope, receive, send):
        length = str(sum(len(body) for body, _ in parts)).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body, more in parts:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async def keep(message):
        sent.append(message)

    asyncio.run(serve.OpeningLine(app)({"type": "http"}, None, keep))
    start, *bodies = sent
    whole = b"".join(message["body"] for message in bodies)
    assert int(dict(start["headers"])[b"content-length"]) == len(whole) and len(bodies) == 2
    expected = before.replace(b"</head>", serve.OPENING + b"</head>") if "html" in kind else before
    assert whole == expected + b"</head></body>"


def test_gradio_neither_reports_nor_looks_for_updates():
    from gradio.analytics import analytics_enabled

    assert not analytics_enabled()


def test_the_theme_names_fonts_of_the_visitors_own_system():
    theme = serve.theme()
    assert not theme._stylesheets and "http" not in theme._get_theme_css().replace("http://www.w3.org/2000/svg", "")


def test_without_a_run_it_is_the_toy_run_with_its_actors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert address.find_run(None) is None
    model = tmp_path / "runs" / "toy" / "fine" / "model"
    model.mkdir(parents=True)
    assert address.find_run(None) is None
    (model / "config.json").write_text("{}")
    assert address.find_run(None) == Path("runs/toy")


@pytest.mark.parametrize("file", ["run.json", "config.yaml", ".lock"])
def test_a_run_need_not_be_finished_but_another_path_is_refused(tmp_path, file):
    with pytest.raises(RunError, match="is no run directory"):
        address.find_run(tmp_path)
    (tmp_path / file).write_text("{}")
    assert address.find_run(tmp_path) == tmp_path


def test_a_wrong_path_is_refused_before_libraries_are_imported(tmp_path):
    """Importing PyTorch alone takes seconds."""
    code = (
        "import sys; from lite_c2f.errors import RunError; from lite_c2f.ui.address import find_run\n"
        "try: find_run('nowhere')\n"
        "except RunError: print([name for name in ('torch', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_port_that_a_closed_server_still_holds_is_waited_for():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(ConfigError, match="free port"):
            address.wait_for_port("127.0.0.1", port, seconds=0.2)
        threading.Timer(0.3, held.close).start()
        address.wait_for_port("127.0.0.1", port)


def app_command(port, *more):
    return [sys.executable, "-m", "lite_c2f", "app", "--port", str(port), *more]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name != "LITE_C2F_AUTH"}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


@pytest.mark.parametrize(
    ("more", "variable", "words"),
    [
        (["--host", "0.0.0.0"], None, "without a password"),
        (["--auth", "user"], None, "user:password"),
        ([], "user", "user:password"),
        (["--root-path", "c2f"], None, "--root-path"),
    ],
)
def test_a_bad_address_is_refused_before_anything_is_loaded(call, monkeypatch, tmp_path, more, variable, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LITE_C2F_AUTH", raising=False)
    if variable is not None:
        monkeypatch.setenv("LITE_C2F_AUTH", variable)
    code, _, err = call("app", "--port", free_port(), *more)
    assert code == 2 and words in err


def test_gradio_is_imported_without_its_stub_files():
    """As the command does it; they are half of what the import takes."""
    code = """
import inspect, sys
opened, file_of = [], inspect.getfile
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from lite_c2f.ui.gradio_import import without_stubs
with without_stubs():
    import gradio
assert inspect.getfile is file_of and inspect.getfile(gradio.Button).endswith("button.py")
assert callable(gradio.Button.click) and len(opened) > 100
print([name for name in opened if name.endswith(".pyi")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_an_interruption_reaches_the_command_while_models_are_loaded(monkeypatch):
    """And the command then ends without waiting for the thread that loads them."""
    hold, lived = threading.Event(), []

    class Loading:
        def load(self):
            os.kill(os.getpid(), signal.SIGINT)
            lived.append(hold.wait(20))

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(lingering_threads, "_lingering", type(lingering_threads._lingering)())
    with pytest.raises(KeyboardInterrupt):
        load_behind(Loading())
    lingering_threads.exit_if_lingering(130)
    assert lived == [] and codes == [130]
    hold.set()


def test_an_open_page_does_not_hold_up_the_end(monkeypatch):
    """Its stream never ends: the server's thread still runs when the command ends."""
    hold, codes = threading.Event(), []
    server = SimpleNamespace(thread=threading.Thread(target=hold.wait, args=(20,), daemon=True), should_exit=False)
    server.thread.start()
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(lingering_threads, "_lingering", type(lingering_threads._lingering)())
    serve._end_soon(server)
    server.close()
    assert server.should_exit and server.thread.is_alive()
    lingering_threads.exit_if_lingering(0)
    hold.set()
    server.thread.join()
    lingering_threads.exit_if_lingering(1)
    assert codes == [0]


def test_the_command_begins_without_stubs_and_ends_without_python_s_own_end(call, monkeypatch, tmp_path):
    """That takes seconds, and aborts the process where a thread of Gradio's is within PyTorch."""
    codes = []
    monkeypatch.setattr(gradio_import, "without_stubs", lambda: codes.append("imports") or nullcontext())
    monkeypatch.setattr(app, "serve", lambda *given, **named: codes.append("served"))
    monkeypatch.setattr(chat_commands, "exit_if_lingering", codes.append)
    (tmp_path / "config.yaml").touch()
    call("app", tmp_path, "--port", free_port())
    assert codes == ["imports", "served", 0]


def test_what_loading_raises_ends_the_command():
    class Damaged:
        def load(self):
            raise RunError("no such weights")

    with pytest.raises(RunError, match="no such weights"):
        load_behind(Damaged())
