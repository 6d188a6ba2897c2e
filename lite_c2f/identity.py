"""Is it still the same run? Settings and inputs, compared with what was written down when it began."""

from typing import Any


def differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of every difference.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 4})
    [('a.b', 1, 3), ('c', 2, 4)]
    """
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        return [
            found
            for name in names
            for found in differences(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if before == after else [(key, before, after)]


def first_difference(before: Any, after: Any) -> tuple[str, Any, Any] | None:
    """The first of all differences; None where there is none.

    >>> first_difference({"coarse": {"lr": 0.1}}, {"coarse": {"lr": 0.2}})
    ('coarse.lr', 0.1, 0.2)
    """
    return next(iter(differences(before, after)), None)
