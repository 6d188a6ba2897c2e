"""Where a page is served, who may reach it, and which run is shown when none is named."""

import os
import pty
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from lite_c2f.errors import ConfigError, RunError
from lite_c2f.ui import address, serve

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


def test_gradio_neither_reports_nor_looks_for_updates():
    from gradio.analytics import analytics_enabled

    assert not analytics_enabled()


def test_the_theme_names_fonts_of_the_visitors_own_system():
    theme = serve.theme()
    assert not theme._stylesheets and "http" not in theme._get_theme_css().replace("http://www.w3.org/2000/svg", "")


def test_without_a_run_it_is_the_finished_toy_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert address.find_run("anything") == Path("anything")  # the one named is looked at later
    with pytest.raises(RunError, match="make demo"):
        address.find_run(None)
    model = tmp_path / "runs" / "toy" / "fine" / "model"
    model.mkdir(parents=True)
    with pytest.raises(RunError, match="make demo"):
        address.find_run(None)
    (model / "config.json").write_text("{}")
    assert address.find_run(None) == Path("runs/toy")


def app_command(port, *more):
    return [sys.executable, "-m", "lite_c2f", "app", "--port", str(port), *more]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name != "LITE_C2F_AUTH"}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


def at_a_terminal(command, cwd, answer, until, env=None):
    """Run a command at a terminal, answer its question, return (what it said, its exit code); killed at `until`."""
    control, terminal = pty.openpty()
    given = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
    process = subprocess.Popen(command, cwd=cwd, env=env or environment(), **given)
    os.close(terminal)
    said, answered, end = "", False, time.monotonic() + 600
    try:
        while time.monotonic() < end and not (until and until in said):
            if not select.select([control], [], [], 1)[0]:
                continue
            try:
                part = os.read(control, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
            if "[y/N]" in said and not answered:
                os.write(control, answer)
                answered = True
        if until:
            process.kill()
        return said, process.wait(600)
    finally:
        process.kill()
        process.wait()
        os.close(control)


@pytest.mark.slow
def test_no_run_and_no_terminal_is_one_line(tmp_path):
    done = subprocess.run(
        app_command(free_port()),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "make demo" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"\n"])
def test_at_a_terminal_it_offers_the_toy_run_and_no_is_no(tmp_path, answer):
    said, code = at_a_terminal(app_command(free_port()), tmp_path, answer, None)
    assert "make the toy run now (about 4 minutes)? [y/N]" in said
    assert code == 2 and "no run given, and none in 'runs/toy'" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_yes_makes_it(tmp_path):
    """Only its beginning: the toy run itself is tested elsewhere."""
    said, _ = at_a_terminal(app_command(free_port()), tmp_path, b"y\n", "models")
    assert "models" in said and (tmp_path / "runs" / "toy" / ".lock").exists()


@pytest.mark.parametrize(
    ("more", "variable", "words"),
    [
        (["--host", "0.0.0.0"], None, "without a password"),
        (["--auth", "user"], None, "user:password"),
        ([], "user", "user:password"),
        (["--root-path", "c2f"], None, "--root-path"),
    ],
)
def test_the_question_comes_after_the_address_was_found_good(call, monkeypatch, tmp_path, more, variable, words):
    from lite_c2f.cli import chat

    class Terminal:
        def isatty(self):
            return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LITE_C2F_AUTH", raising=False)
    if variable is not None:
        monkeypatch.setenv("LITE_C2F_AUTH", variable)
    monkeypatch.setattr(chat, "sys", SimpleNamespace(stdin=Terminal(), stderr=Terminal()))
    asked = []
    monkeypatch.setattr(chat.typer, "confirm", lambda *given, **named: asked.append(given))
    code, _, err = call("app", "--port", free_port(), *more)
    assert code == 2 and words in err and asked == []
    if not more and variable:  # with a good address the question is asked: the test can fail
        monkeypatch.delenv("LITE_C2F_AUTH")
        call("app", "--port", free_port())
        assert len(asked) == 1
