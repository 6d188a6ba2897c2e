"""Page benchmark: how soon the app's first page can be used, what it weighs, long conversations, the server's memory.

    python benchmarks/page.py runs/toy [--loads 7] [--rounds 60] [--visits 200] [--out FILE]

On a copy of the run, in Chromium, every load in a new browser context with an empty cache:

- `start`: seconds from the command to the line "Serving", and to a first page whose prompt box takes text;
- `page`: of a server that has served one page before: seconds from navigation to that box and to the first paint,
  requests, and bytes as they were sent;
- `rounds`: milliseconds from Enter to the question's bubble in a conversation of so many long rounds (5 questions);
- `memory`: MiB resident after a tenth of the visits and after all; the page is closed after each.

Needs Playwright and a Chromium. Prints one JSON line last.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from models import machine, report  # noqa: E402

from lite_c2f.actors.reply import Reply  # noqa: E402
from lite_c2f.ui.store import conversations  # noqa: E402

PANES = ("coarse", "fine", "baseline")
LONG_ANSWER = "\n\n".join(["Ann has 12 apples and gives 5 of them away, so that she keeps 7 of them for the day."] * 24)
USABLE = "#prompt textarea:enabled"
# JavaScript: the time of the next Enter, and of the next bubble after it that the question box leads to.
WATCH = """count => {
    window.enter = window.bubble = null;
    addEventListener('keydown', () => { window.enter = performance.now() }, {capture: true, once: true});
    const look = () => {
        const there = document.querySelectorAll('#view-fine .round').length > count;
        if (there) requestAnimationFrame(() => { window.bubble = performance.now() });
        else requestAnimationFrame(look);
    };
    look();
}"""


@contextlib.contextmanager
def served(run: Path) -> Iterator[tuple[str, int, float]]:
    """(address, process id, seconds until it said so) of the app."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-W", "ignore", "-m", "lite_c2f", "app", str(run), "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        while "Serving" not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit("the app did not start")
        yield f"http://127.0.0.1:{port}/", process.pid, time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def load(browser: Any, url: str) -> dict[str, float]:
    """Load the page with an empty cache."""
    page = browser.new_context().new_page()
    wire = page.context.new_cdp_session(page)
    sent: list[float] = []
    wire.on("Network.loadingFinished", lambda event: sent.append(event["encodedDataLength"]))
    wire.send("Network.enable")
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(USABLE)
    seconds = time.perf_counter() - began
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    page.wait_for_timeout(500)  # what it fetches once it can be used
    page.context.close()
    return {"usable_s": seconds, "first_paint_s": (paint or 0) / 1000, "requests": len(sent), "kib": sum(sent) / 1024}


def long_session(run: Path, owner: str, count: int) -> str:
    """Save a session of so many long rounds; returns its id."""
    replies = {pane: Reply(pane, LONG_ANSWER, 500, 80.0, "eos", seed=1, reward=0.5) for pane in PANES}
    rounds = tuple(conversations.Round(f"Question {n}: what is left?", {}, replies) for n in range(count))
    session = conversations.new(owner, {"name": "benchmark"})._replace(rounds=rounds)
    conversations.save(run / "app" / "sessions", session)
    return session.id


def enter_to_bubble(browser: Any, url: str, run: Path, count: int) -> list[float]:
    """Milliseconds, of five questions one after another."""
    page = browser.new_context().new_page()
    page.goto(url)
    page.wait_for_selector(USABLE)
    page.wait_for_function("localStorage.getItem('lite_c2f.owner')")
    session = long_session(run, page.evaluate("localStorage.getItem('lite_c2f.owner')"), count)
    page.evaluate("id => sessionStorage.setItem('lite_c2f.session', id)", session)
    page.reload()
    there = "count => document.querySelectorAll('#view-fine .round').length === count"
    page.wait_for_function(there, arg=count)
    found = []
    for asked in range(5):
        page.wait_for_selector(f"{USABLE}")
        page.fill("#prompt textarea", "Tom has 3 apples and finds 4. How many now?")
        page.wait_for_selector("#send:enabled")
        page.evaluate(WATCH, count + asked)
        page.press("#prompt textarea", "Enter")
        page.wait_for_function("window.bubble")
        found.append(page.evaluate("window.bubble - window.enter"))
        page.wait_for_selector("#stop-all:disabled", timeout=120_000)
    page.context.close()
    return found


def resident_mib(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024)


def visit(browser: Any, url: str, visits: int, process: int) -> dict[str, int]:
    """MiB resident by number of visits: before, after a tenth of them, after all."""
    found = {"0": resident_mib(process)}
    for number in range(1, visits + 1):
        page = browser.new_context().new_page()
        page.goto(url, wait_until="commit")
        page.wait_for_selector(USABLE)
        page.context.close()
        if number in (visits // 10, visits):
            time.sleep(1)  # the server closes what the page had
            found[str(number)] = resident_mib(process)
    return found


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=60, help="of the long conversation; 0: leave it out")
    parser.add_argument("--visits", type=int, default=200, help="0: leave the memory out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    result: dict[str, Any] = {
        "benchmark": "page",
        "command": "python benchmarks/page.py " + " ".join(sys.argv[1:]),
    }
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        run = Path(shutil.copytree(options.run, Path(scratch) / options.run.name))
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless=new", "--no-sandbox"])
        starts = []
        for _ in range(3):
            with served(run) as (url, _, serving):
                first = load(browser, url)
            starts.append((serving, serving + first["usable_s"]))
        serving, usable = (median(times) for times in zip(*starts, strict=True))
        result["start"] = {
            "serving_s": round(serving, 2),
            "usable_s": round(usable, 2),
            "cold_s": round(starts[0][1], 2),
        }
        with served(run) as (url, process, _):
            load(browser, url)
            loads = [load(browser, url) for _ in range(options.loads)]
            result["page"] = {key: round(median(one[key] for one in loads), 3) for key in loads[0]}
            if options.rounds:
                found = enter_to_bubble(browser, url, run, options.rounds)
                result["rounds"] = {"count": options.rounds, "enter_to_bubble_ms": [round(one) for one in found]}
            if options.visits:
                result["memory"] = {"unit": "MiB", **visit(browser, url, options.visits, process)}
        browser.close()
    report({**result, "cores": os.cpu_count(), **machine()}, options.out)


if __name__ == "__main__":
    main()
