"""Is it still the same run? Settings and inputs, compared with what was written down when it began."""

from typing import Any


def first_difference(before: Any, after: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, value before, value now) of the first difference; None where there is none.

    >>> first_difference({"coarse": {"lr": 0.1}}, {"coarse": {"lr": 0.2}})
    ('coarse.lr', 0.1, 0.2)
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            found = first_difference(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if before == after else (key, before, after)
