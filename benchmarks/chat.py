"""Three panes against one: the chat's engine on a finished run. Prints one JSON line.

    python benchmarks/chat.py runs/toy [--out FILE]

Side by side, in turn, `--rounds` times; medians. `three_panes_ratio` is the time of Coarse, Fine and Baseline together
over that of the slowest of them alone, greedy, at equal lengths (no answer may end before `--tokens`) and as they end
by themselves. `ratio_change_s` is the time to the first token after another ratio was set, `prefill_s` the same with
the ratio left alone. `visitors` are answered at once, each alone first.
"""

import argparse
import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from models import machine, report  # noqa: E402

from lite_c2f.chat import PANES, Chat, ChatSettings  # noqa: E402
from lite_c2f.runs.model_pair import TOY  # noqa: E402

LONG = "Explain in detail how a bicycle stays upright."
TOY_QUESTION = "Lea has 3 apples, first gets 7, second buys 5, third drops 8. How many now?"


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def endless(chat: Chat) -> None:
    """No answer ends before its limit: equal lengths, the worst case of several panes."""
    chat.actors._eos_ids = [[] for _ in chat.actors._eos_ids]
    chat.actors._stops = lambda on_base, texts: None


def panes(chat: Chat, question: str, tokens: int, rounds: int) -> dict[str, float]:
    settings = {"max_tokens": tokens, "temperature": 0.0}
    kinds = {pane: [pane] for pane in PANES} | {"three": list(PANES)}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, chosen in kinds.items():
            began = time.perf_counter()
            replies = chat.answer(question, chosen, **settings)
            times[name].append(time.perf_counter() - began)
            assert all(reply.finish != "error" for reply in replies.values()), replies
    return {name: median(values[1:]) for name, values in times.items()}


def first_token(chat: Chat, question: str, ratio: float) -> float:
    replies = chat.stream(question, ["fine"], ChatSettings(max_tokens=4, temperature=0.0, ratio=ratio))
    return next(replies).first_token_s or 0.0


def visitors(chat: Chat, question: str, count: int, tokens: int) -> dict[str, float]:
    waits: list[float] = []

    def ask(seed: int) -> None:
        replies = chat.answer(question, max_tokens=tokens, temperature=1.0, seed=seed)
        waits.append(max(reply.first_token_s or 0.0 for reply in replies.values()))
        tokens_of.append(sum(reply.tokens for reply in replies.values()))

    tokens_of: list[int] = []
    alone = seconds(lambda: [ask(seed) for seed in range(count)])
    alone_rate = sum(tokens_of) / alone
    waits.clear(), tokens_of.clear()
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(count)]
    together = seconds(lambda: ([thread.start() for thread in threads], [thread.join() for thread in threads]))
    return {
        "visitors": count,
        "tokens_per_s_one_after_the_other": round(alone_rate),
        "tokens_per_s_together": round(sum(tokens_of) / together),
        "longest_wait_for_a_first_token_s": round(max(waits), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--visitors", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chat = Chat(options.run)
    question = TOY_QUESTION if chat.config.model.base == TOY else LONG
    own = panes(chat, question, options.tokens, options.rounds)
    changes = [first_token(chat, question, 0.5 + 0.01 * step) for step in range(options.rounds)]
    same = [first_token(chat, question, 0.5) for _ in range(options.rounds)]
    crowd = visitors(chat, question, options.visitors, options.tokens)
    endless(chat)
    equal = panes(chat, question, options.tokens, options.rounds)
    result = {
        "benchmark": "chat",
        "command": f"python benchmarks/chat.py RUN --rounds {options.rounds}",
        "unit": "seconds; ratios of them",
        "three_panes_ratio_equal_lengths": round(equal["three"] / max(equal[pane] for pane in PANES), 3),
        "three_panes_ratio_own_lengths": round(own["three"] / max(own[pane] for pane in PANES), 3),
        "seconds_equal_lengths": {name: round(value, 4) for name, value in equal.items()},
        "seconds_own_lengths": {name: round(value, 4) for name, value in own.items()},
        "ratio_change_s": round(median(changes[1:]), 4),
        "prefill_s": round(median(same[1:]), 4),
        **crowd,
        "threads": torch.get_num_threads(),
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
