"""Differences and their standard errors, worked out by hand."""

import math

import pytest
from lm_eval.api.group import AggMetricConfig, Group

from lite_c2f.errors import C2FError
from lite_c2f.evaluation.actor_names import check_actors, check_baseline, ratio_of, source_of
from lite_c2f.evaluation.lm_eval.scores import (
    Difference,
    difference,
    group_difference,
    group_table,
    metric_label,
    task_table,
)


def measured(values, se=0.1, **more):
    return {
        "figures": {"acc,none": sum(values) / len(values), "acc_stderr,none": se},
        "documents": {"acc,none": [float(value) for value in values]},
        "n": len(values),
        **more,
    }


def test_pairs_of_documents():
    """0, 1, 1, 0 of differences: mean 1/2, spread sqrt(4 * 1/4 / 3), standard error sqrt(1/3) / 2."""
    found = difference("acc,none", measured([1, 1, 1, 0]), measured([1, 0, 0, 0]))
    assert found.value == 0.5 and found.paired and found.se == pytest.approx(math.sqrt(1 / 3) / 2)
    other = difference("acc,none", measured([1, 0, 0, 0]), measured([1, 1, 1, 0]))
    assert other.value == -0.5 and other.se == found.se


@pytest.mark.parametrize(
    "other",
    [
        {"figures": {"acc,none": 0.25, "acc_stderr,none": 0.4}, "documents": {}, "n": 4},
        {"figures": {"acc,none": 0.25, "acc_stderr,none": 0.4}, "documents": {"acc,none": [1.0, 0.0]}, "n": 4},
        {"figures": {"acc,none": 0.3, "acc_stderr,none": 0.4}, "documents": {"acc,none": [1.0, 0, 0, 0]}, "n": 4},
    ],
)
def test_without_pairs_errors_add_as_squares(other):
    """No documents, other documents, or a metric that is no mean of them: sqrt(0.3^2 + 0.4^2) = 0.5."""
    found = difference("acc,none", measured([1, 1, 1, 0], se=0.3), other)
    assert not found.paired and found.se == pytest.approx(0.5)
    assert difference("f1,none", measured([1, 0]), measured([1, 0])) is None
    without = measured([1, 1, 1, 0]) | {"documents": {}}
    without["figures"]["acc_stderr,none"] = None
    assert difference("acc,none", without, other).se is None


def test_a_group_weighs_its_tasks():
    members = [Difference(0.2, 0.1, True), Difference(0.0, 0.2, True)]
    by_size = group_difference("acc,none", 0.15, members, [30, 10], True)
    assert by_size == Difference(0.15, pytest.approx(math.hypot(0.075, 0.05)), True)
    alike = group_difference("acc,none", 0.1, members, [30, 10], False)
    assert alike.se == pytest.approx(math.hypot(0.05, 0.1))
    mixed = group_difference("acc,none", 0.1, [members[0], Difference(0, 0.2, False)], [30, 10], True)
    assert not mixed.paired and mixed.se == by_size.se
    assert group_difference("acc,none", 0.1, [members[0], Difference(0, None, False)], [1, 1], True).se is None


class Leaf:
    def __init__(self, name):
        self.task_name = name


def test_tables_of_tasks_and_groups():
    """Sizes 4 and 2: (4 * 3/4 + 2 * 1/2) / 6 = 2/3 of fine, (4 * 1/4 + 2 * 1/2) / 6 = 1/3 of instruct."""
    figures = {
        "fine": {"a": measured([1, 1, 1, 0]), "b": measured([1, 0])},
        "instruct": {"a": measured([1, 0, 0, 0]), "b": measured([1, 0])},
    }
    found = task_table(figures, "instruct", {"a": {"acc": True}})
    row = found["a"]["metrics"]["acc"]
    assert found["a"]["n"] == 4 and row["higher_is_better"] is True and set(row["differences"]) == {"fine"}
    assert row["actors"]["fine"] == {"value": 0.75, "se": 0.1} and row["differences"]["fine"]["clear"] is False
    assert found["b"]["metrics"]["acc"]["differences"]["fine"] == {
        "value": 0.0, "se": 0.0, "paired": True, "clear": False,
    }  # fmt: skip
    group = Group("both", aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)])
    group._children = {name: Leaf(name) for name in ("a", "b")}
    group.get_all_tasks = lambda recursive=True: list(group._children.values())
    whole = group_table(group, figures, "instruct", {"a": {"acc": True}})
    row = whole["metrics"]["acc"]
    assert whole["n"] == 6 and row["higher_is_better"] is True
    assert row["actors"]["fine"]["value"] == pytest.approx(2 / 3)
    assert row["actors"]["instruct"]["value"] == pytest.approx(1 / 3)
    gap = row["differences"]["fine"]
    assert gap["value"] == pytest.approx(1 / 3) and gap["paired"]
    assert gap["se"] == pytest.approx(4 / 6 * math.sqrt(1 / 3) / 2)


def test_clear_is_above_two_standard_errors():
    """Of 40 documents 8 gained: mean 0.2, standard error sqrt(0.2 * 0.8 / 39) = 0.064. Of 40, 1 gained: 0.025 both.

    Of 20, 8 gained: far above, but few. All of 40 gained: an error of 0, which tells nothing.
    """
    for gained, count, clear in ((8, 40, True), (1, 40, False), (8, 20, False), (40, 40, False)):
        sides = {
            "fine": {"a": measured([1] * gained + [0] * (count - gained))},
            "instruct": {"a": measured([0] * count)},
        }
        assert task_table(sides, "instruct", {})["a"]["metrics"]["acc"]["differences"]["fine"]["clear"] is clear


def test_names_of_metrics():
    assert [metric_label(key) for key in ("acc,none", "exact_match,strict-match")] == [
        "acc",
        "exact_match strict-match",
    ]


@pytest.mark.parametrize(
    ("names", "baseline", "words"),
    [
        (["best", "instruct"], "instruct", "actor 'best'"),
        (["fine@x", "instruct"], "instruct", "actor 'fine@x'"),
        (["fine@nan", "instruct"], "instruct", "actor 'fine@nan'"),
        (["fine@-1", "instruct"], "instruct", "actor 'fine@-1'"),
        (["fine@0_5", "instruct"], "instruct", "actor 'fine@0_5'"),
        (["coarse@1", "instruct"], "instruct", "actor 'coarse@1'"),
        (["fine", "fine"], "fine", "different actors"),
        (["fine", "coarse"], "instruct", "--baseline instruct with --actors fine,coarse"),
        ([], "instruct", "different actors"),
    ],
)
def test_actors_that_are_none(names, baseline, words):
    with pytest.raises(C2FError, match=words):
        check_baseline(baseline, check_actors(names, ratios=True))


def test_actors():
    names = check_actors([" fine", "fine@0.5", "coarse", "base"], ratios=True)
    assert [(source_of(name), ratio_of(name)) for name in names] == [
        ("fine", 0.0), ("instruct", 0.5), ("base", 0.0), ("base", 0.0),
    ]  # fmt: skip
