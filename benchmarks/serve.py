"""The HTTP server against the chat's engine it stands on, and many clients against one. Prints one JSON line.

    python benchmarks/serve.py runs/toy [--rounds 9] [--out FILE]

In turn, `--rounds` times, in one process; medians. `together_ratio` is tokens per second of `--clients` clients at once
over those of the same requests one after the other, both through HTTP. `first_token_ratio` is the time to the first
text of one client's stream through HTTP, measured by the client, over that of the engine called directly, and
`first_token_to_app_ratio` over that of the app's `/compare` through gradio_client. Clients and servers share this
process and its cores.
"""

import argparse
import os
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import httpx  # noqa: E402
import torch  # noqa: E402
import uvicorn  # noqa: E402
from gradio_client import Client  # noqa: E402
from models import machine, report  # noqa: E402

from lite_c2f.chat import Chat, ChatSettings  # noqa: E402
from lite_c2f.chat.server import build  # noqa: E402
from lite_c2f.chat.server.serve import ApiServer  # noqa: E402
from lite_c2f.runtime.address import bound_socket  # noqa: E402
from lite_c2f.ui.app import build as build_page  # noqa: E402
from lite_c2f.ui.serve import launch  # noqa: E402

QUESTION = "Lea has 3 apples, first gets 7, second buys 5, third drops 8. How many now?"


@contextmanager
def served(chat: Chat) -> Iterator[httpx.Client]:
    """A client of the server, which runs in a thread."""
    with bound_socket("127.0.0.1", 0) as bound:
        server = ApiServer(uvicorn.Config(build(chat), ws="none", lifespan="off", log_level="error"), "")
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{bound.getsockname()[1]}/v1", limits=limits, timeout=600
        ) as client:
            yield client
        server.should_exit = True
        thread.join()


def ask(client: httpx.Client, seed: int, tokens: int) -> int:
    """Tokens of one answer."""
    body = {"model": "coarse", "messages": [{"role": "user", "content": QUESTION}], "seed": seed, "max_tokens": tokens}
    return int(client.post("/chat/completions", json=body).json()["usage"]["completion_tokens"])


def rate(client: httpx.Client, clients: int, tokens: int, *, together: bool) -> float:
    """Tokens per second of so many requests."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients if together else 1) as pool:
        counts = list(pool.map(lambda seed: ask(client, seed, tokens), range(clients)))
    return sum(counts) / (time.perf_counter() - began)


def first_token_http(client: httpx.Client) -> float:
    """Seconds to the first text of a stream."""
    body = {"model": "fine", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 8}
    began = time.perf_counter()
    with client.stream("POST", "/chat/completions", json=body | {"stream": True}) as stream:
        for line in stream.iter_lines():
            if '"delta":{"content":' in line:
                return time.perf_counter() - began
    raise SystemExit("no text in the stream")


def first_token_engine(chat: Chat) -> float:
    """Seconds to the first text of the engine's own stream."""
    began = time.perf_counter()
    for reply in chat.stream(QUESTION, ["fine"], ChatSettings(max_tokens=8, temperature=0.0)):
        if reply.text:
            return time.perf_counter() - began
    raise SystemExit("no text in the stream")


@contextmanager
def app_served(chat: Chat) -> Iterator[Client]:
    """A client of the app's page."""
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    page = launch(build_page(chat), "benchmark", port=port, prevent_thread_lock=True)
    yield Client(page.local_url, verbose=False)
    page.close(verbose=False)


def first_token_app(client: Client) -> float:
    """Seconds to the first text of the app's answer."""
    began = time.perf_counter()
    for replies in client.submit(QUESTION, ["fine"], temperature=0.0, max_tokens=8, api_name="/compare"):
        if replies["fine"]["text"]:
            return time.perf_counter() - began
    raise SystemExit("no text from the app")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chat = Chat(options.run)
    http, engine, app, alone, together = [], [], [], [], []
    with served(chat) as client, app_served(chat) as page:
        rate(client, 2, options.tokens, together=True)  # first calls of everything
        for _ in range(options.rounds):
            alone.append(rate(client, options.clients, options.tokens, together=False))
            together.append(rate(client, options.clients, options.tokens, together=True))
            for _ in range(5):
                engine.append(first_token_engine(chat))
                http.append(first_token_http(client))
                app.append(first_token_app(page))
    result = {
        "benchmark": "serve",
        "command": f"python benchmarks/serve.py RUN --rounds {options.rounds} --clients {options.clients}"
        f" --tokens {options.tokens}",
        "unit": "ratios; tokens per second; seconds",
        "together_ratio": round(median(now / one for now, one in zip(together, alone, strict=True)), 2),
        "tokens_per_s_together": round(median(together)),
        "tokens_per_s_one_after_the_other": round(median(alone)),
        "first_token_ratio": round(median(http) / median(engine), 3),
        "first_token_to_app_ratio": round(median(http) / median(app), 3),
        "first_token_app_s": round(median(app), 4),
        "first_token_http_s": round(median(http), 4),
        "first_token_engine_s": round(median(engine), 4),
        "first_token_added_s": round(median(a - b for a, b in zip(http, engine, strict=True)), 4),
        "clients": options.clients,
        "model": Path(chat.config.model.base).name,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "threads": torch.get_num_threads(),
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
