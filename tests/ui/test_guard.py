"""The guard before the page: what it refuses, what it lets through as it comes, how long it makes clients wait."""

import asyncio
import json
from collections import Counter

import pytest

from lite_c2f.runtime.address import netloc
from lite_c2f.ui.guard import HEADERS, Guard, has_file, read_body
from lite_c2f.ui.paths import Kind, kind_of
from lite_c2f.ui.rate_limits import LoginThrottle, Rate, RecentlyWritten, client_of


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class App:
    """Answers with a status, in three parts; remembers the requests it got."""

    def __init__(self, status=200):
        self.status, self.bodies, self.paths = status, [], []

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        self.bodies.append(await read_body(receive, 10**9) if scope["method"] == "POST" else b"")
        given = [(b"x-frame-options", b"ALLOWALL"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": self.status, "headers": given})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"c"})


class Answer:
    def __init__(self, sent):
        self.status = sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.names = Counter(name for name, _ in sent[0]["headers"])
        self.body = b"".join(message.get("body", b"") for message in sent[1:])


def ask(guard, path, method="GET", *, body=b"", chunks=None, client="10.0.0.1", root="", query=b"", **headers):
    """One request as uvicorn would hand it over; headers with _ for -. chunks: a body without a content-length."""
    given = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if chunks is None:
        given.setdefault("content-length", str(len(body)))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": root,
        "scheme": "http",
        "query_string": query,
        "client": (client, 5),
        "server": ("127.0.0.1", 7860),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    parts = [body] if chunks is None else list(chunks)
    messages = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    answer = Answer(sent)
    answer.left = len(messages)
    return answer


def post(guard, path="/gradio_api/queue/join", body=b"{}", **more):
    return ask(guard, path, "POST", body=body, **more)


def login(guard, path="/login", **more):
    return post(guard, path, b"username=u&password=p", **more).status


# which paths

SERVED = (
    ("GET", "/", Kind.page),
    ("HEAD", "/", Kind.page),
    ("GET", "", Kind.page),
    ("GET", "/assets/Blocks-0aNuD791.css", Kind.part),
    ("GET", "/static/js/iframeResizer.contentWindow.min.js", Kind.part),
    ("GET", "/static/fonts/Source Sans".replace(" ", "-") + "/a.woff2", Kind.part),
    ("GET", "/gradio_api/app_id", Kind.part),
    ("GET", "/config", Kind.part),
    ("GET", "/theme.css", Kind.part),
    ("GET", "/logout", Kind.part),
    ("GET", "/manifest.json", Kind.part),
    ("GET", "/favicon.ico", Kind.part),
    ("GET", "/gradio_api/info", Kind.part),
    ("GET", "/gradio_api/queue/data", Kind.part),
    ("GET", "/gradio_api/heartbeat/abc", Kind.part),
    ("GET", "/gradio_api/startup-events", Kind.part),
    ("GET", "/gradio_api/call/ask/0123ab", Kind.part),
    ("GET", "/gradio_api/call/v2/ask/0123ab", Kind.part),
    ("POST", "/gradio_api/queue/join", Kind.action),
    ("POST", "/gradio_api/run/predict", Kind.action),
    ("POST", "/gradio_api/call/ask", Kind.action),
    ("POST", "/gradio_api/cancel", Kind.action),
    ("POST", "/gradio_api/reset", Kind.action),
    ("POST", "/login", Kind.login),
    ("POST", "/login/", Kind.login),
)
REFUSED = (
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=https://example.org/",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    "/file/etc/passwd",
    "/gradio_api/proxy=https://example.org/",
    "/proxy=https://example.org/",
    "/gradio_api/stream/a/b/1/playlist.m3u8",
    "/gradio_api/stream/a/b/1/playlist-file",
    "/gradio_api/upload_progress",
    "/gradio_api/custom_component/a/client/b/c",
    "/svelte/x.js",
    "/pwa_icon",
    "/pwa_icon/99999",
    "/gradio_api/deep_link",
    "/gradio_api/dev/reload",
    "/monitoring",
    "/monitoring/summary",
    "/monitoring/key",
    "/gradio_api/openapi.json",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/gradio_api/mcp",
    "/gradio_api/mcp/sse",
    "/gradio_api/token",
    "/gradio_api/user",
    "/gradio_api/login_check",
    "/gradio_api/queue/status",
    "/gradio_api/runs",
    "/gradio_api/run-history/buckets",
    "/gradio_api/run-history/records/a/b/assets/c",
    "/gradio_api/profiling/traces",
    "/gradio_api/vibe-code",
    "/login",
    "/gradio_api/queue/join",
    "/assets/",
    "/assets",
    "/assets/../../etc/passwd",
    "/assets/..",
    "/assets/%2e%2e/x",
    "/assets//etc/passwd",
    "/assets/.hidden",
    "/static/a\\..\\b",
    "/static/a\x00b",
    "/static/a b",
    "/assets/a/b/c/d/e",
    "//",
    "//assets/x.js",
    "/ASSETS/x.js",
    "/gradio_api//info",
    "/gradio_api/info/x",
    "/gradio_api/call/../x",
    "/config\n",
    "/gradio_api/heartbeat/",
    "gradio_api/info",
    "/unknown",
    "https://example.org/",
)
REFUSED_POSTS = (
    "/gradio_api/upload",
    "/upload",
    "/gradio_api/component_server",
    "/gradio_api/component_server/",
    "/gradio_api/stream/abc",
    "/gradio_api/stream/abc/close",
    "/gradio_api/process_recording",
    "/gradio_api/vibe-edit",
    "/gradio_api/undo-vibe-edit",
    "/gradio_api/run-history/connect",
    "/gradio_api/profiling/clear",
    "/gradio_api/api/predict",
    "/",
    "/config",
    "/gradio_api/run/",
    "/gradio_api/run/a/b",
    "//login",
    "/LOGIN",
    "/Login",
    "/login//",
    "/gradio_api/login",
    "/login/x",
    "/login\n",
    "/./login",
    "login",
)


@pytest.mark.parametrize(("method", "path", "kind"), SERVED)
@pytest.mark.parametrize("root", ["", "/c2f", "/a/b"])
def test_what_the_page_needs_is_served_below_a_root_path_too(method, path, kind, root):
    assert kind_of(method, path) is kind
    for asked in {path, root + path} - {root or None}:  # that one is redirected
        app = App()
        body = b"{}" if method == "POST" else b""
        assert ask(Guard(app), asked, method, body=body, root=root).status == 200 and app.paths == [asked]


def test_the_root_path_without_its_last_slash_is_redirected():
    """Or its scripts, which the page names relative to itself, would be looked for one folder too high."""
    for method in ("GET", "HEAD"):
        app = App()
        answer = ask(Guard(app), "/c2f", method, root="/c2f")
        assert (answer.status, answer.headers["location"], app.paths) == (307, "/c2f/", [])
        assert "content-security-policy" in answer.headers
    assert ask(Guard(App()), "/c2f", root="").status == 404


@pytest.mark.parametrize("path", REFUSED)
@pytest.mark.parametrize("root", ["", "/c2f"])
def test_everything_else_is_not_found(path, root):
    app = App()
    assert {
        ask(Guard(app), prefix + path, method, root=root).status for prefix in {"", root} for method in ("GET", "HEAD")
    } == {404}
    assert not app.paths


@pytest.mark.parametrize("path", REFUSED_POSTS)
@pytest.mark.parametrize("root", ["", "/c2f"])
def test_no_upload_and_no_other_spelling_of_the_login(path, root):
    app = App()
    assert {post(Guard(app), prefix + path, root=root).status for prefix in {"", root}} == {404}
    assert not app.paths


def test_methods_that_nothing_needs_are_not_served():
    guard = Guard(App())
    assert {
        ask(guard, "/", method).status for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get")
    } == {404}


def test_further_pages_are_served_by_name():
    guard = Guard(App(), pages=["compare"])
    assert [ask(guard, path).status for path in ("/compare", "/compare/", "//compare", "/other", "compare")] == [
        200,
        200,
        404,
        404,
        404,
    ]


@pytest.mark.parametrize("query", [b"deep_link=abc", b"a=1&deep%5Flink=../x", b"deep_link", b"deep+link=1&deep_link="])
def test_a_saved_state_is_not_opened(query):
    assert ask(Guard(App()), "/", query=query).status == ask(Guard(App()), "/config", query=query).status == 404
    assert ask(Guard(App()), "/", query=b"__theme=dark&view=deep_link").status == 200


def test_websockets_are_closed_and_the_lifespan_passes():
    sent, seen = [], []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        seen.append(scope["type"])

    guard = Guard(app)
    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, None, send))
    asyncio.run(guard({"type": "lifespan"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}] and seen == ["lifespan"]


# bodies


def test_a_body_over_the_limit_is_413_however_it_is_sent():
    app = App()
    guard = Guard(app, body=100)
    fits = b'"' + b"x" * 98 + b'"'
    assert post(guard, body=fits).status == 200 and app.bodies == [fits]
    assert post(guard, body=fits + b" ").status == 413
    assert post(guard, chunks=[fits[:50], fits[50:]]).status == 200 and app.bodies[-1] == fits
    endless = post(guard, chunks=[b"x" * 40] * 1000)
    assert endless.status == 413
    assert endless.left == 1000 - 21  # 840 bytes are read, more than eight times the limit
    assert post(guard, chunks=[fits, b" "]).status == 413
    assert post(guard, "/login", body=fits + b" ").status == 413
    assert post(guard, content_length="9" * 5000).status == 413
    assert {post(guard, content_length=text).status for text in ("-1", "x", "", "1e9", "²")} == {400}
    assert post(Guard(app), body=b" " * 2**20).status == 400  # one MiB may pass, and is no JSON
    assert post(Guard(app), body=b" " * (2**20 + 1)).status == 413


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_error():
    app, sent = App(), []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/cancel", "headers": [], "client": None}
    asyncio.run(Guard(app)(scope, receive, send))
    assert not sent and not app.paths


FILES = (
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"data": [[{"x": {"path": "https://example.org/", "meta": {"_type": "gradio.FileData"}, "url": None}}]]},
)


@pytest.mark.parametrize("value", FILES)
def test_a_question_cannot_name_a_file(value):
    app, text = App(), json.dumps(value)
    escaped = text.replace("path", "p\\u0061th").replace("meta", "m\\u0065ta")
    for body in (text.encode(), escaped.encode(), text.encode("utf-16"), text.encode("utf-32-le")):
        assert post(Guard(app), body=body).status == 400
    assert not app.paths
    assert not has_file({"data": ["path meta", {"path": 1}, {"meta": {}}, [None, True, 1.5]]})


def test_what_is_no_json_or_nested_without_end_is_400():
    assert {post(Guard(App()), body=body).status for body in (b"{", b"\xff", b"[" * 200_000, b"x=1")} == {400}
    assert post(Guard(App()), body=b"").status == 200  # the app says what it misses


# other sites


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:7860", "127.0.0.1:7860", 200),
        ("http://LOCALHOST:7860", "localhost:7860", 200),
        ("http://[::1]:7860", "[::1]:7860", 200),
        ("https://example.org", "example.org", 200),  # a proxy speaks https, we do not
        ("https://example.org:443", "example.org", 200),
        ("http://evil.example", "127.0.0.1:7860", 403),
        ("http://127.0.0.1:3000", "127.0.0.1:7860", 403),  # another program of this machine
        ("http://localhost:7860", "127.0.0.1:7860", 403),
        ("http://127.0.0.1", "127.0.0.1:7860", 403),
        ("http://127.0.0.1:7860.evil.example", "127.0.0.1:7860", 403),
        ("http://evil.example@127.0.0.1:3000", "127.0.0.1:7860", 403),
        ("null", "127.0.0.1:7860", 403),
        ("null", "", 403),
        ("null", "x:port", 403),
        ("", "", 403),
        ("http://[", "127.0.0.1:7860", 403),
        ("http://x:port", "127.0.0.1:7860", 403),
        ("file://", "127.0.0.1:7860", 403),
    ],
)
@pytest.mark.parametrize("path", ["/login", "/gradio_api/queue/join"])
def test_posts_from_other_sites_are_403(path, origin, host, status):
    app = App()
    assert post(Guard(app), path, origin=origin, host=host).status == status
    assert bool(app.paths) == (status == 200)


def test_a_proxy_may_serve_it_under_its_own_name():
    guard = Guard(App(), origins=["example.org:8443"])
    assert post(guard, origin="https://example.org:8443").status == 200
    assert post(guard, origin="https://example.org").status == 403
    # a page on another port of this host may set it: Gradio's CORS answers allow that
    assert post(guard, origin="https://other.example", x_forwarded_host="other.example, inner").status == 403


def test_browsers_that_say_who_asked_are_believed():
    guard = Guard(App())
    for site in ("cross-site", "same-site", "anything"):
        assert post(guard, sec_fetch_site=site).status == 403
        assert ask(guard, "/logout", sec_fetch_site=site).status == 403
        assert ask(guard, "/config", sec_fetch_site=site).status == 403
        assert ask(guard, "/", sec_fetch_site=site).status == 200  # a link to the page
    for site in ("same-origin", "none"):
        assert post(guard, sec_fetch_site=site).status == ask(guard, "/logout", sec_fetch_site=site).status == 200


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:80", "a"),
        ("https://A.b:443/x", "a.b"),
        ("http://a:443", "a:443"),
        ("https://[::1]:9", "::1:9"),
        ("null", ""),
        ("http://a:0", "a:0"),
        ("http://a:99999", ""),
        ("//a", "a"),
        ("", ""),
    ],
)
def test_addresses_are_compared_by_host_and_port(url, expected):
    assert netloc(url) == expected


# headers and streams


def test_every_answer_has_the_headers_once():
    guard = Guard(App(), body=10)
    answers = [ask(guard, "/"), ask(guard, "/nothing"), post(guard, body=b"x" * 11), post(guard, origin="null")]
    assert [answer.status for answer in answers] == [200, 404, 413, 403]
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert set(answer.names.values()) == {1}
    assert answers[0].headers["content-type"] == "text/plain" and answers[0].headers["x-frame-options"] == "DENY"
    policy = dict(part.split(" ", 1) for part in answers[0].headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["object-src"] == "'none'"
    assert policy["connect-src"] == policy["form-action"] == policy["base-uri"] == "'self'"
    known = {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert {word for words in policy.values() for word in words.split()} <= known  # no host, no scheme of the network


def test_an_error_of_the_app_is_500_with_the_headers_and_goes_on_to_the_log():
    async def app(scope, receive, send):
        raise ValueError("secret")

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    with pytest.raises(ValueError, match="secret"):
        asyncio.run(Guard(app)(scope, None, send))
    answer = Answer(sent)
    assert answer.status == 500 and b"secret" not in answer.body and HEADERS.items() <= answer.headers.items()


def test_a_stream_passes_part_by_part():
    """The app sends a part only when the client has seen the one before: a guard that gathers them would hang."""
    seen, reached = [], asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            reached.clear()
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            await asyncio.wait_for(reached.wait(), 1)
        await send({"type": "http.response.body"})

    async def send(message):
        seen.append(message.get("body"))
        reached.set()

    scope = {"type": "http", "method": "GET", "path": "/gradio_api/queue/data", "headers": [], "client": None}
    asyncio.run(Guard(app)(scope, None, send))
    assert seen == [None, b"0", b"1", b"2", None]


def test_the_app_hears_that_the_client_left():
    heard = []

    async def app(scope, receive, send):
        heard.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    ask(Guard(app), "/gradio_api/queue/join", "POST", body=b"{}")
    assert heard == [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]


# passwords


def test_after_five_wrong_passwords_the_wait_doubles_to_a_quarter_of_an_hour():
    clock, app = Clock(), App(400)
    guard = Guard(app, logins=LoginThrottle(clock), all_logins=Rate(1, 60, clock))
    assert [login(guard) for _ in range(5)] == [400] * 5
    for wait in (30, 60, 120, 240, 480, 900, 900):
        refused = post(guard, "/login", b"username=u&password=p")
        assert (refused.status, refused.headers["retry-after"]) == (429, str(wait))
        clock.now += wait - 0.5
        assert login(guard) == 429  # asking meanwhile makes it no longer, and no shorter
        clock.now += 0.5
        assert login(guard) == 400
    assert len(app.paths) == 5 + 7


def test_the_right_password_or_an_hour_resets():
    clock, app = Clock(), App(400)
    guard = Guard(app, logins=LoginThrottle(clock))
    assert [login(guard) for _ in range(4)] == [400] * 4
    app.status = 200
    assert login(guard) == 200
    app.status = 400
    assert [login(guard) for _ in range(6)] == [400] * 5 + [429]
    clock.now += 3600
    assert [login(guard) for _ in range(6)] == [400] * 5 + [429]


def test_the_throttle_cannot_be_dodged():
    app = App(400)
    guard = Guard(app, logins=LoginThrottle(Clock()))
    tries = [login(guard, *given, root="/c2f") for given in [("/login",), ("/login/",), ("/c2f/login",)] * 3]
    assert tries == [400] * 5 + [429] * 4
    others = ("//login", "/LOGIN", "/c2f//login", "/c2f/Login", "/c2f/c2f/login", "/gradio_api/login", "/login;x")
    assert {login(guard, path, root="/c2f") for path in others} == {404}
    assert login(guard, client="::ffff:10.0.0.1") == 429  # the same address, written as IPv6
    assert len(app.paths) == 5
    assert login(guard, client="10.0.0.2") == 400
    assert post(guard, client="10.0.0.1").status == 400  # those who are logged in may go on: the app's own answer
    own = [login(guard, client=f"2001:db8::{number:x}") for number in range(6)]
    assert own == [400] * 5 + [429]  # one host, one /64
    assert login(guard, client="2001:db8:0:1::1") == 400


def test_many_tries_at_once_are_no_way_around():
    """Tries that began count, whether or not they are answered yet."""
    reached, gate = [], asyncio.Event()

    async def app(scope, receive, send):
        reached.append(1)
        await gate.wait()
        await send({"type": "http.response.start", "status": 400, "headers": []})

    async def run():
        guard, statuses = Guard(app), []

        async def receive():
            return {"type": "http.request", "body": b""}

        async def send(message):
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": ("10.0.0.1", 1)}
        tries = [asyncio.ensure_future(guard(dict(scope), receive, send)) for _ in range(40)]
        while len(reached) + len(statuses) < 40:
            await asyncio.sleep(0)
        assert len(reached) == 5 and statuses.count(429) == 35
        gate.set()
        await asyncio.gather(*tries)

    asyncio.run(asyncio.wait_for(run(), 300))


def test_guesses_from_everywhere_are_limited_together():
    clock = Clock()
    guard = Guard(App(400), rate=Rate(20, 200, clock), logins=LoginThrottle(clock), all_logins=Rate(1, 60, clock))
    tries = Counter(login(guard, client=f"10.0.{number}.1") for number in range(100))
    assert tries == {400: 60, 429: 40}
    clock.now += 3
    assert Counter(login(guard, client=f"10.1.{number}.1") for number in range(10)) == {400: 3, 429: 7}


# rates and memory


def test_a_burst_of_posts_passes_and_then_twenty_a_second():
    clock, app = Clock(), App()
    guard = Guard(app, rate=Rate(20, 200, clock))
    assert Counter(post(guard).status for _ in range(300)) == {200: 200, 429: 100}
    assert post(guard).headers["retry-after"] == "1"
    clock.now += 0.25  # a quarter of a second: 5 of 20
    assert [post(guard).status for _ in range(6)] == [200] * 5 + [429]
    clock.now += 1000  # never more than the burst
    assert Counter(post(guard).status for _ in range(300)) == {200: 200, 429: 100}
    assert post(guard, client="10.0.0.2").status == 200  # others do not wait
    assert ask(guard, "/").status == 200  # nor does reading
    assert len(app.paths) == 200 + 5 + 200 + 2


def test_sixteen_people_behind_one_proxy_pass():
    clock = Clock()
    guard = Guard(App(), rate=Rate(20, 200, clock))
    for _ in range(60):  # each of them sends something every second, for a minute
        assert {post(guard).status for _ in range(16)} == {200}
        clock.now += 1


def test_memory_is_bounded_and_the_newest_are_kept():
    clock = Clock()
    rate, logins = Rate(1, 1, clock, max_clients=100), LoginThrottle(clock, max_clients=100)
    for number in range(1000):
        rate.try_acquire(f"{number}"), logins.begin_try(f"{number}")
    assert len(rate.buckets.entries) == len(logins.tries.entries) == 100
    recent = RecentlyWritten(2)
    for key in "abac":  # a is seen again: b is the oldest
        recent.put(key, key)
    assert [recent.get(key) for key in "abc"] == ["a", None, "c"]


def test_clients_are_told_apart_by_what_they_own():
    assert client_of("10.0.0.1") == "10.0.0.1" == client_of("::ffff:10.0.0.1")
    assert client_of("fe80::1%eth0") == client_of("fe80::2") == "fe80::/64"
    assert client_of("testclient") == "testclient" and client_of("") == ""
