"""Differences between the settings and inputs recorded at the start of a run and the current ones."""

from typing import Any

LOCATION_KEYS = ("base", "instruct", "base_revision", "instruct_revision")  # keys of `model`: where its files come from


def without_locations(identity: Any) -> Any:
    """An identity (`Config.identity`), of this version or an earlier one, without the locations of its models.

    The files themselves are compared (fingerprints.py): the same files in another folder are the same model.

    >>> without_places({"model": {"base": "/a", "stop": []}, "seed": 0})
    {'model': {'stop': []}, 'seed': 0}
    """
    if not (isinstance(identity, dict) and isinstance(identity.get("model"), dict)):
        return identity
    return {**identity, "model": {key: value for key, value in identity["model"].items() if key not in LOCATION_KEYS}}


def in_recorded_format(recorded: Any, now: Any) -> Any:
    """`now`, with fingerprints of large files in the format of an earlier version where `recorded` has that format.

    That format has no hash of blocks (fingerprints.py), which is then not compared.

    >>> in_recorded_form({"a": "9 bytes, ends x"}, {"a": "9 bytes, ends x, blocks y", "b": 1})
    {'a': '9 bytes, ends x', 'b': 1}
    """
    if isinstance(recorded, dict) and isinstance(now, dict):
        return {key: in_recorded_format(recorded.get(key), value) for key, value in now.items()}
    if isinstance(recorded, str) and isinstance(now, str) and " bytes, ends " in recorded:
        return recorded if now.startswith(f"{recorded}, blocks ") else now
    return now


def differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of every difference.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 4})
    [('a.b', 1, 3), ('c', 2, 4)]
    """
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        return [
            difference
            for name in names
            for difference in differences(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if before == after else [(key, before, after)]


def first_difference(before: Any, after: Any) -> tuple[str, Any, Any] | None:
    """The first of all differences; None if there is none.

    >>> first_difference({"coarse": {"lr": 0.1}}, {"coarse": {"lr": 0.2}})
    ('coarse.lr', 0.1, 0.2)
    """
    return next(iter(differences(before, after)), None)
