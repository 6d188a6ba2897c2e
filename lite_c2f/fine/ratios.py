"""Ratios: the share of the residue that each weight gets."""

import math
import re
import reprlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lite_c2f.errors import ConfigError

Gradient = list[float]  # ratios at even distances over the layers, the first at the first layer, straight lines between
LayerRatios = str | Path | Sequence[tuple[str, float | Gradient]]


def is_number(value: Any) -> bool:
    """A finite int or float, no bool, that fits into a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_ratio(key: str, ratio: Any, allow_negative: bool) -> None:
    """Raise ConfigError, naming the key, unless the ratio is a finite number, and not negative unless allowed."""
    if not is_number(ratio) or (ratio < 0 and not allow_negative):
        expected = "a finite number" if allow_negative else "a finite number from 0 up"
        remedy = "add --allow-negative to subtract the residue" if is_number(ratio) else "write it like 0.75"
        raise ConfigError.because(f"'{key}' is {reprlib.repr(ratio)}", expected, remedy)


def _read_yaml(file: Path) -> Any:
    import yaml  # here: the command line reads this module before it knows what is asked of it

    from lite_c2f.config.yaml_files import YAML_ERRORS, DuplicateKeyError, UniqueKeyLoader

    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)  # a SafeLoader
    except OSError as error:
        got = f"cannot read '{file}': {error.strerror}"
        raise ConfigError.because(got, "a YAML file of ratios", "check the path") from None
    except DuplicateKeyError as error:
        raise ConfigError.because(f"'{file}' holds {error.problem}", "every pattern once", "remove one") from None
    except YAML_ERRORS:
        raise ConfigError.because(f"'{file}' is not YAML", "pattern: ratio lines", "correct the file") from None


def read_layer_ratios(layer_ratios: LayerRatios | None, allow_negative: bool) -> list[tuple[str, float | Gradient]]:
    """(pattern, ratio) pairs from pairs or from a YAML file: a mapping pattern -> ratio, or a list of pairs.

    A list of two or more numbers in place of a ratio is a gradient over the layers. Raises ConfigError naming the file
    or the pattern.
    """
    if layer_ratios is None:
        return []
    where, content = "layer_ratios", layer_ratios
    if isinstance(layer_ratios, str | Path):
        where = str(layer_ratios)
        content = _read_yaml(Path(layer_ratios))
    pairs = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ConfigError.because(f"'{where}' holds no ratios", "pattern: ratio lines", "write some or leave it out")
    checked: list[tuple[str, float | Gradient]] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigError.because(
                f"'{where}' holds {reprlib.repr(pair)}", "a pattern and a ratio", "write '*.mlp.*': 0.5"
            )
        pattern, value = pair
        gradient = isinstance(value, list | tuple)
        if gradient and len(value) < 2:
            got = f"'{where}: {pattern}' is {reprlib.repr(value)}"
            raise ConfigError.because(got, "a ratio, or two or more for a gradient", "write '*.mlp.*': [0.2, 1.0]")
        for number in value if gradient else [value]:
            check_ratio(f"{where}: {pattern}", number, allow_negative)
        checked.append((pattern, [float(number) for number in value] if gradient else float(value)))
    return checked


def choose_ratios(
    names: Sequence[str], ratio: float, patterns: Sequence[tuple[str, float | Gradient]]
) -> dict[str, float]:
    """The ratio of every weight: of the first pattern that fits its name, `ratio` where none does.

    Raises ConfigError for a pattern that fits no weight, and for a gradient on a weight without a layer's number.

    >>> choose_ratios(["m.layers.0.w", "m.layers.1.w", "m.layers.2.w"], 1.0, [("*", [0.0, 1.0])])
    {'m.layers.0.w': 0.0, 'm.layers.1.w': 0.5, 'm.layers.2.w': 1.0}
    """
    for pattern, _ in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError.because(
                f"'layer_ratios' pattern '{pattern}' fits no weight of the adapter",
                f"a pattern for names like '{names[0]}'",
                "correct or remove it",
            )
    last = max((layer for name in names if (layer := layer_of(name)) is not None), default=0)
    chosen = {}
    for name in names:
        match = next(((pattern, value) for pattern, value in patterns if fnmatchcase(name, pattern)), None)
        if match is None:
            chosen[name] = float(ratio)
        elif not isinstance(match[1], list):
            chosen[name] = float(match[1])
        else:
            layer = layer_of(name)
            if layer is None:
                raise ConfigError.because(
                    f"'layer_ratios' pattern '{match[0]}' is a gradient and fits '{name}'",
                    "weights of numbered layers",
                    "put a pattern with one ratio for it before this one",
                )
            chosen[name] = interpolate(match[1], layer / max(last, 1))
    return chosen


def layer_of(name: str) -> int | None:
    """The number of the layer a weight belongs to; None for embeddings, head and last norm."""
    match = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    return int(match[1]) if match else None


def interpolate(gradient: Gradient, place: float) -> float:
    """The value at `place` (0 the first layer, 1 the last) of straight lines between evenly spaced points."""
    position = place * (len(gradient) - 1)
    left = min(int(position), len(gradient) - 2)
    return gradient[left] + (position - left) * (gradient[left + 1] - gradient[left])
