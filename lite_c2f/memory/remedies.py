"""Why a stage does not fit, and which setting to change to what: followed, the advice leads to a plan that fits."""

from collections.abc import Callable
from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.memory.sizes import GIBIBYTE, Bytes
from lite_c2f.memory.stages import Need, comparison, last_limit, reward, sampling, scoring, update

GROWS = ("activations", "KV cache", "log-prob tile")  # parts that depend on batches and lengths; the others are there
PROMPT = ("data.max_prompt_tokens",)
FEWEST = 8  # tokens of the shortest prompt and answer a configuration may ask for


class PlanRefusal(NamedTuple):
    """One reason why a run cannot be."""

    stage: str  # "reward" | "coarse" | "fine", or "" where it concerns all of them
    line: str


def refuse_context(config: Config, sizes: Bytes) -> PlanRefusal | None:
    """A row that is longer than the model's context."""
    if config.longest_row <= sizes.shape.context:
        return None
    return PlanRefusal(
        "",
        f"data.max_prompt_tokens and the longest answer make {config.longest_row} tokens; expected at most the model's "
        f"context of {sizes.shape.context}; lower coarse.length.max, fine.max_tokens, evaluation.max_tokens or "
        "data.max_answer_tokens",
    )


def refuse(config: Config, sizes: Bytes, need: Need, room: float) -> PlanRefusal | None:
    """A stage that takes more than there is room for, in bytes."""
    if need.total <= room:
        return None
    build, stage, answers = _about(config, need.stage)
    line = (
        f"{need.stage.replace('_', ' ')} needs {need.total / GIBIBYTE:.2f} GiB with {need.setting}={need.batch}; "
        f"expected at most {max(room, 0) / GIBIBYTE:.2f} GiB; {_remedy(config, sizes, need, room, build, answers)}"
    )
    return PlanRefusal(stage, line)


def _about(config: Config, stage: str) -> tuple[Callable[..., Need], str, tuple[str, ...]]:
    """How a stage's need is counted, the stage as a command names it, the settings that make its answers long."""
    if stage == "reward":
        return reward, "reward", ("data.max_answer_tokens",)
    if stage == "comparison":
        return comparison, "fine", ("evaluation.max_tokens", "fine.max_tokens")
    count = {"coarse_sampling": sampling, "coarse_scoring": scoring, "coarse_update": update}[stage]
    fixed = config.coarse.length.mode == "fixed"
    keys = ("coarse.length.start",) if fixed else ("coarse.length.max", "coarse.length.start")
    return lambda config, sizes, batch: count(config, sizes, batch, last_limit(config)), "coarse", keys


def _remedy(
    config: Config, sizes: Bytes, need: Need, room: float, build: Callable[..., Need], answers: tuple[str, ...]
) -> str:
    size = largest(need.batch, lambda batch: build(config, sizes, batch).total <= room, 0)
    if size:
        return f"set {need.setting} to {size} or auto"
    always = sum(value for part, value in need.parts.items() if part not in GROWS)
    if always <= room:
        for keys in (answers, PROMPT, (*answers, *PROMPT)):

            def short_enough(most: int, keys: tuple[str, ...] = keys) -> bool:
                return build(_lowered(config, keys, most), sizes, 1).total <= room

            fits = largest(max(_get(config, key) for key in keys), short_enough, 0)
            if fits >= FEWEST:
                named = [key for key in keys if _get(config, key) > fits]
                also = "" if need.batch == 1 else f" and set {need.setting} to auto"
                return f"lower {' and '.join(named)} to {fits}{also}"
    smaller = "use smaller models or a larger card" if need.stage == "comparison" else "use a smaller model or card"
    smaller = smaller.replace("or card", "or a larger card")
    return f"{always / GIBIBYTE:.2f} GiB are taken at any batch and length: {smaller}"


def _get(config: Config, key: str) -> int:
    value = config
    for name in key.split("."):
        value = getattr(value, name)
    return value  # type: ignore[return-value]


def _lowered(config: Config, keys: tuple[str, ...], most: int) -> Config:
    """The configuration with these settings at most so large."""
    for key in keys:
        first, *rest = key.split(".")
        section = getattr(config, first)
        if len(rest) == 2:  # coarse.length.*
            inner = getattr(section, rest[0])
            inner = inner.model_copy(update={rest[1]: min(getattr(inner, rest[1]), most)})
            section = section.model_copy(update={rest[0]: inner})
        else:
            section = section.model_copy(update={rest[0]: min(getattr(section, rest[0]), most)})
        config = config.model_copy(update={first: section})
    return config


def largest(most: int, fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number from 1 to `most` that fits, by bisection; `least` where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return max(low, least)
