"""Section of docs/evidence.md about SmolLM2, from benchmarks/results/evidence_smollm2.json. Its text: smollm.md."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from figures import Jobs, by_seed

from lite_c2f.actors.answers import paired_difference
from lite_c2f.evaluation.wins import paired_wins

TEMPLATE = Path(__file__).with_name("smollm.md")
LOGISTIC = "logistic"
SHIPPED = "logistic at 1"  # `fine.ratio` of configs/smollm2.yaml
FIGURES = (("reward", 2), ("tokens", 0), ("repeated_4gram", 2), ("eos", 2), ("accuracy", 2), ("analytic", 2))
HEAD = ["reward", "tokens", "repeated 4-grams", "ended", "accuracy", "analytic"]
Actor = dict[str, Any]


def section_parts(results: dict[str, Any], quantized: dict[str, Any]) -> dict[str, str]:
    """{placeholder of smollm.md: its text}. quantized: results of the same with `model.quantization=nf4`."""
    jobs: Jobs = results["jobs"]
    actors, nf4 = actors_of(jobs), actors_of(quantized["jobs"])
    return {
        "smollm2 seeds": seeds_text(by_seed(jobs, "smollm2", LOGISTIC, lambda job: 0)),
        "smollm2 hours": f"{results['seconds'] / 3600:.1f}",
        "smollm2 reward model": spread(by_seed(jobs, "smollm2", "reward", lambda job: job["accuracy"]), 3),
        "smollm2 actors": actor_table(actors, ["base", "instruct", "coarse", "fine"]),
        "smollm2 differences": difference_table(actors),
        "smollm2 arms": arms_table(jobs, actors, trained_in(actors)),
        "smollm2 ratios": actor_table(actors, ["instruct", *ratios_in(actors)]),
        "smollm2 curve": curve_table(jobs),
        "smollm2 updates": updates_table(jobs),
        "smollm2 nf4 reward model": spread(
            by_seed(quantized["jobs"], "smollm2", "reward", lambda job: job["accuracy"]), 3
        ),
        "smollm2 nf4 actors": actor_table(nf4, ["base", "instruct", "coarse", "fine"]),
        "smollm2 nf4 differences": difference_table(nf4),
        "smollm2 nf4 arms": arms_table(quantized["jobs"], nf4, trained_in(nf4)),
        "smollm2 nf4 ratios": actor_table(nf4, ["instruct", *ratios_in(nf4)]),
    }


def trained_in(actors: dict[str, Any]) -> list[str]:
    """Runs that trained a Coarse Actor, in the order of the table."""
    kinds = ("logistic", "half-lr", "kl-0.1", "lambda-0.95", "start-64", "step-64", "tau-0.3", "reward-only")
    kinds += ("critic-only", "fixed-long", "double-lr", "critic-from-zero", "lambda-1", "dpo", "earlier")
    return [name for name in (*kinds, *(f"earlier-{kind}" for kind in kinds)) if name in actors]


def ratios_in(actors: dict[str, Any]) -> list[str]:
    """Fine Actors: of `logistic`, of `earlier`, then of `dpo`."""
    return [name for kind in ("logistic at ", "earlier at ", "dpo at ") for name in actors if name.startswith(kind)]


def actors_of(jobs: Jobs) -> dict[str, dict[int, Actor]]:
    """{name: {seed: figures}}: base, instruct, Coarse and Fine Actors by job; "coarse", "fine": shipped."""
    actors: dict[str, dict[int, Actor]] = {
        name: by_seed(jobs, "smollm2", "actors", lambda job, name=name: job[name]) for name in ("base", "instruct")
    }
    for job in jobs:
        for kind in ("coarse", "fine"):
            if kind in job:
                actors.setdefault(job["name"], {})[job["seed"]] = job[kind]
    return actors | {"coarse": actors[LOGISTIC], "fine": actors[SHIPPED]}


def spread(values: dict[int, float], digits: int) -> str:
    """Mean over the seeds, and their lowest and highest: three are too few for an interval.

    >>> spread({0: 1.0, 1: 2.0, 2: 6.0}, 0)
    '3 (1 to 6)'
    """
    low, high = min(values.values()), max(values.values())
    mean = f"{fmean(values.values()):.{digits}f}"
    return f"{mean} ({low:.{digits}f} to {high:.{digits}f})" if len(values) > 1 else mean


def seeds_text(values: dict[int, Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def columns(by_seed_figures: dict[int, Actor]) -> list[str]:
    return [spread({seed: row[key] for seed, row in by_seed_figures.items()}, digits) for key, digits in FIGURES]


def actor_table(actors: dict[str, dict[int, Actor]], names: Sequence[str]) -> str:
    from page import table

    return table(["actor", *HEAD], [[name, *columns(actors[name])] for name in names])


def difference_table(actors: dict[str, dict[int, Actor]]) -> str:
    """Paired differences of each seed, with standard errors over the questions, and win rates at equal length."""
    from page import table

    rows = []
    for left, right in DIFFERENCES:
        for seed in sorted(set(actors.get(left, {})) & set(actors[right])):
            one, other = actors[left][seed], actors[right][seed]
            wins = paired_wins(one["rewards"], other["rewards"], one["lengths"], other["lengths"])
            cells = [paired(one[key], other[key], digits) for key, digits in PAIRED]
            rows.append([f"{left} - {right}", str(seed), *cells, f"{wins.controlled:.2f} ± {wins.se:.2f}"])
    return table(
        ["difference", "seed", "reward", "tokens", "repeats", "ended", "analytic", "wins at equal length"], rows
    )


DIFFERENCES = (
    ("coarse", "base"),
    ("fine", "instruct"),
    ("fine", "coarse"),
    ("lambda-0.95", "base"),
    ("earlier", "base"),
    ("earlier at 1", "instruct"),
    ("dpo", "base"),
    ("dpo at 1", "instruct"),
    ("dpo", "coarse"),
)
PAIRED = (("rewards", 2), ("lengths", 0), ("repeats", 2), ("ended", 2), ("reasoned", 2))


def paired(left: Sequence[float], right: Sequence[float], digits: int) -> str:
    mean, error = paired_difference(left, right)
    return f"{mean:+.{digits}f} ± {error:.{digits}f}"


def arms_table(jobs: Jobs, actors: dict[str, dict[int, Actor]], names: Sequence[str]) -> str:
    """Coarse Actors of all arms, against the first, seed by seed."""
    from page import table

    rows = []
    for name in names:
        both = sorted(set(actors[name]) & set(actors[LOGISTIC]))
        gains = {
            seed: paired_difference(actors[name][seed]["rewards"], actors[LOGISTIC][seed]["rewards"])[0]
            for seed in both
        }
        of_job: Callable[[str], dict[int, float]] = lambda key, name=name: by_seed(  # noqa: E731
            [job for job in jobs if key in job], "smollm2", name, lambda job: job[key]
        )
        counts = [spread(values, 0) if (values := of_job(key)) else "" for key in ("tokens", "updates", "limit_last")]
        against = "" if name == LOGISTIC else ", ".join(f"{gain:+.2f}" for gain in gains.values())
        cells = columns(actors[name])
        rows.append([name, seeds_text(actors[name]), cells[0], against, *cells[1:4], cells[5], *counts])
    head = ["run", "seeds", "reward", "against logistic, by seed", *HEAD[1:4], HEAD[5]]
    return table([*head, "generated tokens", "updates", "last limit"], rows)


def curve_table(jobs: Jobs) -> str:
    """Held-out answers of `logistic` while it trained."""
    from page import table

    runs = by_seed(jobs, "smollm2", LOGISTIC, lambda job: {point[0]: point[1:] for point in job["curve"]})
    steps = sorted(set.intersection(*(set(run) for run in runs.values())))
    rows = [
        [
            str(step),
            *(
                spread({seed: run[step][place] for seed, run in runs.items()}, digits)
                for place, digits in enumerate((2, 0, 2, 2))
            ),
        ]
        for step in steps
    ]
    return table(["update", "reward", "tokens", "ended", "analytic"], rows)


def updates_table(jobs: Jobs) -> str:
    """Limit, share at the limit, tokens and KL of the first seed's updates."""
    from page import table

    job = next(job for job in jobs if job["name"] == LOGISTIC)
    rows = [
        [str(step), f"{reward:+.2f}", f"{limit:.0f}", f"{hit:.2f}", f"{tokens:.0f}", f"{kl:.1f}"]
        for step, (reward, limit, hit, tokens, kl, _) in enumerate(job["training"], 1)
    ]
    return table(["update", "reward", "limit", "at the limit", "tokens", "KL, nats per response"], rows)
