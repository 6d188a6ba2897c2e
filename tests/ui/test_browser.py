"""What people do with the app, in a real browser, with everything outside this machine blocked."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from chat_servers import ChatServer, event, says
from playwright import sync_api as playwright

from lite_c2f.chat.panes import TITLES
from lite_c2f.errors import C2FError
from lite_c2f.evaluation import overlap
from lite_c2f.toy.build import toy_folder
from lite_c2f.ui import render
from lite_c2f.ui.markdown import formatted
from lite_c2f.ui.runs.starts import FOLDER as STARTS
from lite_c2f.ui.store import conversations, votes
from lite_c2f.ui.store.conversations import Reply, Round

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)
PATIENCE = 180  # seconds; only what hangs takes so long
QUESTION = "Lea has 3 apples, first gets 7, second buys 5, third drops 8. How many now?"
ENDS = "ended \\(EOS\\)|ended \\(stop\\)|hit the limit"  # any way to end by itself
EVIL = (
    '<img src=x onerror="window.hit=1"><script>window.hit=2</script>\n[a](javascript:window.hit=3) '
    "![b](data:text/html,<script>window.hit=4</script>) <svg onload=window.hit=5> ${window.hit=6} {{window.hit}} "
    "{{{value}}} `${1+1}` &lt;i&gt; <a href='javascript:window.hit=7'>x</a> **bold**\n    indented\n" + "long" * 200
)
CODE = """```py
# <img src=x onerror=window.hit=8>
def twice(number):
    return 2 * number + len('</code><script>') ${window.hit=9}
```"""

FORMULA = r"\[ \sum_{k=1}^n k = \frac{n(n+1)}{2} \]"
FORMULAS = "\n\n".join(
    (
        r"So \(x^2\), $5 and $7.",
        FORMULA,
        r"$x=<img/src=x/onerror=window.hit=10>$ $\href{javascript:window.hit=11}{x}$ $\htmlStyle{position:fixed}{x}$",
        r"$\includegraphics{https://example.org/a.png}$ $\htmlClass{copy}{x}$ $\kern-9999em x$ $x^$",
        f"$x={'{' * 900}1{'}' * 900}$",  # braces alone are no depth
        f"\\({'x^{' * 400}{'}' * 400}\\) ${chr(92)}sqrt{'{x^' * 400}x{'}' * 400}$",
        "$x_1$ " * 300,
    )
)


class Site(NamedTuple):
    url: str
    run: Path
    log: Path
    process: subprocess.Popen


def start(run, log, seconds, port=None, cwd=None, also=()):
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    script = Path(__file__).with_name("offline_app.py")
    given = [] if run is None else [run]
    command = [sys.executable, "-W", "ignore", script, log, str(seconds), "app", *given, "--port", str(port), *also]
    with (log.parent / "out").open("w") as out:
        process = subprocess.Popen([str(each) for each in command], stdout=out, stderr=subprocess.STDOUT, cwd=cwd)
    until = time.monotonic() + PATIENCE
    while "Serving" not in (log.parent / "out").read_text():
        assert process.poll() is None and time.monotonic() < until, (log.parent / "out").read_text()
        time.sleep(0.1)
    return Site(f"http://127.0.0.1:{port}/", run, log, process)


@pytest.fixture(scope="module")
def site(toy_run, tmp_path_factory):
    run = shutil.copytree(toy_run, tmp_path_factory.mktemp("runs") / "toy", ignore=shutil.ignore_patterns("app"))
    server = ChatServer()
    server.answer = says(event("**Seven** <img src=x onerror=window.hit=12>", "stop"))
    served = start(run, tmp_path_factory.mktemp("log") / "attempts", 0.02, also=["--also", server.url])
    yield served
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(PATIENCE) in (0, 130)
    server.close()
    assert not served.log.exists(), served.log.read_text()  # nothing outside was ever asked for


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(site, browser):
    """A new visitor's page, which at its end has sent no request elsewhere and reported no error."""
    context = browser.new_context(viewport={"width": 1300, "height": 850}, accept_downloads=True)
    page = open_page(context, site)
    yield page
    print(page.requests[-20:], page.errors, page.inner_text("body")[:4000], sep="\n")  # shown where the test failed
    assert [url for url in page.requests if not url.startswith((site.url, "data:", "blob:"))] == []
    assert page.goes_away or page.errors == []  # a reload while answers are written leaves a broken stream
    assert page.evaluate("window.hit") is None
    context.close()


def is_fault(message):
    """Whether a message of the console is an error, but not of Gradio's client that ends as its page is left."""
    leaving = message.text.startswith("AbortError") and ".close " in message.text
    return message.type == "error" and not leaving


def open_page(context, site):
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.requests, page.errors, page.run, page.hold = [], [], site.run, site.log.with_name("hold")
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if is_fault(message) else None)
    page.goes_away, page.asked = False, None
    with page.expect_response(lambda response: "/run/" in response.url):  # the conversation of the session
        page.goto(site.url)
    page.wait_for_selector("#prompt textarea:enabled")
    page.wait_for_timeout(300)  # it is shown now
    return page


def ask(page, text, box="#prompt", *, refused=False):
    if box == "#prompt" and not refused:
        page.asked = text.strip()
    page.fill(f"{box} textarea", text)
    page.press(f"{box} textarea", "Enter")


def ended(page, *panes, chip="ended"):
    """Wait until the last answers have ended so; with "reward" until they have one, in the table of figures.

    What was asked last is shown then: answers to the question before may have ended so too.
    """
    if page.asked is not None:
        page.wait_for_function(ASKED, arg=[f"#view-{panes[0]}", page.asked])
    if chip == "reward":
        for pane in panes:
            wait_for_figure(page, pane, "reward")
        return saved(page, panes)
    for pane in panes:
        page.wait_for_function(
            # The last one's; what it was before, folded, is no div.
            """([id, word]) => [
                ...document.querySelectorAll(`${id} .recent .round:last-of-type .inner > div:last-of-type`)
            ].some(part => part.querySelector(".chip")?.parentElement.textContent.includes(word))""",
            arg=[f"#view-{pane}", chip],
        )


ASKED = """([id, text]) =>
    [...document.querySelectorAll(`${id} .recent .you`)].at(-1)?.textContent.trim() === text"""
FIGURE = """([title, name]) => {
    const titles = [...document.querySelectorAll("#summary-line tr:first-of-type th")].map((head) => head.textContent);
    const place = titles.findIndex((text) => text === title || text.startsWith(`${title} at `));
    return document.querySelectorAll(`#summary-line tr[data-figure="${name}"] td`)[place]?.textContent;
}"""


def wait_for_figure(page, pane, name):
    """Wait until the table of figures has one of a pane's last answer; returns it."""
    page.wait_for_function(FIGURE, arg=[TITLES[pane], name])
    return page.evaluate(FIGURE, [TITLES[pane], name])


def saved(page, panes, **fields):
    """Wait until the server has saved the round with its rewards. fields: of the replies."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(C2FError, KeyError):
            replies = session_of(page).rounds[-1].replies
            wanted = [replies[pane] for pane in panes]  # while answers are written, what is saved has no reward
            if all(reply.reward is not None and fields.items() <= reply._asdict().items() for reply in wanted):
                return
        page.wait_for_timeout(50)
    raise AssertionError("the round was never saved")


def wait_until(page, holds):
    """Wait until something that the page's events change is so."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until
        page.wait_for_timeout(50)


def session_of(page):
    """The tab's session as it is saved."""
    owner = page.evaluate("localStorage.getItem('lite_c2f.owner')")
    session = page.evaluate("sessionStorage.getItem('lite_c2f.session')")
    return conversations.load(page.run / "app" / "sessions", owner, session or "")


def answer_of(page, pane):
    return page.inner_text(f"#view-{pane} .said >> nth=-1")


def as_shown(page, text):
    """An answer's text as this browser shows it: read as Markdown, and blanks in a row are one."""
    reply = Reply("fine", text, 1, 1.0, "eos", text, 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=0)
    return page.evaluate(
        """made => {
            const box = document.createElement("div");
            box.className = "talk";
            box.innerHTML = made;
            document.body.append(box);
            const shown = box.querySelector(".said").innerText;
            box.remove();
            return shown;
        }""",
        render.conversation([Round("?", {}, {"fine": reply})], "fine"),
    )


@contextlib.contextmanager
def held(page):
    """Inside the block answers stop at two tokens and are still being written, however fast this machine is.

    What it gives is called to let them have so many.
    """

    def allow(tokens):
        unfinished = page.hold.with_name("next hold")
        unfinished.write_text(str(tokens))
        unfinished.rename(page.hold)

    allow(2)
    try:
        yield allow
    finally:
        page.hold.rename(page.hold.with_name("no hold"))


def ratio_of(page):
    """The ratio that the run's Fine Actor was merged at, as the page writes it."""
    return f"{json.loads((page.run / 'fine' / 'merge.json').read_text())['ratio']:g}"


def buttons_on(page):
    """The buttons that can be pressed."""
    names = ["send", "stop-all", "regenerate", "edit", "remove-last", "redo", "clear", "regenerate-fine", "stop-coarse"]
    return {name for name in names if page.locator(f"#{name}:enabled:not([aria-disabled=true])").count()}


def test_three_answers_stream_at_once_with_their_figures(tab):
    assert "reinforcement learning" in tab.inner_text("#view-coarse")  # empty panes say what they are
    assert buttons_on(tab) == set()
    for text, on in (("x", {"send"}), (" \n\t", set())):
        tab.fill("#prompt textarea", text)
        assert buttons_on(tab) == on
    tab.evaluate(
        """() => {
            window.lengths = new Set();
            const note = () => lengths.add(document.querySelector("#view-coarse .said")?.innerText.length);
            new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_function("document.querySelectorAll('.said.writing').length === 3")
        assert tab.input_value("#prompt textarea") == ""
        tab.wait_for_selector("#stop-all:enabled")
        assert buttons_on(tab) == {"stop-all", "edit", "remove-last", "clear", "stop-coarse"}
        tab.fill("#prompt textarea", "the next one")  # typed while answers are written
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    assert tab.evaluate("lengths.size") > 2  # it grew
    assert tab.input_value("#prompt textarea") == "the next one"
    for pane in ("coarse", "fine", "baseline"):
        assert re.search(ENDS, tab.inner_text(f"#view-{pane} .chips"))
        for name, form in (
            ("tokens", r"\d+"),
            ("reward", r"[+-]?\d\.\d\d"),
            ("repeated 4-grams", r"\d+%"),
            ("time", r"[\d.]+ s"),
        ):
            assert re.fullmatch(form, wait_for_figure(tab, pane, name)), (pane, name)
    assert f"Fine Actor at ratio {ratio_of(tab)}" in tab.inner_text("#summary-line")
    tab.wait_for_selector("#send:enabled")
    assert buttons_on(tab) == {"send", "regenerate", "edit", "remove-last", "clear"}  # the ratio has not moved
    tab.click("#view-fine .chip.copy")
    tab.wait_for_selector("#view-fine .chip.copy:text('copied')")
    tab.wait_for_selector("#view-fine .chip.copy:text-is('copy')")  # it turns back
    ask(tab, "Hi")  # a second turn
    tab.wait_for_function("document.querySelectorAll('#view-fine .you').length === 2")
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    assert tab.locator("#view-fine .you").all_inner_texts() == [QUESTION, "Hi"]


def test_stop_one_and_stop_all(tab):
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-coarse .said.writing")
        tab.click("#stop-coarse")
        ended(tab, "coarse", chip="stopped")
        cut = answer_of(tab, "coarse")
        tab.wait_for_selector("#stop-coarse:disabled")
        assert tab.locator("#stop-fine:enabled, #stop-baseline:enabled").count() == 2
    ended(tab, "fine", "baseline", chip="reward")
    before = session_of(tab).rounds[-1].replies
    tab.wait_for_selector("#view-coarse .chip.act")
    assert tab.get_by_role("button", name="continue: Fine Actor").count() == (before["fine"].finish == "limit")
    tab.get_by_role("button", name="continue: Coarse Actor").click()
    ended(tab, "coarse", chip="reward")
    after = session_of(tab).rounds[-1]
    assert after.others == () and after.replies["fine"] == before["fine"]  # the same answer has grown
    assert after.replies["coarse"].text.startswith(before["coarse"].text) and answer_of(tab, "coarse").startswith(cut)
    assert after.replies["coarse"].tokens > before["coarse"].tokens == 2
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-fine .said.writing")
        tab.get_by_text(re.compile("^Sessions")).click()
        tab.click("#sessions input")
        tab.keyboard.press("Escape")  # closes the list, and stops nothing
        tab.wait_for_timeout(500)
        assert tab.locator("#view-coarse .said.writing").count() == 1
        tab.wait_for_function("[...document.querySelectorAll('.stop-all')].some(b => b.offsetParent && !b.disabled)")
        tab.focus("#prompt textarea")
        tab.keyboard.press("Escape")
        ended(tab, "coarse", "fine", chip="stopped")
    # One pane alone, by keyboard: the others keep their answers, and the one before is kept too.
    tab.wait_for_selector("#view-baseline .chip.act")
    before = session_of(tab).rounds[-1]
    with held(tab):
        tab.get_by_role("button", name="ask again: Fine Actor").press("Enter")
        tab.wait_for_selector("#view-fine .said.writing")
        assert tab.locator(".bar button:enabled").all_inner_texts() == ["Stop"]  # of this pane alone
        assert tab.locator(".said.writing").count() == 1 and tab.locator(".chip.act").count() == 0
        assert tab.evaluate("document.activeElement.id") == "view-fine"
    ended(tab, "fine", chip="reward")
    last = session_of(tab).rounds[-1]
    assert last.others == (conversations.Variant(*before[1:4]),) and last.replies["coarse"] == before.replies["coarse"]
    assert last.replies["fine"].seed == last.pane_settings["fine"]["seed"] != before.replies["fine"].seed
    tab.wait_for_selector("#variants .count:text('Answers 2 of 2')")


def test_another_ratio_marks_the_answer_stale_and_only_fine_answers_again(tab):
    tab.get_by_text("Settings of this tab").first.click()
    tab.get_by_label("number input for Temperature").first.fill("0")
    tab.get_by_label("number input for Temperature").first.press("Tab")
    ask(tab, QUESTION)
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    coarse, fine = answer_of(tab, "coarse"), answer_of(tab, "fine")
    tab.fill("#ratio input[type=number]", "0")
    tab.press("#ratio input[type=number]", "Tab")
    tab.wait_for_selector("#view-fine .chip.stale")
    assert answer_of(tab, "fine") == fine
    tab.click("#regenerate-fine")
    tab.wait_for_function("document.querySelector('#summary-line').innerText.includes('ratio 0\\t')")
    ended(tab, "fine", chip="reward")
    assert tab.locator(".chip.stale").count() == 0
    shown = tab.inner_text("#view-fine .said >> nth=0")
    assert shown == answer_of(tab, "baseline")  # the same random numbers: only the ratio differs
    assert answer_of(tab, "coarse") == coarse
    tab.click("#view-fine .before summary")
    assert answer_of(tab, "fine") == fine and f"at ratio {ratio_of(tab)}:" in tab.inner_text(
        "#view-fine .before summary"
    )
    tab.get_by_label("Mark repeats").check()
    tab.fill("#ratio input[type=number]", ratio_of(tab))
    tab.press("#ratio input[type=number]", "Tab")
    tab.wait_for_selector("#view-fine .chip.stale")
    tab.click("#regenerate-fine")
    tab.wait_for_function("document.querySelector('#view-fine .before summary')?.textContent.includes('at ratio 0:')")
    ended(tab, "fine", chip="reward")
    saved(tab, ["fine"], ratio=float(ratio_of(tab)))
    replies = session_of(tab).rounds[-1].replies
    tab.wait_for_function(  # the page shows the end of an answer a moment after it is saved
        "text => document.querySelector('#view-fine .said').innerText === text", arg=replies["fine"].text
    )
    shown = tab.inner_text("#view-fine .said >> nth=0")
    assert as_shown(tab, shown) == fine
    marked = {" ".join(text.split()) for text in tab.locator("#view-fine mark.kept").all_inner_texts()}
    spans = overlap.shared_spans(replies["fine"].text, replies["coarse"].text)
    assert all(any(text in " ".join(shown[start:end].split()) for start, end in spans) for text in marked)
    assert bool(marked) == bool(spans)


def test_a_ratio_moved_while_answers_are_written_is_seen(tab):
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-coarse .said.writing")
        tab.fill("#ratio input[type=number]", "0.3")
        tab.press("#ratio input[type=number]", "Tab")
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    tab.wait_for_selector("#view-fine .chip.stale")


def seed_of(tab):
    """The seed of the last answers."""
    return tab.evaluate(
        """() => [...document.querySelectorAll('#summary-line details')].at(-1)
            ?.textContent.match(/^Seed and speed\\s*seed (\\d+)/)?.[1] ?? null"""
    )


def test_edit_remove_redo_regenerate_clear(tab):
    ask(tab, QUESTION)
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    first = seed_of(tab)
    tab.hold.write_text("0")
    tab.click("#regenerate")
    tab.wait_for_timeout(100)
    (kept,) = session_of(tab).rounds
    assert kept.prompt == QUESTION and kept.replies  # kept until there is something new
    tab.hold.unlink()
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    until = time.monotonic() + PATIENCE
    while seed_of(tab) == first and time.monotonic() < until:  # the text may well be the same again
        tab.wait_for_timeout(100)
    second = seed_of(tab)
    assert second != first
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    assert tab.locator("#view-fine .you").count() == 1
    # The answers before are kept, also over a reload, and can be turned to by keyboard.
    assert tab.inner_text("#variants .count") == "Answers 2 of 2"
    tab.wait_for_selector("#previous-answers:enabled")
    assert tab.get_by_role("button", name="Next answers").is_disabled()
    tab.get_by_role("button", name="Previous answers").press("Enter")
    tab.wait_for_selector("#variants .count:text('Answers 1 of 2')")
    assert seed_of(tab) == first and session_of(tab).rounds[-1].replies == kept.replies
    tab.wait_for_selector(".spoken:text-is('Answers 1 of 2')", state="attached")
    tab.wait_for_timeout(600)  # what was about to be told of answers that ended before does not take its place
    assert tab.inner_text(".spoken") == "Answers 1 of 2"
    tab.goes_away = True  # the stream of the answers may not be closed yet
    tab.reload()
    tab.wait_for_selector("#variants .count:text('Answers 1 of 2')")
    assert seed_of(tab) == first
    tab.click("#next-answers")
    tab.wait_for_selector("#previous-answers:enabled")
    assert seed_of(tab) == second
    tab.click("#edit")
    tab.wait_for_function("document.querySelector('#prompt textarea').value !== ''")
    assert tab.input_value("#prompt textarea") == QUESTION
    assert tab.locator("#view-fine .you").count() == 0
    tab.wait_for_function("document.activeElement === document.querySelector('#prompt textarea')")
    for typed, left in ((QUESTION, ""), ("something else", "something else")):  # what was typed since is kept
        tab.fill("#prompt textarea", typed)
        tab.click("#redo")
        tab.wait_for_selector("#view-fine .you")
        tab.wait_for_function("left => document.querySelector('#prompt textarea').value === left", arg=left)
        tab.click("#edit")
        tab.wait_for_selector("#view-fine .nothing")
    ask(tab, "Hi")
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    tab.click("#remove-last")
    tab.wait_for_selector("#view-fine .nothing")
    tab.wait_for_selector("#remove-last:disabled")  # a second click is no error
    tab.click("#redo")
    tab.wait_for_function("document.querySelector('#view-fine .you')?.textContent === 'Hi'")
    assert on_disk(tab) == ["Hi"]
    tab.wait_for_selector("#redo:disabled")
    tab.click("#remove-last")
    tab.wait_for_selector("#view-fine .nothing")
    tab.press("#prompt textarea", "Enter")
    tab.wait_for_selector("#ask .notice >> text=Type a question first")
    assert tab.locator(".toast-body:visible").count() == 0  # nothing covers an answer
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-fine .said.writing")
        tab.click("#clear")  # in the midst of it
        tab.wait_for_selector("#view-fine .nothing")
    tab.wait_for_timeout(1500)
    assert tab.locator("#view-fine .you").count() == 0


def draft(page):
    """The question that a reload would bring back."""
    return page.evaluate("sessionStorage.getItem('lite_c2f.draft.prompt')")


def questions(page):
    return page.locator("#view-fine .you").all_inner_texts()


def on_disk(page):
    """The questions of the tab's session as it is saved."""
    return [round_.prompt for round_ in session_of(page).rounds]


def test_in_the_midst_of_an_answer(site, tab):
    """What is pressed while answers are written neither loses a round nor brings one back."""
    ask(tab, "Alpha")
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-coarse .said.writing")
        ask(tab, "too early", refused=True)
        tab.wait_for_selector("text=still being written")
        assert tab.input_value("#prompt textarea") == "too early" == draft(tab)
        assert tab.locator("#regenerate:disabled").count() == 1
        assert questions(tab) == ["Alpha", QUESTION]
        tab.click("#edit")
        tab.wait_for_function("q => document.querySelector('#prompt textarea').value === q", arg=QUESTION)
    tab.wait_for_timeout(1500)
    assert questions(tab) == ["Alpha"] and on_disk(tab) == ["Alpha", QUESTION]  # until there is a replacement
    with held(tab):
        tab.press("#prompt textarea", "Enter")
        tab.wait_for_selector("#view-coarse .said.writing")
        tab.goes_away = True
        tab.reload()
        tab.wait_for_function("document.querySelectorAll('#view-fine .you').length === 2")
        assert questions(tab) == ["Alpha", QUESTION] == on_disk(tab)  # the question is not lost
        assert tab.locator("#view-fine .said.writing").count() == 0
    tab.get_by_text("Settings of this tab").first.click()
    tab.get_by_label("Seed").first.fill("abc")
    tab.click("#regenerate")
    tab.wait_for_selector("text=seed 'abc'")
    assert tab.locator(".notice p").count() == 1
    tab.get_by_label("Seed").first.fill("3")
    tab.click("#regenerate")
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    assert seed_of(tab) == "3"
    assert questions(tab) == ["Alpha", QUESTION]


def test_a_reload_in_the_midst_of_the_first_answer_keeps_what_was_said(tab):
    with held(tab) as allow:
        ask(tab, QUESTION)
        tab.wait_for_function("document.querySelector('#view-coarse .said.writing')?.innerText.length > 0")
        seen = answer_of(tab, "coarse")
        for tokens in range(3, 40):  # it is saved now and then, with the next word
            allow(tokens)
            tab.wait_for_timeout(600)
            if session_of(tab).rounds[-1].replies:
                break
        tab.goes_away = True
        tab.reload()
        ended(tab, "coarse", chip="stopped")
        assert seen and answer_of(tab, "coarse").startswith(seen) and questions(tab) == [QUESTION] == on_disk(tab)
        assert session_of(tab).rounds[-1].replies["coarse"].finish == "stopped"
    ask(tab, "Beta")
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    assert questions(tab) == [QUESTION, "Beta"] == on_disk(tab)
    owner = tab.evaluate("localStorage.getItem('lite_c2f.owner')")
    assert len(conversations.list_sessions(tab.run / "app" / "sessions", owner)) == 1  # it went on, beside nothing


def test_a_reload_as_an_answer_ends_keeps_the_session(site, tab):
    """The page that is left asks once more, when the server has forgotten it, and its tab stores what it is told."""
    late, documents = [], []

    events = tab.evaluate("window.gradio_config.dependencies")
    after_an_answer = [event["id"] for event in events if [None, "then"] in event["targets"]]

    def asked(route):
        if documents or json.loads(route.request.post_data)["fn_index"] not in after_an_answer:
            return route.continue_()
        return late.append(route)

    tab.route("**/run/predict", asked)
    tab.route(site.url, lambda route: documents.append(route))
    ask(tab, QUESTION)
    wait_until(tab, lambda: late)
    stored = tab.evaluate("sessionStorage.getItem('lite_c2f.session')")
    tab.goes_away = True
    tab.evaluate("setTimeout(() => location.reload())")
    wait_until(tab, lambda: documents)
    tab.wait_for_timeout(1000)  # by now the server knows that the page was left
    with tab.expect_response("**/run/predict"):
        late[0].continue_()
    tab.wait_for_timeout(300)
    documents[0].continue_()
    tab.wait_for_selector("#view-fine .said")
    assert tab.evaluate("sessionStorage.getItem('lite_c2f.session')") == stored
    assert questions(tab) == [QUESTION] == on_disk(tab)


def test_what_is_typed_while_a_question_is_on_its_way_stays(tab):
    """On a slow connection the box is emptied some time after Enter."""
    sent = []
    tab.route("**/queue/join**", lambda route: sent.append(route))
    box = "#prompt textarea"
    for typed, left in ((" and then?", " and then?"), ("Eve", "Eve"), ("", "")):
        replaced = typed == "Eve"
        ask(tab, QUESTION)
        wait_until(tab, lambda: sent)
        tab.fill(box, "Eve") if replaced else tab.type(box, typed)
        assert tab.input_value(box) == (typed if replaced else QUESTION + typed)
        sent.pop().continue_()
        tab.wait_for_function("([box, left]) => document.querySelector(box).value === left", arg=[box, left])
        ended(tab, "coarse", "fine", "baseline", chip="reward")
        assert tab.input_value(box) == left
    assert questions(tab) == [QUESTION] * 3


def test_a_page_that_is_looked_at_again_is_not_an_old_one(tab):
    """Its server was restarted, or Back shows it as it was left."""
    tab.goes_away = True
    looked_at = "dispatchEvent(new Event('focus'))"
    restarted = f"gradio_config.app_id = 'of a server that has ended'; {looked_at}"
    for script in (restarted, "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))"):
        tab.wait_for_selector("#prompt textarea:enabled")
        tab.fill("#prompt textarea", "half a thought")
        with tab.expect_response("**/app_id"):
            tab.evaluate(looked_at)
        tab.wait_for_timeout(300)  # the server is the same: nothing happens
        with tab.expect_navigation():
            tab.evaluate(f"setTimeout(() => {{ {script} }})")
        tab.wait_for_function("document.querySelector('#prompt textarea')?.value === 'half a thought'")


def test_the_base_joins_the_last_round_with_its_random_numbers(tab):
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-coarse .said.writing")
        tab.click("#show-base input")
        tab.wait_for_selector("text=The base answers from the next question on")
        tab.click("#show-base input")
        tab.fill("#other-ratio input", "0")  # at which it is the baseline
        tab.press("#other-ratio input", "Enter")
        tab.wait_for_selector("text=open it again when the others end")
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    coarse = answer_of(tab, "coarse")
    tab.click("#show-base input")
    ended(tab, "base", chip="reward")
    seeds = {reply.seed for reply in session_of(tab).rounds[-1].replies.values()}
    assert len(seeds) == 1 and str(*seeds) == seed_of(tab) and answer_of(tab, "coarse") == coarse
    assert tab.locator("#view-other .chip.act").count() == 0
    tab.click("#open-other:has-text('Open a second Fine')")
    tab.wait_for_selector("#view-other .chip.act")  # it is scored too
    assert answer_of(tab, "other") == answer_of(tab, "baseline") and answer_of(tab, "coarse") == coarse
    assert tab.get_attribute("#stop-other", "aria-label") == "Stop Second Fine at ratio 0"
    best = tab.run / "coarse" / "best"
    shutil.copytree(tab.run / "coarse" / "adapter", best / "adapter")  # the same weights, loaded beside the run's own
    try:
        tab.reload()  # which lists them
        tab.wait_for_selector("#view-other .said")
        assert "fine@0" in session_of(tab).rounds[-1].replies
        tab.click("#other-choice input")
        tab.wait_for_selector("[role=option]")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("Enter")
        tab.click("#open-other:has-text('Open this pane')")
        tab.wait_for_selector("#view-other [aria-label='ask again: Coarse Actor, best policy']")
        assert answer_of(tab, "other") == answer_of(tab, "coarse") == coarse
        assert tab.get_attribute("#stop-other", "aria-label") == "Stop Coarse Actor, best policy"
    finally:
        shutil.rmtree(best)
    tab.click("#view-other .act:has-text('ask again')")
    tab.wait_for_selector("#view-other >> text=failed: 'Coarse Actor, best policy' is not there (any more)")
    tab.click("#other-choice input")  # a model of another server
    tab.wait_for_selector(
        "[role=option]:has-text('no longer there')"
    )  # the list is new: a click while it comes is lost
    tab.click("[role=option]:has-text('llama at 127.0.0.1')")
    tab.click("#open-other:has-text('Open this pane')")
    tab.wait_for_selector("#view-other strong:has-text('Seven')")
    tab.wait_for_selector("#view-other .chip.act:has-text('ask again')")
    assert answer_of(tab, "other").startswith("Seven <img src=x") and answer_of(tab, "coarse") == coarse
    assert tab.get_attribute("#stop-other", "aria-label").startswith("Stop llama at 127.0.0.1:")
    tab.click("#remove-other")
    tab.wait_for_selector("#view-other", state="hidden")
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.click("#open-other")  # in sight, as before it was removed
    tab.wait_for_selector("#view-other:visible")
    tab.wait_for_function("document.querySelector('#pane-other').getBoundingClientRect().top >= -1")
    assert tab.locator("#pane-other button:visible").all_inner_texts()[0] == "Stop"
    assert tab.locator(".unseen:visible").count() == 0 < tab.locator(".unseen").count()


def test_a_reload_keeps_the_session_and_others_do_not_see_it(site, tab, browser):
    ask(tab, "my secret question")
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    tab.wait_for_function("sessionStorage.getItem('lite_c2f.session')")
    fine = answer_of(tab, "fine")
    tab.fill("#prompt textarea", "not sent yet")
    tab.reload()
    tab.wait_for_selector("#view-fine .said")
    assert answer_of(tab, "fine") == fine
    tab.wait_for_function("document.querySelector('#prompt textarea').value === 'not sent yet'")
    ask(tab, "sent")
    tab.wait_for_function("document.querySelectorAll('#view-fine .you').length === 2")
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    tab.goes_away = True  # the stream of the answers may not be closed yet
    tab.reload()
    tab.wait_for_function("document.querySelectorAll('#view-fine .said').length === 2")
    tab.wait_for_timeout(500)
    assert tab.input_value("#prompt textarea") == ""
    tab.click("#remove-last")
    tab.wait_for_function("document.querySelectorAll('#view-fine .said').length === 1")
    other = browser.new_context()
    page = open_page(other, site)
    page.get_by_text(re.compile("^Sessions")).click()
    page.click("#sessions input")
    page.wait_for_timeout(300)
    assert "secret" not in page.inner_text("body")
    other.close()
    tab.click("#clear")
    tab.wait_for_selector("#view-fine .nothing")
    tab.get_by_text(re.compile("^Sessions")).click()
    tab.click("#sessions input")
    tab.get_by_role("option", name=re.compile("my secret question")).click()
    tab.wait_for_selector("#view-fine .said")
    assert answer_of(tab, "fine") == fine
    with tab.expect_download() as download:
        tab.click("#export-json")
    taken = conversations.from_json(Path(download.value.path()).read_text(encoding="utf-8"))
    assert taken.rounds[0].prompt == "my secret question" and taken.rounds == session_of(tab).rounds
    assert as_shown(tab, taken.rounds[0].replies["fine"].text) == fine
    with tab.expect_download() as download:
        tab.click("#export-markdown")
    assert "my secret question" in Path(download.value.path()).read_text(encoding="utf-8")


RELOADS = 6  # 40 were tried once


def test_reloads_at_random_moments_lose_nothing(tab):
    """No typed character, no question that was taken, no answer that had ended, no vote."""
    draw, seen, votes_cast, tab.goes_away = random.Random(RELOADS), {}, [], True

    def reload():
        with tab.expect_response(lambda response: "/run/" in response.url):
            tab.reload()
        tab.wait_for_selector("#prompt textarea:enabled")
        tab.wait_for_function("count => document.querySelectorAll('#view-fine .you').length >= count", arg=len(seen))
        tab.wait_for_timeout(300)

    for number in range(RELOADS // 2):
        text = f"{number}. {QUESTION}"
        typed = text[: draw.randrange(1, len(text))]
        tab.locator("#prompt textarea").press_sequentially(typed)
        reload()
        assert tab.input_value("#prompt textarea") == typed
        tab.locator("#prompt textarea").press_sequentially(text[len(typed) :])
        tab.press("#prompt textarea", "Enter")
        tab.wait_for_timeout(draw.random() * 1500)
        reload()
        asked = questions(tab)
        assert asked[: len(seen)] == list(seen)
        if text not in asked:  # it was not taken yet
            assert tab.input_value("#prompt textarea") == text
            tab.press("#prompt textarea", "Enter")
        elif tab.input_value("#prompt textarea"):
            tab.fill("#prompt textarea", "")  # taken in the moment of the reload: it stays, rather than be lost
        tab.asked = text
        ended(tab, "fine", "coarse", "baseline", chip="")
        seen[text] = session_of(tab).rounds[-1].replies
        if seen[text]["fine"].text:
            tab.click("#view-fine .act[aria-pressed] >> nth=-1")
            tab.wait_for_selector("#view-fine .act[aria-pressed=true]")
            votes_cast.append(text)
            reload()
            tab.wait_for_selector("#view-fine .act[aria-pressed=true]")
        assert {round_.prompt: round_.replies for round_ in session_of(tab).rounds} == seen
    file = tab.run / "app" / "votes.jsonl"
    voted = votes.current(votes.read(file))
    assert [vote.turns[0].text for vote in voted] == votes_cast
    file.unlink(missing_ok=True)  # other tests count theirs


def ballot(page):
    """Two answers to vote on; two that are the same, which Coarse and Fine often give here, are none."""
    for _ in range(12):
        ask(page, QUESTION, "#vote-prompt")
        page.wait_for_function("document.querySelector('#vote-prompt textarea').value === ''")  # it is asked
        page.wait_for_function(
            "document.querySelector('.verdict').innerText.match(/Which is better|Both say the same/)"
        )
        if page.locator("#vote-A:enabled").count():
            return
        assert page.inner_text("#blind-A .said") == page.inner_text("#blind-B .said")
    raise AssertionError("always the same")


def test_a_blind_vote_names_the_actors_afterwards_and_is_written_down(site, tab):
    tab.get_by_role("tab", name="Blind vote").click()
    tab.wait_for_selector("#vote-send:enabled[aria-disabled=true]")  # its box is empty
    ballot(tab)
    shown = tab.inner_text(".tabitem:visible")
    assert not re.search("Answer A:|EOS|tokens/s|reward [+-]", shown)  # nothing tells who it is
    answers = [tab.inner_text(f"#blind-{letter} .said") for letter in "AB"]
    assert tab.url.endswith("#blind-vote")
    tab.reload()  # back on the same tab, with the same vote open
    tab.wait_for_selector("#vote-B:enabled")
    assert [tab.inner_text(f"#blind-{letter} .said") for letter in "AB"] == answers
    tab.click("#vote-B")
    tab.wait_for_selector("text=/Answer B: (Coarse|Fine|Baseline)/")
    tab.wait_for_selector("#vote-B:disabled")  # once
    *_, vote = votes.read(site.run / "app" / "votes.jsonl")
    assert vote.choice == "B" and vote.turns[0].text == QUESTION
    assert tab.inner_text("#blind-A .said") == as_shown(tab, vote.answers[vote.shown[0]])
    assert len(set(vote.seeds.values())) == 1 and vote.run["made_of"]
    file = site.run / "app" / "votes.jsonl"
    kept = file.rename(file.with_suffix(".kept"))
    file.mkdir()  # it cannot be written
    ballot(tab)
    tab.click("#vote-A")
    tab.wait_for_selector("#vote-ask .notice p.error")
    file.rmdir(), kept.rename(file)
    tab.click("#vote-A")
    tab.wait_for_selector("text=/Answer B: (Coarse|Fine|Baseline)/")
    assert len(votes.read(file)) == 2
    tab.click("#vote-back")
    tab.wait_for_selector(".verdict:has-text('taken back')")
    assert [vote.choice for vote in votes.read(file)] == ["B", "A", "taken_back"]
    ballot(tab)
    ask(tab, "And one more?", "#vote-prompt")  # of the same two
    tab.wait_for_function("document.querySelectorAll('#blind-A .you').length === 2")
    tab.wait_for_function("document.querySelector('.verdict').innerText.match(/Which is better|Both say the same/)")
    if tab.locator("#vote-A:enabled").count() == 0:
        tab.click("#vote-skip")
        tab.wait_for_selector("#vote-skip:disabled")
        ballot(tab)
    tab.press("#vote-prompt textarea", "1")  # it is typed
    tab.fill("#vote-prompt textarea", "")
    tab.focus("#vote-skip")
    tab.keyboard.press("1")
    tab.wait_for_selector(".verdict:has-text('Your vote')")
    assert [vote.choice for vote in votes.read(file)][3:] == ["A"]
    assert re.search(
        "[12] votes? of 1 voter: too few to say", tab.inner_text("#vote-results")
    )  # the same answers count once
    ballot(tab)
    tab.click("#vote-skip")
    tab.wait_for_selector("#vote-A:disabled")
    assert tab.inner_text("#blind-A").startswith("Ask something") and len(votes.read(file)) == 4


def test_several_ratios_in_one_go(tab):
    tab.get_by_role("tab", name="Ratios").click()
    tab.get_by_label("0.25", exact=True).check()
    ask(tab, QUESTION, "#strip-prompt")
    ratios = sorted({0.0, 0.25, 0.5, 1.0, float(ratio_of(tab))})
    tab.wait_for_function(
        "count => [...document.querySelectorAll('#strip tr[data-figure=reward] td')].filter(c => c.textContent).length"
        " === count",
        arg=len(ratios),
    )
    heads = tab.locator("#strip section h2").all_inner_texts()
    assert [head.split()[0] for head in heads] == [f"{ratio:g}" for ratio in ratios]
    assert tab.locator(".chart svg").count() == 1
    shown = tab.inner_text("#strip")
    tab.reload()
    tab.wait_for_selector("#strip .said")
    tab.wait_for_function("asked => document.querySelector('#strip-prompt textarea').value === asked", arg=QUESTION)
    assert tab.inner_text("#strip") == shown
    assert tab.get_by_label("0.25", exact=True).is_checked()


def reopened(page, rounds, **changes):
    """The page with a session of these rounds, saved as if it had been asked."""
    owner = page.evaluate("localStorage.getItem('lite_c2f.owner')")
    crafted = conversations.new(owner, {"name": "crafted"})._replace(rounds=tuple(rounds), **changes)
    conversations.save(page.run / "app" / "sessions", crafted)
    page.evaluate("id => sessionStorage.setItem('lite_c2f.session', id)", crafted.id)
    assert page.errors == []
    page.goes_away = True  # a stream of answers may not be closed yet
    page.asked = None
    page.reload()
    page.wait_for_function("count => document.querySelectorAll('#view-fine .round').length === count", arg=len(rounds))
    return crafted


def crafted_reply(pane, text):
    return Reply(
        pane,
        text,
        9,
        80.0,
        "eos",
        text,
        0.1,
        reward=0.5,
        repeated=0.0,
        ratio=1.0 if pane == "fine" else None,
        seed=0,
    )


def unlike_rounds(count):
    """Rounds whose longest answer is in another pane each time."""
    return [
        Round(
            f"Question {n}",
            {},
            {
                pane: crafted_reply(pane, "\n\n".join(["So it is, and so it stays."] * (1 + 7 * ((n + place) % 3))))
                for place, pane in enumerate(("coarse", "fine", "baseline"))
            },
        )
        for n in range(count)
    ]


LINED_UP = """() => {
    const tops = ["coarse", "fine", "baseline"].map((pane) =>
        [...document.querySelectorAll(`#view-${pane} .round`)].map((it) => Math.round(it.getBoundingClientRect().top)));
    return tops[0].length > 0 && tops.every((those) => those.join() === tops[0].join());
}"""


END_IN_SIGHT = """(id) => {
    const view = document.querySelector(id), box = view.getBoundingClientRect();
    const last = [...view.querySelectorAll(".said")].at(-1).getBoundingClientRect();
    const end = Math.min(box.bottom, document.querySelector("#ask").getBoundingClientRect().top);
    return last.bottom > Math.max(box.top, 0) && last.bottom <= end + 1;
}"""


def scrolled(page, *panes):
    return [page.evaluate("id => Math.round(document.querySelector(id).scrollTop)", f"#view-{pane}") for pane in panes]


def test_rounds_begin_at_the_same_height_in_every_pane(tab):
    tab.set_viewport_size({"width": 1100, "height": 850})  # some titles have two lines, some one
    reopened(tab, unlike_rounds(6))
    tab.wait_for_function(LINED_UP)
    ask(tab, QUESTION)
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    tab.wait_for_function(LINED_UP)
    tab.click("#show-base input")  # it has no answers to the earlier rounds
    ended(tab, "base", chip="reward")
    tab.wait_for_function(LINED_UP)
    last = "id => document.querySelector(`#view-${id} .recent .round:last-of-type`).getBoundingClientRect().top"
    assert tab.evaluate(last, "base") == tab.evaluate(last, "fine")
    tab.set_viewport_size({"width": 1500, "height": 850})
    tab.wait_for_function(LINED_UP)


def test_panes_scroll_together_until_told_otherwise(tab):
    reopened(tab, unlike_rounds(6))
    tab.wait_for_function("document.querySelector('#view-coarse').scrollTop > 500")  # at its end
    for pane in ("coarse", "fine", "baseline"):  # 15 paragraphs, one, and 8: of each the end is seen
        tab.wait_for_function(END_IN_SIGHT, arg=f"#view-{pane}")
    tab.evaluate("document.querySelector('#view-coarse').scrollTop -= 60")  # within the longest
    tab.wait_for_timeout(300)
    assert tab.evaluate(END_IN_SIGHT, "#view-baseline") and tab.evaluate(END_IN_SIGHT, "#view-fine")
    tab.click("#fully input")
    tab.wait_for_function("document.querySelector('#view-coarse').clientHeight > 1500")
    tab.evaluate("document.querySelector('#panes').scrollIntoView({block: 'end'}); scrollBy(0, 90)")  # above the box
    for pane in ("coarse", "fine", "baseline"):
        tab.wait_for_function(END_IN_SIGHT, arg=f"#view-{pane}")
    tab.click("#fully input")
    tab.wait_for_function("document.querySelector('#view-coarse').clientHeight < 1500")
    tab.evaluate("document.querySelector('#view-fine').scrollTop = 301")
    tab.wait_for_function(
        "['coarse', 'baseline'].every((pane) => document.querySelector(`#view-${pane}`).scrollTop === 301)"
    )
    tab.click("#together input")
    tab.wait_for_function("!document.querySelector('#together input').checked")
    with tab.expect_event("console", lambda message: message.text == "scrolled"):
        tab.evaluate(
            """() => {
                const view = document.querySelector("#view-baseline");
                // Two frames after its own event every other view would have been scrolled too.
                view.addEventListener("scroll", () => requestAnimationFrame(() =>
                    requestAnimationFrame(() => console.log("scrolled"))), {once: true});
                view.scrollTop = 37;
            }"""
        )
    assert scrolled(tab, "coarse", "fine", "baseline") == [301, 301, 37]
    tab.click("#together input")
    tab.wait_for_function("document.querySelector('#together input').checked")
    tab.evaluate("document.querySelector('#view-coarse').scrollTop = 211")
    tab.wait_for_function(
        "['fine', 'baseline'].every((pane) => document.querySelector(`#view-${pane}`).scrollTop === 211)"
    )


def test_long_answers_open_fully(tab):
    reopened(tab, unlike_rounds(3))
    hidden = "[...document.querySelectorAll('#panes .view')].map((view) => view.scrollHeight - view.clientHeight)"
    assert all(height > 100 for height in tab.evaluate(hidden))
    tab.click("#fully input")
    tab.wait_for_function(f"{hidden}.every((height) => height <= 0)")
    tab.wait_for_function(LINED_UP)
    ask(tab, QUESTION)
    ended(tab, "coarse", "fine", "baseline", chip="reward")
    # The end of the answers stands above the question box, which stays at the bottom of the window.
    tab.wait_for_function(
        "document.querySelector('#panes').getBoundingClientRect().bottom <= "
        "document.querySelector('#ask').getBoundingClientRect().top + 1"
    )
    assert tab.locator("#ask").bounding_box()["y"] + tab.locator("#ask").bounding_box()["height"] <= 851
    assert tab.evaluate("document.querySelector('.bar').getBoundingClientRect().top") >= -1  # titles stay in sight
    tab.click("#fully input")
    tab.wait_for_function(f"{hidden}.every((height) => height > 100)")


def test_held_out_prompts_are_sorted_searched_and_shown_side_by_side(tab):
    """The figures are those of the file: the longest answer of Fine first, and the words that it was given."""
    lines = [json.loads(line) for line in (tab.run / "evaluation" / "responses.jsonl").read_text().splitlines()]
    prompts = list(dict.fromkeys(line["prompt"] for line in lines))
    longest = max(line["tokens"] for line in lines if line["actor"] == "fine")
    assert tab.locator(".prompts").count() == 0 and prompts[1] not in tab.content()  # nothing before it is opened
    tab.get_by_role("tab", name="Evaluation").click()
    tab.wait_for_selector(".prompts")
    assert tab.url.endswith("#evaluation")
    tab.locator(".prompts thead [data-value='tokens:fine']").click()
    tab.wait_for_selector("[aria-sort=descending] [data-value='tokens:fine']")
    cells = tab.locator(".prompts tbody tr").first.locator("td").all_inner_texts()
    assert cells[5] == str(longest)  # after Coarse's four figures and Fine's reward
    assert tab.evaluate("document.activeElement.dataset.value") == "tokens:fine"  # drawn anew, it has the focus
    tab.get_by_label("Search", exact=True).fill(prompts[1].upper())
    tab.wait_for_function("document.querySelectorAll('.prompts tbody tr').length === 1")
    tab.locator(".prompts tbody .pick").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".chosen")
    assert tab.inner_text(".chosen blockquote") == prompts[1]
    answers = {line["actor"]: line["response"] for line in lines if line["prompt"] == prompts[1]}
    said = tab.locator(".chosen .said").all_inner_texts()
    assert said == [answers[actor] for actor in ("coarse", "fine", "instruct", "base")]
    assert tab.locator(".prompts tr[aria-current=true]").count() == 1
    tab.get_by_label("Search", exact=True).fill("")
    tab.wait_for_function("document.querySelectorAll('.prompts tbody tr').length === 50")
    tab.get_by_role("button", name="Previous prompt").click()
    tab.wait_for_function("text => document.querySelector('.chosen blockquote').textContent !== text", arg=prompts[1])
    place = int(re.search(r"prompt (\d+) of", tab.inner_text(".chosen"))[1])
    for count in (1, 2):  # soon after another, a click is the second one of a double click
        before, click = tab.inner_text(".chosen blockquote"), {"bubbles": True, "cancelable": True, "detail": count}
        button = tab.get_by_role("button", name="Previous prompt" if place > 2 else "Next prompt")
        button.dispatch_event("click", click)
        tab.wait_for_function("text => document.querySelector('.chosen blockquote').textContent !== text", arg=before)
    own_questions_are_answered(tab, [prompts[0], EVIL.replace("\n", " "), "Beta"])


def own_questions_are_answered(tab, questions):
    """From a file that is read in the browser, over a reload in the midst, in the table of the held-out prompts."""
    tab.get_by_role("button", name="Your own questions").click()
    tab.wait_for_selector("#own-questions textarea")
    lines = "\n".join(json.dumps({"prompt": question}) for question in questions)
    file = {"name": "mine.jsonl", "mimeType": "text/plain", "buffer": f"{lines}\nnone".encode()}
    tab.set_input_files("#question-file", files=[file])
    tab.wait_for_function("document.querySelector('#own-questions textarea').value.endsWith('none')")
    tab.click("#answer-set")
    tab.wait_for_selector(".notice p >> text=line 4 is no JSON object")
    tab.fill("#own-questions textarea", lines)  # the refusal has left the text there
    tab.locator("input[type=number] >> visible=true").first.fill("8")  # most new tokens
    with held(tab):
        tab.click("#answer-set")
        tab.wait_for_selector("#set-status >> text=0 of 3 answered")
        tab.wait_for_function("document.querySelector('#own-questions textarea').value === ''")
        tab.goes_away = True
        tab.reload()
        tab.wait_for_selector("#set-status >> text=0 of 3 answered")
        assert tab.locator(".prompts tbody tr").count() == 3
    tab.wait_for_selector("#set-status p", state="hidden")
    rewards = "[...document.querySelectorAll('.prompts tbody td.first')].filter((cell) => cell.innerText)"
    tab.wait_for_function(f"{rewards}.length === 12")
    tab.locator(".prompts tbody .pick").nth(1).click()
    tab.wait_for_selector(".chosen")
    assert tab.inner_text(".chosen blockquote") == questions[1] and tab.locator(".chosen .said").count() == 4
    with tab.expect_download() as download:
        tab.click("#export-set")
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert [row["prompt"] for row in rows[::4]] == questions and len(rows) == 12
    assert all(row["tokens"] <= 8 for row in rows)


def test_runs_are_shown(tab):
    tab.get_by_role("tab", name="Runs").click()
    tab.wait_for_selector(".run-state.finished")
    assert tab.locator(".plot svg").count() > 5
    rows = [json.loads(line) for line in (tab.run / "metrics.jsonl").read_text().splitlines()]
    rewards = {row["step"]: row["reward"] for row in rows if row["stage"] == "coarse"}
    chart = tab.get_by_role("slider", name="Reward, z-score")
    chart.focus()
    for key in ("Home", "ArrowRight"):
        tab.keyboard.press(key)
    step, value = chart.get_attribute("aria-valuetext").removeprefix("update ").split(": ")
    assert int(step) == 2 and float(value) == pytest.approx(rewards[2], rel=1e-3)
    box = tab.get_by_role("slider", name="KL to the base").bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 4, box["y"] + 30)  # beyond the last point
    readouts = tab.locator(".plot .readout").all_inner_texts()
    assert [
        text for text in readouts if text.startswith(f"update {max(rewards)}: ")
    ] and f"update {step}: {value}" in readouts
    tab.get_by_role("button", name=re.compile("^Log")).click()
    tab.get_by_label("Search the log").fill("REWARD MODEL:")
    tab.wait_for_function("document.querySelector('.run-log').textContent.split('\\n').length < 4")
    assert "reward model: " in tab.inner_text(".run-log")
    tab.evaluate(  # as if it had been at work until now
        "() => { const state = document.querySelector('.run-state[data-run]'), ended = state.cloneNode(true); "
        "state.classList.replace('finished', 'running'); state.append(' '); "
        "setTimeout(() => state.replaceWith(ended), 200) }"
    )
    tab.wait_for_function("name => document.title === `done: ${name}`", arg=tab.run.name)
    tab.keyboard.press("Shift")
    assert tab.title() == f"lite_c2f: {tab.run.name}"


def test_a_double_click_is_one_click(site, tab):
    """Neither two runs are started nor a question asked twice, and nothing is refused."""
    tab.fill("#prompt textarea", QUESTION)
    with held(tab):
        tab.dblclick("#send")
        tab.wait_for_selector("#view-coarse .said.writing")
        tab.wait_for_selector("#send:disabled")
        assert tab.locator(".notice p").count() == 0
        tab.click("#stop-all")
    ended(tab, "coarse", "fine", "baseline", chip="stopped")
    assert questions(tab) == [QUESTION]
    tab.get_by_role("tab", name="Runs").click()
    tab.get_by_role("button", name="Train").click()
    before = {folder.name for folder in site.run.parent.iterdir()}
    tab.dblclick("#start-run")
    try:
        tab.wait_for_selector(".run-message >> text=Started as-toy-1 as process")
        tab.wait_for_selector("#start-run:disabled")  # nothing is left to start
        assert tab.locator(".run-message.failed").count() == 0
        tab.locator(".run-view input[type=number]").first.fill("5")
        tab.wait_for_selector("#start-run:enabled")  # another run
    finally:
        tab.wait_for_selector("#stop-run:enabled")
        tab.click("#stop-run")
    tab.wait_for_selector(".run-state:not(.starting):not(.running):not(.stopping)")
    started = {folder.name for folder in site.run.parent.iterdir() if folder.is_dir()} - before
    assert started <= {"as-toy-1", STARTS}, started


def test_what_a_model_and_a_person_wrote_is_shown_and_never_run(site, tab):
    """Hostile text as a prompt, and as a model's answer in a saved session."""
    ask(tab, EVIL)
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    assert tab.inner_text("#view-fine .you") == EVIL.strip()
    owner = tab.evaluate("localStorage.getItem('lite_c2f.owner')")
    reply = Reply("fine", EVIL, 9, 80.0, "eos", EVIL, 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=0)
    bad = reply._replace(pane="coarse", finish="error", text="", ratio=None)
    code = reply._replace(pane="baseline", text=f"{CODE}\n\n{FORMULAS}", ratio=None)
    round_ = Round(EVIL, {}, {"fine": reply, "coarse": bad, "baseline": code})
    crafted = conversations.new(owner, {"name": EVIL})._replace(rounds=(round_,))
    conversations.save(site.run / "app" / "sessions", crafted)
    tab.evaluate("id => sessionStorage.setItem('lite_c2f.session', id)", crafted.id)
    assert tab.errors == []
    tab.goes_away = True  # the stream of the answers may not be closed yet
    tab.reload()
    tab.wait_for_selector("#view-fine .said")
    shown = tab.inner_text("#view-fine .said")  # read as Markdown: signs and blanks may go, and nothing else
    assert [letter for letter in shown if letter.isalnum()] == [letter for letter in EVIL if letter.isalnum()]
    assert tab.inner_text("#view-fine .said strong") == "bold"
    assert "window.hit=1" in tab.inner_text("#view-coarse .chip.bad")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = tab.get_by_role("button", name="copy code")
    button.press("Enter")
    tab.wait_for_selector("#view-baseline .code .copy:text('copied')")
    assert tab.evaluate("navigator.clipboard.readText()") == tab.inner_text("#view-baseline code") == CODE[6:-3]
    tab.evaluate(  # as with every token of an answer that is being written
        """() => {
            const drawn = document.querySelector("#view-baseline .code .copy").closest(".talk").parentElement;
            drawn.innerHTML = drawn.innerHTML.replace(">copied<", ">copy<");
        }"""
    )
    assert button.inner_text() == "copied" and button.evaluate("button => button === document.activeElement")
    tab.wait_for_selector("#view-baseline .code .copy:text-is('copy')")  # it turns back
    check_formulas(tab)
    tab.get_by_label("Mark repeats").check()
    tab.wait_for_selector("#view-fine mark")
    assert tab.inner_text("#view-fine .said") == EVIL
    assert tab.locator(".view img, .view script, .view svg, .view a").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # not even the long word is wider


def check_formulas(tab):
    """Those of FORMULAS are MathML, or their source where that would be too deep or is none; copied, they are TeX."""
    tab.wait_for_selector("#view-baseline .formula.displayed munderover")
    formulas, math = tab.locator("#view-baseline .formula"), tab.locator("#view-baseline .formula math")
    assert formulas.count() == 200  # and no more
    sources = formulas.evaluate_all(
        "all => all.filter(each => !each.querySelector('math')).map(each => each.innerText)"
    )
    assert [source[:4] for source in sources] == ["$x^$", "\\(x^", "$\\sq"]
    names = math.evaluate_all("all => all.flatMap(each => [...each.querySelectorAll('*')]).map(each => each.localName)")
    tokens, layout = {"mi", "mn", "mo", "mtext", "mspace"}, {"mrow", "msup", "msub", "mfrac", "munderover", "mstyle"}
    assert set(names) == {"semantics", "annotation"} | tokens | layout
    for attribute in ("href", "src", "onerror", "style", "class"):
        assert tab.locator(f"#view-baseline .formula [{attribute}]").count() == 0
    assert [math.nth(place).get_attribute("display") for place in (0, 1)] == [None, "block"]
    assert not math.locator("annotation").nth(1).is_visible()  # nor read aloud
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('#view-baseline .displayed').parentElement)")
    tab.keyboard.press("Control+c")
    assert tab.evaluate("navigator.clipboard.readText()").strip() == FORMULA


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (768, "dark"), (1300, "dark")])
def test_nothing_is_wider_than_the_window_and_text_can_be_read(site, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = open_page(context, site)
    ask(page, QUESTION)
    ended(page, "fine", chip="reward")
    for name in ("Compare", "Blind vote", "Ratios", "Evaluation", "Runs"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(600)
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("tab", name="Compare").click()
    assert page.locator("#view-fine .said[dir=auto]").count() == 1
    for selector in ("#view-fine .said", "#view-fine .you", "#view-fine .chip", ".head span"):
        assert contrast(page, selector) >= 4.5, selector
    context.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (990, 700)])
def test_a_narrow_window_shows_one_pane_at_a_time(site, browser, width, height):
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=True)
    page = open_page(context, site)

    def panes():
        return [pane for pane in ("coarse", "fine", "baseline") if page.locator(f"#view-{pane}").is_visible()]

    def touch(name):
        page.get_by_role("button", name=name, exact=True).tap()

    page.wait_for_selector("#view-fine:visible")
    assert panes() == ["fine"] and not page.get_by_role("button", name="Base", exact=True).is_visible()
    bar = page.locator("#ask").bounding_box()
    assert bar["height"] <= height / 10 and bar["y"] + bar["height"] <= height
    page.fill("#prompt textarea", "a line\n" * 9)
    assert page.locator("#ask").bounding_box()["height"] <= height / 10
    ask(page, QUESTION)
    ended(page, "coarse", "fine", "baseline", chip="reward")
    for pane, name in (("coarse", "Coarse"), ("baseline", "Baseline"), ("fine", "Fine")):
        touch(name)
        page.wait_for_selector(f"#view-{pane}:visible")
        assert panes() == [pane]
        assert page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
    view = page.locator("#view-fine").bounding_box()
    assert view["height"] >= height / 3 and view["y"] + view["height"] <= page.locator("#ask").bounding_box()["y"]
    touch("Figures, ratio")
    page.wait_for_selector("#view-fine", state="hidden")
    for part in ("#summary-line table", "#ratio input[type=range]"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= page.locator("#ask").bounding_box()["y"], part
    page.reload()
    page.wait_for_selector("#summary-line table:visible")  # it stays chosen
    assert panes() == []
    page.set_viewport_size({"width": 1000, "height": height})
    page.wait_for_selector("#view-coarse:visible")
    assert panes() == ["coarse", "fine", "baseline"]
    context.close()


def test_what_fine_changed_is_shown_in_its_pane(tab):
    replies = {
        "coarse": crafted_reply("coarse", "It is a red box."),
        "fine": crafted_reply("fine", "It is a box, too."),
        "baseline": crafted_reply("baseline", "It is a box."),
    }
    reopened(tab, [Round("What?", {}, replies)])
    assert tab.locator("#view-fine ins, #view-fine del").count() == 0
    for choice, gone, new in (("Coarse", ["red "], [", too"]), ("Baseline", [], [", too"])):
        tab.click("#against input")
        tab.get_by_role("option", name=f"What Fine changed of {choice}").click()
        tab.wait_for_selector(f".legend:visible >> text=words of {choice}")
        tab.wait_for_function("count => document.querySelectorAll('#view-fine del').length === count", arg=len(gone))
        assert tab.locator("#view-fine del").all_text_contents() == gone
        assert tab.locator("#view-fine ins").all_text_contents() == new
        assert tab.locator("#view-coarse ins, #view-coarse del, #view-baseline ins").count() == 0
    tab.get_by_label("Mark repeats").check()
    tab.wait_for_selector(".legend:visible mark.again")  # beside the changes
    assert tab.locator("#view-fine ins").all_text_contents() == [", too"]
    tab.uncheck("#together input")
    tab.reload()  # how answers are shown is kept
    tab.wait_for_selector(".legend:visible mark.again")
    tab.wait_for_selector(".legend:visible >> text=words of Baseline")
    tab.wait_for_function("document.querySelectorAll('#view-fine ins').length === 1")
    assert not tab.is_checked("#together input") and not tab.is_checked("#fully input")
    best_is_voted(tab)


def best_is_voted(tab):
    """Three crafted answers: one is voted the best, then another, then none."""
    file = tab.run / "app" / "votes.jsonl"
    before = len(votes.read(file))
    tab.click("#view-fine .act:has-text('best')")
    tab.wait_for_selector("#view-fine .act[aria-pressed=true]")
    tab.reload()
    tab.wait_for_selector("#view-fine .act[aria-pressed=true]")
    assert tab.locator(".act[aria-pressed=true]").count() == 1
    tab.focus("#view-coarse .act[aria-pressed]")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#view-coarse .act[aria-pressed=true]")
    tab.wait_for_selector("#view-fine .act[aria-pressed=false]")
    tab.get_by_role("tab", name="Blind vote").click()
    tab.wait_for_selector("#vote-results >> text=Open votes")
    with tab.expect_download() as download:
        tab.click("#download-votes")
    pairs = [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
    assert [(pair["chosen_pane"], pair["rejected_pane"]) for pair in pairs] == [
        ("coarse", "fine"),
        ("coarse", "baseline"),
    ]
    assert download.value.suggested_filename == "votes.jsonl"
    tab.get_by_role("tab", name="Compare").click()
    tab.click("#view-coarse .act[aria-pressed]")
    tab.wait_for_selector("#view-coarse .act[aria-pressed=false]")
    cast = votes.read(file)[before:]
    assert [(vote.winner, vote.blind) for vote in cast] == [("fine", False), ("coarse", False), (None, False)]


AXE = (
    Path(os.environ.get("LITE_C2F_AXE", Path(__file__).parents[2] / ".venv" / "axe-core" / "node_modules")) / "axe-core"
)


@pytest.mark.skipif(not (AXE / "axe.min.js").is_file(), reason=f"no axe-core in {AXE.parent}: `make .venv/.axe-core`")
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_that_shuts_people_out(site, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    page = open_page(context, site)
    page.evaluate((AXE / "axe.min.js").read_text(encoding="utf-8"))
    page.add_style_tag(content="* { transition: none !important }")  # a colour on its way is no colour to measure

    def check(what):
        violations = page.evaluate("async () => (await axe.run()).violations")
        bad = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in bad] == [], what
        assert [each["id"] for each in violations if "heading" in each["id"]] == [], what

    check("empty")
    page.get_by_text("Settings of this tab").first.click()
    page.get_by_text(re.compile("^Sessions")).click()
    page.get_by_text("What each actor reads").click()
    with held(page):
        ask(page, QUESTION)
        page.wait_for_function("document.querySelectorAll('.said.writing').length === 3")
        check("while answers are written")
    ended(page, "coarse", "fine", "baseline", chip="reward")
    page.get_by_label("Mark repeats").check()
    page.wait_for_selector(".legend:visible")
    page.evaluate(  # code in all of its colours
        "made => { document.querySelector('#view-fine .said').classList.remove('plain'), "
        "document.querySelector('#view-fine .said').innerHTML = made }",
        formatted("- [x] [a](https://b.c) ~~d~~\n\n" + CODE),
    )
    check("finished")
    for name, there in (
        ("Blind vote", "#vote-ask"),
        ("Ratios", ".chart svg"),
        ("Evaluation", ".prompts"),
        ("Runs", ".plot svg"),
    ):
        page.get_by_role("tab", name=name).click()
        page.wait_for_selector(f"{there} >> visible=true")
        if name == "Evaluation":
            page.get_by_role("button", name="Your own questions").click()
            page.wait_for_selector("#question-file >> visible=true")
        check(name)
    context.close()


def test_a_screen_reader_hears_once_that_an_answer_has_ended(tab):
    assert tab.locator("[role=log], [aria-live=assertive]").count() == 0
    tab.evaluate(
        """() => {
            window.heard = [];
            const status = document.querySelector(".spoken[role=status]");
            new MutationObserver(() => heard.push(status.textContent)).observe(status, {childList: true});
        }"""
    )
    with held(tab):
        ask(tab, QUESTION)
        tab.wait_for_selector("#view-coarse .said.writing")
        tab.click("#stop-coarse")
        tab.wait_for_function("heard.length === 1")
        assert tab.evaluate("heard") == ["Coarse Actor: stopped"]
    ended(tab, "fine", "baseline", chip="reward")
    tab.wait_for_function("heard.join('; ').split('; ').length === 3")
    heard = "; ".join(tab.evaluate("heard")).split("; ")[1:]
    assert all(re.match(f"(Fine Actor|Baseline \\(instruct\\)): ({ENDS})$", each) for each in heard), heard


def test_the_skip_link_leads_to_the_question(tab):
    tab.mouse.click(2, 2)  # the prompt box has the focus at first; from here on the page begins at its top
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the question"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # it is seen
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.closest('#prompt') !== null")


def contrast(page, selector):
    """WCAG 2.1's contrast of a text and what is behind it."""
    colours = page.evaluate(
        """selector => {
            let element = document.querySelector(selector);
            const ink = getComputedStyle(element).color;
            while (element && /, 0\\)|transparent/.test(getComputedStyle(element).backgroundColor))
                element = element.parentElement;
            return [ink, element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)"];
        }""",
        selector,
    )

    def luminance(colour):
        parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_right_to_left_text_ends_on_its_left(browser):
    """Also below a paragraph that runs the other way; the full stop itself has no direction."""
    text = "שלום לך.\n\nHello you.\n\nשלום שוב."
    reply = Reply("fine", text, 9, 80.0, "eos", text, 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=0)
    page = browser.new_page()
    css = Path(render.__file__).with_name("page.css").read_text(encoding="utf-8")
    page.set_content(f"<style>{css}</style>" + render.conversation([Round("שלום.", {}, {"fine": reply})], "fine"))
    places = page.evaluate(
        """() => [...document.querySelectorAll(".you, .said p")].map((part) => {
            const place = (index) => {
                const range = document.createRange();
                range.setStart(part.firstChild, index), range.setEnd(part.firstChild, index + 1);
                return range.getBoundingClientRect().left;
            };
            return Math.sign(place(part.firstChild.length - 1) - place(0));
        })"""
    )
    assert places == [-1, -1, 1, -1]  # where the full stop is: left of the first letter, or right of it
    page.close()


def test_what_to_do_is_in_sight_of_a_small_window(site, browser):
    context = browser.new_context(viewport={"width": 1024, "height": 768})
    page = open_page(context, site)
    assert page.locator("#prompt").bounding_box()["y"] + page.locator("#prompt").bounding_box()["height"] <= 768 * 2 / 3
    assert "compare three answers" in page.inner_text("#about")
    first = page.locator(".examples:visible button").first
    box = first.bounding_box()
    assert box["y"] + box["height"] <= 768 and first.evaluate("it => it.scrollWidth <= it.clientWidth")
    text = first.inner_text()
    first.click()
    page.wait_for_function("text => document.querySelector('#prompt textarea').value === text", arg=text)
    assert "add and subtract" in page.locator(".examples:visible").inner_text()
    context.close()


def test_actors_appear_without_a_restart(toy_run, browser, tmp_path):
    """Served without a run; then one is there, as when its training has ended."""
    (tmp_path / "log").mkdir()
    served = start(None, tmp_path / "log" / "attempts", 0, cwd=tmp_path)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    try:
        page.goto(served.url)
        page.wait_for_selector("text=There are no runs here yet")  # Runs is open
        page.get_by_role("tab", name="Compare").click()
        page.wait_for_selector("text=no run has been trained")
        shutil.copytree(toy_run, tmp_path / "runs" / "toy", ignore=shutil.ignore_patterns("app"))
        page.wait_for_selector("#prompt textarea:enabled")  # by itself
        assert page.url.endswith("#compare")
    finally:
        served.process.kill()
        served.process.wait()
        page.close()


def test_the_keyboard_is_enough(tab):
    tab.focus("#view-coarse")
    tab.keyboard.press("/")
    tab.keyboard.type(QUESTION)
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("Think")
    with held(tab):
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#view-coarse .said.writing")
        assert tab.inner_text("#view-coarse .you") == f"{QUESTION}\nThink"
        tab.keyboard.press("Escape")
        ended(tab, "coarse", chip="stopped")


def test_the_rendered_prompt_is_shown(tab):
    tab.fill("#prompt textarea", QUESTION)
    tab.get_by_text("What each actor reads").click()
    tab.get_by_role("button", name="Show the rendered prompt").click()
    tab.wait_for_selector(".read pre")
    coarse, fine, _ = tab.locator(".read pre").all_inner_texts()
    assert f"Human: {QUESTION}" in coarse and coarse.rstrip().endswith("Assistant:")
    assert f"[INST] {QUESTION} [/INST]" in fine


FRAMED = """(id) => {
    const [frame, part] = [".tour-frame", id].map((name) => document.querySelector(name).getBoundingClientRect());
    return Math.abs(frame.left + 4 - part.left) < 2 && Math.abs(frame.height - 8 - part.height) < 2;
}"""


def test_a_short_tour_names_the_parts_of_the_page(tab):
    """By mouse and keyboard; Escape closes it and stops no answer, and a question mark in the box is text."""
    tab.type("#prompt textarea", "why?")
    assert tab.locator("#tour").is_hidden()
    tab.fill("#prompt textarea", "")
    tab.click("#tour-opens")
    tab.wait_for_selector("#tour h3:text-is('Ask a question')")
    tab.wait_for_function(FRAMED, arg="#ask")
    for title in ("Coarse Actor", "Fine Actor", "Baseline", "Figures", "Ratio", "Blind vote", "Evaluation", "Runs"):
        tab.keyboard.press("Enter")  # Next has the focus
        tab.wait_for_selector(f"#tour h3:text-is('{title}')")
        if title == "Fine Actor":
            tab.wait_for_function(FRAMED, arg="#pane-fine")
    assert "9 of 9" in tab.inner_text("#tour") and tab.locator("#tour .next").is_disabled()
    tab.hold.write_text("2")
    ask(tab, QUESTION)
    tab.wait_for_selector("#stop-fine:enabled")
    tab.click("#tour .back")
    tab.wait_for_selector("#tour h3:text-is('Evaluation')")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#tour", state="hidden")
    assert tab.locator("#stop-fine").is_enabled() and tab.locator(".tour-frame").is_hidden()
    tab.hold.unlink()
    ended(tab, "fine", "coarse", "baseline", chip="reward")
    tab.locator("#panes h2").first.click()
    tab.keyboard.press("?")
    tab.wait_for_selector("#tour h3:text-is('Ask a question')")
    tab.click("#tour .close")
    tab.click("#summary-line .meanings summary")
    meanings = tab.inner_text("#summary-line .meanings dl")
    assert "one standard deviation better" in meanings and "the model's end token" in meanings


def test_an_open_page_finds_its_session_after_a_restart(toy_run, browser, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "toy", ignore=shutil.ignore_patterns("app"))
    first = start(run, tmp_path / "attempts", 0)
    page = open_page(browser.new_context(), first)
    ask(page, QUESTION)
    ended(page, "coarse", "fine", "baseline", chip="reward")
    fine = answer_of(page, "fine")
    first.process.kill()
    first.process.wait()
    ask(page, "sent to nobody", refused=True)
    (loading := tmp_path / "loading").touch()
    also = ["--models", toy_folder()]  # which has a base and an instruct model
    second = start(run, tmp_path / "attempts", 0, first.url.rsplit(":", 1)[1].strip("/"), also=also)
    try:
        page.wait_for_timeout(3000)  # a page that was told nothing more when the first one ended loads itself anew
        page.wait_for_selector("#prompt textarea:enabled")
        page.wait_for_function("document.querySelector('#prompt textarea').value === 'sent to nobody'")
        ask(page, "Beta")  # to a server that does not know the page
        page.wait_for_function("document.querySelectorAll('#view-fine .you').length === 2")
        for place in ("#loading", "#view-fine .chip.live", "#view-coarse .chip.live"):
            page.wait_for_selector(f"{place}:has-text('models are being loaded')")
        page.click("#stop-coarse")
        ended(page, "coarse", chip="stopped")
        assert second.process.poll() is None
        page.click("#other-choice input")
        page.wait_for_selector("[role=option]:has-text('A second Fine')")
        assert page.locator("[role=option]").count() == 1 and "once the models" in page.inner_text("#other-choice")
        loading.unlink()
        page.wait_for_selector("[role=option]:has-text('instruct')")  # in the list that is open
        page.keyboard.press("Escape")
        ended(page, "fine", "baseline", chip="reward")
        page.wait_for_function("!document.querySelector('#loading').textContent.trim()")
        assert page.inner_text("#view-fine .said >> nth=0") == fine
        assert on_disk(page) == [QUESTION, "Beta"]
    finally:
        second.process.kill()
        second.process.wait()
        page.context.close()
