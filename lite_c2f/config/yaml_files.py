"""YAML of configurations: files of sections, and `key=value` overrides."""

from pathlib import Path
from typing import Any

import yaml

from lite_c2f.errors import ConfigError


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping of a YAML file has a key twice; `problem` names it, `problem_mark` its position."""


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that raises DuplicateKeyError for a repeated key, whose first value would be lost silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise DuplicateKeyError(problem=f"{key.value!r} twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


# What yaml raises: its own errors, those of a value that does not fit its tag (`!!int x`), and those of deep nesting.
YAML_ERRORS = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError naming the file and the line."""
    if not path.is_file():
        raise ConfigError.because(f"no config file at '{path}'", "a YAML file", "try configs/toy.yaml")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError.because(f"cannot read '{path}': {error.strerror}", "a YAML file", "check it") from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else _problem(error)
        raise ConfigError.because(f"{where}: not YAML ({what})", "`key: value` lines", "fix that line") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError.because(f"{path}: a {type(values).__name__}", "a mapping of sections", "see configs/toy.yaml")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in a mapping of mappings. Raises ConfigError for an override of another form."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError.because(f"override '{override}'", "key=value", "write e.g. coarse.updates=10")
    try:
        value = yaml.load(text, Loader=UniqueKeyLoader) if text else ""  # a SafeLoader
        if isinstance(value, str) and value == text.strip():  # it was not quoted
            value = _number_or_text(value)
    except YAML_ERRORS:
        raise ConfigError.because(f"override '{override}'", "a YAML value after =", "quote the value") from None
    *parents, last = key.split(".")
    node = values
    for depth, parent in enumerate(parents, 1):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError.because(
                f"override '{override}': {'.'.join(parents[:depth])} is a value", "a section", "check the key"
            )
    node[last] = value


def _number_or_text(text: str) -> float | str:
    """The number that a text means: YAML 1.1 parses 2e-5 as text."""
    try:
        return float(text)
    except ValueError:
        return text


def _problem(error: Exception) -> str:
    """What is wrong with a YAML text, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(getattr(error, "problem", None) or error).split())[:160]
