"""Page benchmark: seconds from navigation to a prompt box that takes text, on the app's first page in Chromium.

    python benchmarks/page.py runs/toy [--loads 7] [--out FILE]

The server is warm: it has served one page before. Every load is a new browser context with an empty cache. Needs
Playwright and a Chromium. Prints one JSON line.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from models import machine, report


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "lite_c2f", "app", str(run), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        while "Serving" not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit("the app did not start")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    seconds = []
    with served(options.run) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless=new", "--no-sandbox"])
        for _ in range(options.loads + 1):
            page = browser.new_context().new_page()
            began = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.wait_for_selector("#prompt textarea:enabled")
            seconds.append(time.perf_counter() - began)
            page.context.close()
        browser.close()
    figures = {"first_page_s": round(median(seconds[1:]), 3), "slowest_s": round(max(seconds[1:]), 3)}
    report(
        {"benchmark": "page", **figures, "cold_s": round(seconds[0], 3), "cores": os.cpu_count(), **machine()},
        options.out,
    )


if __name__ == "__main__":
    main()
