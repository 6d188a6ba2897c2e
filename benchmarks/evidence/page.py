"""docs/evidence.md and its plots, made from benchmarks/results/evidence.json alone. The text is in page.md."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import smollm_page
from figures import (
    IMPROVED,
    Interval,
    Jobs,
    by_seed,
    difference,
    final_reward,
    first_tokens,
    interval,
    learned_at,
    over_seeds,
    resampled,
    surely,
)
from worlds import WORLDS

from lite_c2f.runtime.svg import Panel, Series, document, figure

MODES = ("logistic", "linear", "start-half", "fixed-short", "fixed-long")
SIGNALS = ("logistic", "reward-only", "critic-only")
CRITICS = ("logistic", "critic-from-zero", "critic-shared")
MERGES = ("krm", "krm-dare", "krm-ties", "average", "slerp", "ties", "dare")
WIDTH, HEIGHT = 480, 300  # of a panel
TEMPLATE = Path(__file__).with_name("page.md")


def make_page(results: dict[str, Any], real: dict[str, Any], quantized: dict[str, Any], folder: Path) -> None:
    """Write evidence.md and its plots into a folder. real, quantized: SmolLM2, a section."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = results["jobs"]
    worlds = [world for world in ("toy", "harder") if any(job["world"] == world for job in jobs)]
    parts = {"minutes": f"{results['seconds'] / 60:.0f}", "machine": results["machine"]}
    parts["learned"] = f"{100 * IMPROVED:.0f}%"
    for world in worlds:
        parts |= {
            f"{world} about": WORLDS[world].about,
            f"{world} longest": str(WORLDS[world].longest),
            f"{world} budget": f"{WORLDS[world].budget:,}",
            f"{world} modes": arms_table(jobs, world, MODES),
            f"{world} signals": arms_table(jobs, world, SIGNALS),
            f"{world} critics": arms_table(jobs, world, CRITICS),
            f"{world} share": share_text(jobs, world),
            f"{world} saved": saved_text(jobs, world),
            f"{world} ratios": ratio_table(jobs, world),
            f"{world} merges": merge_table(jobs, world),
            f"{world} direct": direct_table(jobs, world),
            f"{world} accuracy": accuracy_text(jobs, world),
            f"{world} accuracy of rewards": over_seeds(
                by_seed(jobs, world, "reward", lambda job: job["accuracy"])
            ).text(),
            f"{world} same limits": same_limits(jobs, world),
            f"{world} rambling start": rambling_text(jobs, world, "logistic", lambda shares: shares[0]),
            f"{world} rambling peak": rambling_text(jobs, world, "logistic", max),
            f"{world} rambling end": rambling_text(jobs, world, "logistic", lambda shares: shares[-1]),
            f"{world} rambling long": rambling_text(jobs, world, "fixed-long", max),
            f"{world} rambling short": rambling_text(jobs, world, "fixed-short", lambda shares: shares[-1]),
            **{f"{world} speed {name}": speed_text(jobs, world, name) for name in ("start-half", "fixed-long")},
        }
    for name, svg in (("cm", plot_curves(jobs, worlds)), ("krm", plot_ratios(jobs, worlds))):
        (folder / f"evidence-{name}.svg").write_text(document(svg))
    parts["smollm2"] = filled(smollm_page.TEMPLATE.read_text().strip(), smollm_page.section_parts(real, quantized))
    (folder / "evidence.md").write_text(filled(TEMPLATE.read_text(), parts))


def filled(template: str, parts: dict[str, str]) -> str:
    """The template with each {{name}} replaced; KeyError for a name that no result gives."""
    return re.sub(r"\{\{(.+?)\}\}", lambda match: parts[match[1]], template)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marked(value: Interval, digits: int = 2) -> str:
    """A difference, in bold where its interval leaves out 0."""
    text = value.text(digits, sign=True)
    return f"**{text}**" if surely(value) else text


def final(key: str):
    return lambda job: job["final"][key]


def arms_table(jobs: Jobs, world: str, names: tuple[str, ...]) -> str:
    """PPO runs at the same token budget, against the first of them."""
    first = by_seed(jobs, world, names[0], final("reward"))
    rows = []
    for name in names:
        rewards = by_seed(jobs, world, name, final("reward"))
        rows.append(
            [
                name,
                over_seeds(rewards).text(),
                "" if name == names[0] else marked(difference(rewards, first)),
                over_seeds(by_seed(jobs, world, name, final("accuracy"))).text(),
                over_seeds(by_seed(jobs, world, name, final("tokens"))).text(0),
                over_seeds(by_seed(jobs, world, name, lambda job: job["tokens"] / 1000)).text(1),
                learned_text(jobs, world, name),
                over_seeds(by_seed(jobs, world, name, lambda job: job["updates"])).text(0),
                over_seeds(by_seed(jobs, world, name, lambda job: job["limit_last"])).text(0),
            ]
        )
    head = ["run", "final reward", f"against {names[0]}", "accuracy", "tokens per response"]
    return table([*head, "generated (1000 tokens)", "learned after (1000)", "updates", "last limit"], rows)


def pairs_with_long(jobs: Jobs, world: str, name: str) -> list[tuple[dict, dict]]:
    long = by_seed(jobs, world, "fixed-long", lambda job: job)
    return [(job, long[seed]) for seed, job in by_seed(jobs, world, name, lambda job: job).items()]


def learned_text(jobs: Jobs, world: str, name: str) -> str:
    """When a run had learned, where all seeds did; else how many did."""
    tokens_of = [learned_at(job, long) for job, long in pairs_with_long(jobs, world, name)]
    reached = [tokens / 1000 for tokens in tokens_of if tokens != float("inf")]
    if len(reached) == len(tokens_of):
        return interval(reached).text(1)
    return f"{len(reached)} of {len(tokens_of)} seeds"


def share_text(jobs: Jobs, world: str) -> str:
    """Tokens at which logistic first had fixed-long's final reward, as a share of all that fixed-long generated."""
    shares = [
        first_tokens(job, final_reward(long)) / long["tokens"] for job, long in pairs_with_long(jobs, world, "logistic")
    ]
    reached = [share for share in shares if share != float("inf")]
    if len(reached) < len(shares):
        return f"{len(reached)} of {len(shares)} seeds, those after {100 * fmean(reached):.0f}%" if reached else "never"
    share = interval(reached)
    return f"{100 * share.mean:.0f}% ± {100 * share.half:.0f}%"


def saved_text(jobs: Jobs, world: str) -> str:
    """Tokens until logistic has learned, as a share of those until fixed-long has."""
    pairs = pairs_with_long(jobs, world, "logistic")
    ratios = [learned_at(job, long) / learned_at(long, long) for job, long in pairs]
    if float("inf") in ratios:
        return f"more (in {ratios.count(float('inf'))} of {len(ratios)} seeds it never had)"
    share = interval(ratios)
    return f"{100 * share.mean:.0f}% ± {100 * share.half:.0f}%"


def rambling_text(jobs: Jobs, world: str, name: str, read: Callable[[list[float]], float]) -> str:
    """What `read` returns for the shares of rambling answers along a curve, as a percentage."""
    percentage = over_seeds(by_seed(jobs, world, name, lambda job: 100 * read(job["rambling"])))
    return f"{percentage.text(0)}%"


def same_limits(jobs: Jobs, world: str) -> str:
    """In how many seeds linear had the same limits as logistic in every update."""
    pairs = zip(*(by_seed(jobs, world, name, lambda job: job).values() for name in ("logistic", "linear")), strict=True)
    same = [[row[1] for row in one["training"]] == [row[1] for row in other["training"]] for one, other in pairs]
    return f"{sum(same)} of {len(same)}"


def merges_of(jobs: Jobs, world: str) -> Jobs:
    return [job for job in jobs if job["world"] == world and job["name"] == "merges"]


def ratio_table(jobs: Jobs, world: str) -> str:
    """The merger's ratios, on the prompts that ratios are chosen on."""
    merges = merges_of(jobs, world)
    rows = []
    for place, row in enumerate(merges[0]["krm"]["tried"]):
        at = [job["krm"]["tried"][place] for job in merges]
        columns = [interval([row[key] for row in at]) for key in ("reward", "accuracy", "eos", "tokens")]
        chosen = sum(job["krm"]["chosen"] == row["ratio"] for job in merges)
        texts = [column.text(digits) for column, digits in zip(columns, (2, 2, 2, 0), strict=True)]
        rows.append([f"{row['ratio']:g}", *texts, f"{chosen} of {len(merges)}"])
    return table(["ratio", "reward", "accuracy", "share that ended", "tokens", "chosen"], rows)


def merge_table(jobs: Jobs, world: str) -> str:
    """Ways to merge, each at the share that was chosen on other prompts."""
    merges = merges_of(jobs, world)
    krm = {job["seed"]: job["krm"]["final"]["reward"] for job in merges}
    rows = [final_row("instruct, untouched", [job["instruct"] for job in merges], krm, [job["seed"] for job in merges])]
    for method in MERGES:
        finals, seeds = [job[method]["final"] for job in merges], [job["seed"] for job in merges]
        shares = ", ".join(f"{share:g}" for share in sorted({job[method]["chosen"] for job in merges}))
        row = final_row(f"{method} (at {shares})", finals, krm, seeds)
        rows.append([row[0], row[1], "" if method == "krm" else row[2], *row[3:]])
    return table(["model", "reward", "against krm", "accuracy", "share that ended", "tokens"], rows)


def direct_table(jobs: Jobs, world: str) -> str:
    """The Fine Actor against the instruct model that was trained by PPO itself, with as many generated tokens."""
    merges = merges_of(jobs, world)
    krm = {job["seed"]: job["krm"]["final"]["reward"] for job in merges}
    seeds = [job["seed"] for job in merges]
    direct = by_seed(jobs, world, "instruct-ppo", lambda job: job["final"])
    fine = final_row("fine (krm)", [job["krm"]["final"] for job in merges], krm, seeds)
    fine[2] = ""
    rows = [fine, final_row("instruct after PPO", [direct[seed] for seed in seeds], krm, seeds)]
    for row, side in zip(rows, ("fine", "direct"), strict=True):
        row.append(interval([job["second_judge"][side] for job in merges]).text())
    head = ["model", "reward", "against fine", "accuracy", "share that ended", "tokens"]
    return table([*head, "reward by the other's judge"], rows)


def accuracy_text(jobs: Jobs, world: str) -> str:
    """Accuracy of the Fine Actor less that of the instruct model after PPO."""
    fine = {job["seed"]: job["krm"]["final"]["accuracy"] for job in merges_of(jobs, world)}
    return marked(difference(fine, by_seed(jobs, world, "instruct-ppo", final("accuracy"))))


def speed_text(jobs: Jobs, world: str, name: str) -> str:
    """Tokens until a run has learned, less those of logistic, in thousands; where both have in every seed."""
    long = by_seed(jobs, world, "fixed-long", lambda job: job)
    tokens_of = by_seed(jobs, world, name, lambda job: learned_at(job, long[job["seed"]]) / 1000)
    first = by_seed(jobs, world, "logistic", lambda job: learned_at(job, long[job["seed"]]) / 1000)
    if float("inf") in [*tokens_of.values(), *first.values()]:
        return "not in every seed"
    return marked(difference(tokens_of, first), 1)


def final_row(name: str, finals: list[dict], against: dict[int, float], seeds: list[int]) -> list[str]:
    rewards = {seed: row["reward"] for seed, row in zip(seeds, finals, strict=True)}
    others = [
        interval([row[key] for row in finals]).text(digits)
        for key, digits in (("accuracy", 2), ("eos", 2), ("tokens", 0))
    ]
    return [name, over_seeds(rewards).text(), marked(difference(rewards, against)), *others]


def plot_curves(jobs: Jobs, worlds: list[str]) -> str:
    """Held-out reward at the largest limit against generated tokens: means and 95% intervals over seeds."""
    panels = []
    for world in worlds:
        series = []
        for name in MODES:
            runs = [job for job in jobs if job["world"] == world and job["name"] == name]
            grid = [step * min(run["curve"][-1][0] for run in runs) / 60 for step in range(61)]
            columns = [interval(column) for column in zip(*(resampled(run, grid) for run in runs), strict=True)]
            points = [(tokens / 1000, column.mean) for tokens, column in zip(grid, columns, strict=True)]
            series.append(Series(name, points, [column.half for column in columns], band=True))
        panels.append(Panel(series, world, "generated tokens (1000)", "reward, held-out prompts"))
    return figure(panels, len(panels), WIDTH, HEIGHT, "Held-out reward against generated tokens")


def plot_ratios(jobs: Jobs, worlds: list[str]) -> str:
    """Reward and accuracy against the merger's ratio: means and 95% intervals over seeds."""
    panels = []
    for world in worlds:
        merges, series = merges_of(jobs, world), []
        for key in ("reward", "accuracy", "eos"):
            columns = [interval(values) for values in zip(*(tried(job, key) for job in merges), strict=True)]
            points = [
                (row["ratio"], column.mean) for row, column in zip(merges[0]["krm"]["tried"], columns, strict=True)
            ]
            label = "share that ended" if key == "eos" else key
            series.append(Series(label, points, [column.half for column in columns], dots=True))
        panels.append(Panel(series, world, "ratio"))
    return figure(panels, len(panels), WIDTH, HEIGHT, "Reward, accuracy and share that ended against the ratio")


def tried(job: dict[str, Any], key: str) -> list[float]:
    """One figure of the merger at each ratio."""
    return [row[key] for row in job["krm"]["tried"]]
