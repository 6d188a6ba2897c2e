"""Refusals of a plan: which stage does not fit, and which setting to change to what.

Advice that is followed leads to a plan that fits.
"""

from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError
from lite_c2f.memory.sizes import GIBIBYTE, Bytes
from lite_c2f.memory.stages import STAGES, Need, answer_settings, largest, lengths_of

GROWS = ("activations", "KV cache", "log-prob tile")  # parts that depend on batches and lengths; the others do not
PROMPT = "data.max_prompt_tokens"
FEWEST = 8  # tokens of the shortest prompt and answer a configuration may ask for


class PlanRefusal(NamedTuple):
    """One reason why a run cannot be."""

    stage: str  # "reward" | "coarse" | "fine", or "" where it concerns all of them
    line: str


def context_refusal(config: Config, context: int, of: str) -> tuple[str, str, str] | None:
    """Got, expected, do: where the longest row is longer than a context in tokens; None where it fits. of: whose."""
    if config.longest_row <= context:
        return None
    return (
        f"{PROMPT} and the longest answer make {config.longest_row} tokens",
        f"at most the {of} of {context}",
        "lower coarse.length.max, fine.max_tokens, evaluation.max_tokens or data.max_answer_tokens",
    )


def refuse_context(config: Config, sizes: Bytes) -> PlanRefusal | None:
    """A row that is longer than the model's context."""
    parts = context_refusal(config, sizes.shape.context, "model's context")
    return parts and PlanRefusal("", str(ConfigError.because(*parts)))


def refuse(config: Config, sizes: Bytes, need: Need, room: float) -> PlanRefusal | None:
    """A stage that takes more than there is room for, in bytes."""
    if need.total <= room:
        return None
    line = ConfigError.because(
        f"{need.stage.replace('_', ' ')} needs {need.total / GIBIBYTE:.2f} GiB with {need.setting}={need.batch}",
        f"at most {max(room, 0) / GIBIBYTE:.2f} GiB",
        _remedy(config, sizes, need, room),
    )
    return PlanRefusal(STAGES[need.stage].command, str(line))


def _remedy(config: Config, sizes: Bytes, need: Need, room: float) -> str:
    """A smaller batch where one fits, else shorter answers, else shorter prompts, else both."""
    command, count = STAGES[need.stage]
    lengths, answers = lengths_of(config, command), answer_settings(config, command)
    batch = largest(need.batch, lambda size: count(config, sizes, size, lengths).total <= room, 0)
    if batch:
        return f"set {need.setting} to {batch} or auto"
    for settings in (answers, {PROMPT: lengths.prompt}, answers | {PROMPT: lengths.prompt}):

        def fits(tokens: int, settings: dict[str, int] = settings) -> bool:
            shorter = lengths._replace(
                prompt=min(lengths.prompt, tokens) if PROMPT in settings else lengths.prompt,
                answer=min(lengths.answer, tokens) if answers.keys() <= settings.keys() else lengths.answer,
            )
            return count(config, sizes, 1, shorter).total <= room

        tokens = largest(max(settings.values()), fits, 0)
        if tokens >= FEWEST:
            longer = " and ".join(key for key, value in settings.items() if value > tokens)
            return f"lower {longer} to {tokens}" + ("" if need.batch == 1 else f" and set {need.setting} to auto")
    always = sum(size for part, size in need.parts.items() if part not in GROWS)
    smaller = "smaller models" if command == "fine" else "a smaller model"
    return f"{always / GIBIBYTE:.2f} GiB are taken at any batch and length: use {smaller} or a larger card"
