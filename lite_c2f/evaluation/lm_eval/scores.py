"""Tables of benchmarks: figures of tasks and groups, differences to the baseline, and their standard errors."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from lite_c2f.actors.answers import paired_difference

Measured = Mapping[str, Mapping[str, Any]]  # by task: what `run_task` returned for one actor

MIN_DOCUMENTS = 30  # with fewer documents, two standard errors are not meaningful


class Difference(NamedTuple):
    """Difference of an actor to the baseline."""

    value: float
    se: float | None
    paired: bool  # from differences document by document; otherwise as of independent samples


def difference(key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference | None:
    """Difference in one metric of one task; None if either side has no figure.

    Both actors answer the same documents, so the standard error is that of the mean of differences, document by
    document, if the metric is such a mean: sd(a_i - b_i) / sqrt(n); otherwise sqrt(se_a^2 + se_b^2).
    """
    left, right = ours["figures"].get(key), theirs["figures"].get(key)
    if left is None or right is None:
        return None
    our_values, their_values = ours["documents"].get(key, []), theirs["documents"].get(key, [])
    if len(our_values) == len(their_values) > 1 and is_mean(our_values, left) and is_mean(their_values, right):
        return Difference(left - right, paired_difference(our_values, their_values)[1], True)
    return Difference(
        left - right, independent_error(standard_error_of(key, ours), standard_error_of(key, theirs)), False
    )


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
    """Whether the figure is the mean of the documents' values."""
    return math.isclose(fmean(values), figure, rel_tol=1e-6, abs_tol=1e-9)


def independent_error(left: float | None, right: float | None) -> float | None:
    """Standard error of a difference of independent figures."""
    return None if left is None or right is None else math.hypot(left, right)


def standard_error_of(key: str, result: Mapping[str, Any]) -> float | None:
    """The standard error of a figure: of `acc,none` it is `acc_stderr,none`."""
    metric, _, chosen = key.partition(",")
    return result["figures"].get(f"{metric}_stderr,{chosen}")


def metric_names(result: Mapping[str, Any]) -> list[str]:
    """Names of the figures that are not standard errors."""
    return [key for key, value in result["figures"].items() if "_stderr," not in key and value is not None]


def metric_label(key: str) -> str:
    """`acc` for `acc,none`; with a filter, `exact_match strict-match`."""
    return key.removesuffix(",none").replace(",", " ")


def group_figures(group: Any, measured: Measured) -> dict[str, Any]:
    """A group's figures for one actor, by lm-eval's own rule. group: lm-eval's."""
    tasks = {
        name: {"sample_len": result["n"]}
        | {key: "N/A" if value is None else value for key, value in result["figures"].items()}
        for name, result in measured.items()
    }
    row = group.aggregate(tasks)
    figures = {key: None if value == "N/A" else float(value) for key, value in row.items() if "," in key}
    return {"figures": figures, "n": row.get("sample_len", 0)}


def task_table(measured: Mapping[str, Measured], baseline: str, higher: Mapping[str, Any]) -> dict[str, Any]:
    """{task: {"n", "metrics": {metric: {"higher_is_better", "actors": {actor: {value, se}}, "differences"}}}}.

    measured: by actor, then by task. higher: by task, then by metric, whether more is better.
    """
    table: dict[str, Any] = {}
    for task, first in measured[baseline].items():
        rows: dict[str, Any] = {}
        for key in metric_names(first):
            sides = {actor: tasks[task] for actor, tasks in measured.items()}
            gaps = {actor: difference(key, side, first) for actor, side in sides.items() if actor != baseline}
            rows[metric_label(key)] = metric_row(key, sides, gaps, higher.get(task, {}))
        table[task] = {"n": first["n"], "metrics": rows}
    return table


def group_table(
    group: Any, measured: Mapping[str, Measured], baseline: str, higher: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of `table_of` for a group."""
    members = [task.task_name for task in group.get_all_tasks()]
    sides = {actor: group_figures(group, tasks) for actor, tasks in measured.items()}
    first, rows = sides[baseline], {}
    by_size = {rule.metric: rule.weight_by_size for rule in group.aggregate_metric_list or []}
    for key in metric_names(first):
        with_metric = [name for name in members if key in measured[baseline][name]["figures"]]
        sizes = [measured[baseline][name]["n"] for name in with_metric]
        gaps: dict[str, Difference | None] = {}
        for actor, side in sides.items():
            if actor != baseline and side["figures"].get(key) is not None:
                differences = [difference(key, measured[actor][name], measured[baseline][name]) for name in with_metric]
                value = side["figures"][key] - first["figures"][key]
                gaps[actor] = group_difference(key, value, differences, sizes, by_size[key.partition(",")[0]])
        rows[metric_label(key)] = metric_row(key, sides, gaps, higher.get(members[0], {}))
    return {"n": first["n"], "metrics": rows}


def is_clear(gap: Difference) -> bool:
    """Whether it is above two standard errors; never for a standard error of 0 (too few documents, or all alike)."""
    return gap.se is not None and gap.se > 0 and abs(gap.value) > 2 * gap.se


def metric_row(
    key: str, sides: Measured, gaps: Mapping[str, Difference | None], higher: Mapping[str, Any]
) -> dict[str, Any]:
    """One metric of one task, JSON-ready."""
    return {
        "higher_is_better": higher.get(key.partition(",")[0]),
        "actors": {
            actor: {"value": side["figures"].get(key), "se": standard_error_of(key, side)}
            for actor, side in sides.items()
        },
        "differences": {
            actor: {**gap._asdict(), "clear": sides[actor]["n"] >= MIN_DOCUMENTS and is_clear(gap)}
            for actor, gap in gaps.items()
            if gap is not None
        },
    }
