"""Refusals of a plan: the stage that does not fit, and the setting to change.

Following the advice always leads to a plan that fits.
"""

from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError
from lite_c2f.memory.sizes import GIBIBYTE, Bytes
from lite_c2f.memory.stages import STAGES, Need, answer_settings, largest_fitting, lengths_of

VARIABLE_PARTS = ("activations", "KV cache", "log-prob tile")  # parts of a need that depend on batches and lengths
PROMPT_KEY = "data.max_prompt_tokens"
MIN_TOKENS = 8  # smallest allowed prompt and answer length, in tokens


class PlanRefusal(NamedTuple):
    """One reason why a run does not fit."""

    stage: str  # "reward" | "coarse" | "fine", or "" if it concerns all of them
    message: str


def context_refusal(config: Config, context: int, whose: str) -> tuple[str, str, str] | None:
    """(got, expected, do) if the longest row exceeds a context in tokens; None if it fits. whose: for the text."""
    if config.longest_row <= context:
        return None
    return (
        f"{PROMPT_KEY} and the longest answer make {config.longest_row} tokens",
        f"at most the {whose} of {context}",
        "lower coarse.length.max, fine.max_tokens, evaluation.max_tokens or data.max_answer_tokens",
    )


def context_plan_refusal(config: Config, sizes: Bytes) -> PlanRefusal | None:
    """The refusal of a row that is longer than the model's context; None if all fit."""
    parts = context_refusal(config, sizes.shape.context, "model's context")
    return parts and PlanRefusal("", str(ConfigError.because(*parts)))


def stage_refusal(config: Config, sizes: Bytes, need: Need, available: float) -> PlanRefusal | None:
    """The refusal of a stage that needs more than `available` bytes; None if it fits."""
    if need.total <= available:
        return None
    message = ConfigError.because(
        f"{need.stage.replace('_', ' ')} needs {need.total / GIBIBYTE:.2f} GiB with {need.setting}={need.batch}",
        f"at most {max(available, 0) / GIBIBYTE:.2f} GiB",
        _remedy(config, sizes, need, available),
    )
    return PlanRefusal(STAGES[need.stage].command, str(message))


def _remedy(config: Config, sizes: Bytes, need: Need, available: float) -> str:
    """What to change: a smaller batch if one fits, else shorter answers, else shorter prompts, else both."""
    command, need_of = STAGES[need.stage]
    lengths, answers = lengths_of(config, command), answer_settings(config, command)
    batch = largest_fitting(need.batch, lambda size: need_of(config, sizes, size, lengths).total <= available, 0)
    if batch:
        return f"set {need.setting} to {batch} or auto"
    for settings in (answers, {PROMPT_KEY: lengths.prompt}, answers | {PROMPT_KEY: lengths.prompt}):

        def fits(tokens: int, settings: dict[str, int] = settings) -> bool:
            shorter = lengths._replace(
                prompt=min(lengths.prompt, tokens) if PROMPT_KEY in settings else lengths.prompt,
                answer=min(lengths.answer, tokens) if answers.keys() <= settings.keys() else lengths.answer,
            )
            return need_of(config, sizes, 1, shorter).total <= available

        tokens = largest_fitting(max(settings.values()), fits, 0)
        if tokens >= MIN_TOKENS:
            too_long = " and ".join(key for key, value in settings.items() if value > tokens)
            return f"lower {too_long} to {tokens}" + ("" if need.batch == 1 else f" and set {need.setting} to auto")
    fixed = sum(size for part, size in need.parts.items() if part not in VARIABLE_PARTS)
    smaller = "smaller models" if command == "fine" else "a smaller model"
    return f"{fixed / GIBIBYTE:.2f} GiB are needed at any batch and length: use {smaller} or a larger card"
