"""Tables of benchmarks: figures of tasks and groups, differences to the baseline, and their standard errors."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from lite_c2f.actors.answers import paired_difference

Measured = Mapping[str, Mapping[str, Any]]  # by task: what `run_task` returned for one actor

FEW = 30  # documents below which two standard errors say little


class Difference(NamedTuple):
    """Difference of an actor to the baseline."""

    value: float
    se: float | None
    paired: bool  # from differences document by document; otherwise as of independent samples


def difference(key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference | None:
    """Difference in one metric of one task; None where either side has no figure.

    Both actors answer the same documents, so the standard error is that of the mean of differences, document by
    document, wherever the metric is such a mean: sd(a_i - b_i) / sqrt(n). Where it is not, sqrt(se_a^2 + se_b^2).
    """
    left, right = ours["figures"].get(key), theirs["figures"].get(key)
    if left is None or right is None:
        return None
    each, others = ours["documents"].get(key, []), theirs["documents"].get(key, [])
    if len(each) == len(others) > 1 and is_mean(each, left) and is_mean(others, right):
        return Difference(left - right, paired_difference(each, others)[1], True)
    return Difference(left - right, independent_error(error_of(key, ours), error_of(key, theirs)), False)


def group_difference(
    key: str, value: float, members: Sequence[Difference | None], sizes: Sequence[int], by_size: bool
) -> Difference:
    """Difference in a metric of a group, whose tasks are independent strata of weight w: se^2 = sum of (w * se)^2."""
    weights = [size / sum(sizes) if by_size else 1 / len(sizes) for size in sizes]
    known = [(weight, member) for weight, member in zip(weights, members, strict=True) if member is not None]
    errors = [weight * member.se for weight, member in known if member.se is not None]
    whole = len(errors) == len(members)
    return Difference(
        value, math.hypot(*errors) if whole else None, whole and all(member.paired for _, member in known)
    )


def is_mean(values: Sequence[float], figure: float) -> bool:
    """Is the figure the mean of the documents' values?"""
    return math.isclose(fmean(values), figure, rel_tol=1e-6, abs_tol=1e-9)


def independent_error(left: float | None, right: float | None) -> float | None:
    """Standard error of a difference of independent figures."""
    return None if left is None or right is None else math.hypot(left, right)


def error_of(key: str, result: Mapping[str, Any]) -> float | None:
    """The standard error beside a figure: of `acc,none` it is `acc_stderr,none`."""
    metric, _, chosen = key.partition(",")
    return result["figures"].get(f"{metric}_stderr,{chosen}")


def metrics_of(result: Mapping[str, Any]) -> list[str]:
    """Names of the figures that are not standard errors."""
    return [key for key, value in result["figures"].items() if "_stderr," not in key and value is not None]


def shown_name(key: str) -> str:
    """`acc` for `acc,none`; where a filter chose the answer, `exact_match strict-match`."""
    return key.removesuffix(",none").replace(",", " ")


def grouped(group: Any, measured: Measured) -> dict[str, Any]:
    """A group's figures for one actor, by lm-eval's own rule. group: lm-eval's."""
    tasks = {
        name: {"sample_len": result["n"]}
        | {key: "N/A" if value is None else value for key, value in result["figures"].items()}
        for name, result in measured.items()
    }
    row = group.aggregate(tasks)
    figures = {key: None if value == "N/A" else float(value) for key, value in row.items() if "," in key}
    return {"figures": figures, "n": row.get("sample_len", 0)}


def table_of(measured: Mapping[str, Measured], baseline: str, higher: Mapping[str, Any]) -> dict[str, Any]:
    """{task: {"n", "metrics": {metric: {"higher_is_better", "actors": {actor: {value, se}}, "differences"}}}}.

    measured: by actor, then by task. higher: by task, then by metric, whether more is better.
    """
    table: dict[str, Any] = {}
    for task, first in measured[baseline].items():
        rows: dict[str, Any] = {}
        for key in metrics_of(first):
            sides = {actor: tasks[task] for actor, tasks in measured.items()}
            gaps = {actor: difference(key, side, first) for actor, side in sides.items() if actor != baseline}
            rows[shown_name(key)] = row_of(key, sides, gaps, higher.get(task, {}))
        table[task] = {"n": first["n"], "metrics": rows}
    return table


def group_table(
    group: Any, measured: Mapping[str, Measured], baseline: str, higher: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of `table_of` for a group."""
    members = [task.task_name for task in group.get_all_tasks()]
    sides = {actor: grouped(group, tasks) for actor, tasks in measured.items()}
    first, rows = sides[baseline], {}
    by_size = {rule.metric: rule.weight_by_size for rule in group.aggregate_metric_list or []}
    for key in metrics_of(first):
        with_metric = [name for name in members if key in measured[baseline][name]["figures"]]
        sizes = [measured[baseline][name]["n"] for name in with_metric]
        gaps: dict[str, Difference | None] = {}
        for actor, side in sides.items():
            if actor != baseline and side["figures"].get(key) is not None:
                differences = [difference(key, measured[actor][name], measured[baseline][name]) for name in with_metric]
                value = side["figures"][key] - first["figures"][key]
                gaps[actor] = group_difference(key, value, differences, sizes, by_size[key.partition(",")[0]])
        rows[shown_name(key)] = row_of(key, sides, gaps, higher.get(members[0], {}))
    return {"n": first["n"], "metrics": rows}


def is_clear(gap: Difference) -> bool:
    """Is it above two standard errors? A standard error of 0 means nothing: too few documents, or all alike."""
    return gap.se is not None and gap.se > 0 and abs(gap.value) > 2 * gap.se


def row_of(
    key: str, sides: Measured, gaps: Mapping[str, Difference | None], higher: Mapping[str, Any]
) -> dict[str, Any]:
    """One metric of one task, JSON-ready."""
    return {
        "higher_is_better": higher.get(key.partition(",")[0]),
        "actors": {
            actor: {"value": side["figures"].get(key), "se": error_of(key, side)} for actor, side in sides.items()
        },
        "differences": {
            actor: {**gap._asdict(), "clear": sides[actor]["n"] >= FEW and is_clear(gap)}
            for actor, gap in gaps.items()
            if gap is not None
        },
    }
