"""Loading a configuration: YAML and dotted `key=value` overrides become one `Config`.

Unknown keys raise an error that names the nearest known one; settings saved by an earlier version get defaults.
"""

import copy
import difflib
import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from lite_c2f.config.data import Columns, Section, Source
from lite_c2f.config.rewards import RewardSource, Watched
from lite_c2f.config.settings import Config
from lite_c2f.config.yaml_files import apply_override, read_mapping
from lite_c2f.errors import ConfigError, EmptyConfigError


def load_config(source: str | Path | dict[str, Any] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration and apply dotted overrides.

    source: a YAML file, a mapping, or None for the defaults. overrides: `key=value`, the value in YAML.
    Raises ConfigError naming the file and the key, EmptyConfigError for a file that sets nothing.

    >>> load_config("configs/toy.yaml", ["coarse.updates=10"]).coarse.updates
    10
    """
    origin = str(source) if isinstance(source, str | Path) else "config"
    values = read_mapping(Path(source)) if isinstance(source, str | Path) else copy.deepcopy(source or {})
    empty = isinstance(source, str | Path) and _sets_nothing(values)
    for override in overrides:
        apply_override(values, override)
    _check_keys(Config, values, origin, "")
    if empty:
        raise _empty_error(Path(str(source)))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_validation_message(error)}") from None


def _sets_nothing(values: Any) -> bool:
    return isinstance(values, dict) and all(map(_sets_nothing, values.values()))


def _empty_error(file: Path) -> EmptyConfigError:
    got, run = f"'{file}' sets nothing", file.parent
    if file.name == "config.yaml" and (run / "run.json").is_file():
        remedy = f"give the file that the run was made from: `lite-c2f train CONFIG --run-dir {run}`"
        return EmptyConfigError.because(got, "the configuration of the run", remedy)
    remedy = "see configs/toy.yaml, or leave the file out and write `lite-c2f train KEY=VALUE ...`"
    return EmptyConfigError.because(got, "sections such as model and data", remedy)


def with_defaults(before: Any, now: Any) -> Any:
    """Settings saved by an earlier version, with defaults for the settings that it did not have.

    before, now: mappings of sections as of `Config.identity`; only keys of `now` are added.
    """

    def filled(saved: Any, wanted_keys: Any, defaults: Any) -> Any:
        if not (isinstance(saved, dict) and isinstance(wanted_keys, dict) and isinstance(defaults, dict)):
            return saved
        missing = {key: defaults[key] for key in wanted_keys if key in defaults and key not in saved}
        return missing | {key: filled(value, wanted_keys.get(key), defaults.get(key)) for key, value in saved.items()}

    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before
    defaults = Config().model_dump(mode="json")
    return {key: filled(value, now.get(key), defaults.get(key)) for key, value in before.items()}


class DocumentedKey(NamedTuple):
    """A key of the configuration file, with its default and its meaning as texts."""

    key: str
    default: str
    meaning: str


def documented_keys(key: str = "") -> list[DocumentedKey]:
    """All keys of the configuration, or those of a section (`coarse.length`), or one; with defaults and meanings.

    Raises ConfigError for an unknown key, naming the nearest.
    """
    all_keys = list(_section_keys(Config, ""))
    chosen = [row for row in all_keys if not key or row.key == key or row.key.startswith(f"{key}.")]
    if not chosen:
        raise ConfigError.because(
            f"key '{key}'", _nearest(key, [row.key for row in all_keys]), "correct or leave it out"
        )
    return chosen


def _section_keys(section: Any, prefix: str) -> Iterator[DocumentedKey]:
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None and field.annotation is inner:  # not a list of sections nor an optional one
            yield from _section_keys(inner, f"{prefix}{name}.")
            continue
        value = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else json.dumps(_as_json(value), ensure_ascii=False)
        yield DocumentedKey(prefix + name, default, field.description or "")


def _as_json(value: Any) -> Any:
    """A default in JSON's types."""
    return json.loads(TypeAdapter(Any).dump_json(value))


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration file."""
    return Config.model_json_schema()


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((section for arg in get_args(annotation) if (section := _section_of(arg))), None)
    return None


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or any(_takes_bool(inner) for inner in get_args(annotation))


def _known_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if inner := _section_of(field.annotation):
            keys += _known_keys(inner, f"{prefix}{name}.")
    return keys


def _check_keys(section: type[Section], values: Any, origin: str, prefix: str) -> None:
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError.because(
            f"{origin}: {prefix.rstrip('.')} is a {kind}", "a mapping", "indent its keys below it"
        )
    for key, value in values.items():
        field = section.model_fields.get(str(key))
        if field is None:
            expected = _nearest(f"{prefix}{key}", [prefix + name for name in section.model_fields])
            raise ConfigError.because(f"{origin}: unknown key '{prefix}{key}'", expected, "correct or remove it")
        if isinstance(value, bool) and not _takes_bool(field.annotation):  # pydantic would read true as 1
            raise ConfigError.because(f"{origin}: {prefix}{key}={value}", "a number or a text", "quote a word like off")
        inner = _section_of(field.annotation)
        if inner is not None and value is not None:
            _check_keys(inner, value, origin, f"{prefix}{key}.")


def _nearest(key: str, siblings: list[str]) -> str:
    """The expected key, for a message: a sibling with a similar name, or the same name in another section."""
    known_keys = _known_keys(Config)
    name = _key_name(key)
    similar = difflib.get_close_matches(name, [_key_name(sibling) for sibling in siblings], 1, 0.6)
    nearest = (
        [sibling for sibling in siblings if _key_name(sibling) in similar]
        or [known for known in known_keys if _key_name(known) == name]
        or difflib.get_close_matches(key, known_keys, 1)
    )
    return f"'{nearest[0]}' (did you mean that?)" if nearest else "one of " + ", ".join(siblings)


def _key_name(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _validation_message(error: ValidationError) -> str:
    first = error.errors()[0]
    key = _dotted_key(first["loc"])
    if first["type"] == "extra_forbidden":  # in a list, which `_check_keys` does not check
        part: type[BaseModel] = Columns if "columns" in first["loc"] else Source
        if first["loc"][:2] in (("coarse", "rewards"), ("coarse", "watch")):
            part = RewardSource if "rewards" in first["loc"] else Watched
        names = list(part.model_fields)
        return f"unknown key '{key}'; expected {_nearest(_key_name(key), names)}; correct or remove it"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    messages = [other["msg"] for other in error.errors() if _dotted_key(other["loc"]) == key]
    message = " or ".join(text[0].lower() + text[1:] for text in dict.fromkeys(messages))
    more = len(error.errors()) - 1
    return f"{key}={first['input']!r}: {message}; correct the value" + (
        f" (and {more} more)" if more and len({e["loc"][:2] for e in error.errors()}) > 1 else ""
    )


def _dotted_key(location: tuple[int | str, ...]) -> str:
    """The dotted key, without the parts that pydantic adds for unions and validators."""
    inner = ("function-", "tuple[", "literal[", "constrained-")
    return ".".join(str(part) for part in location if not str(part).startswith(inner))
