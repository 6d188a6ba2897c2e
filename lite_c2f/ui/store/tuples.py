"""NamedTuples as JSON objects, and back with every type checked: a saved file may have been edited.

Not pydantic's TypeAdapter: for a NamedTuple it also takes a list, by position; strictly, it takes lists for tuples only
from JSON text; there it rounds whole numbers above 2**53 for a float, and refuses halves of surrogate pairs.
"""

import json
import math
import types
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_Kind = TypeVar("_Kind")
_NAMES = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false", types.NoneType: "null"}


def as_row(value: Any) -> Any:
    """A NamedTuple as a dict of its fields, other tuples as lists, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_row(field) for name, field in value._asdict().items()}
    if isinstance(value, dict):
        return {name: as_row(field) for name, field in value.items()}
    return [as_row(item) for item in value] if isinstance(value, tuple | list) else value


def from_row(kind: type[_Kind], row: Any) -> _Kind:
    """The NamedTuple `kind` from what `as_row` made of it. Raises ValueError naming the field that does not fit."""
    return cast(_Kind, _value(kind, row, kind.__name__.lower()))


def encoded(value: Any, indent: int | None = None) -> str:
    """JSON text of NamedTuples and other values. Half of a surrogate pair, which no file can hold, becomes "?".

    Raises ValueError for NaN and infinity: they are not JSON.
    """
    text = json.dumps(as_row(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def decoded(text: str) -> Any:
    """The value of JSON text. Raises ValueError for any other text, NaN, infinity and too deep nesting."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"'{text}' is not a finite number")
    return value


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hasattr(hint, "_fields"):
        return _tuple(hint, value, where)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # a type or null: no other union is in use
        return None if value is None else _value(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _value(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return float(value)
    if origin or type(value) is not hint or (hint is float and not math.isfinite(value)):
        expected = "a list" if origin is tuple else "an object" if origin is dict else _NAMES[hint]
        raise ValueError(f"{where} is not {expected}")
    return value


def _tuple(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    hints = get_type_hints(kind)
    for name in hints:
        if name not in value and name not in kind._field_defaults:
            raise ValueError(f"{where} has no '{name}'")
    for name in value:
        if name not in hints:
            raise ValueError(f"{where} has '{str(name)[:40]}', which is unknown")
    return kind(**{name: _value(hints[name], value[name], f"{where}.{name}") for name in hints if name in value})
