"""An answer, and the numbers of a set of answers."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from lite_c2f.data.records import Prompt


class Answer(NamedTuple):
    """One response."""

    text: str  # without its ending
    tokens: int  # the ending included
    finish: str  # "eos" | "stop" | "limit"
    text_tokens: list[int]
    chat: bool = False  # behind an instruct model's chat template; otherwise in the form of the model that is trained


def repeated_ngrams(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a response's n-grams that repeat an earlier one, 0 to 1; 0 when it is shorter than n."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def summarize(prompts: Sequence[Prompt], answers: Sequence[Answer], rewards: Sequence[float]) -> dict[str, float]:
    """Means over answers: reward (in the reward model's spreads), tokens, repeated 4-grams, share that ended.

    On the toy world, where prompts carry their answer, also accuracy and the analytic share. `eos` counts every
    response that ended by itself: by EOS or, on a base model, by the next turn's marker.
    """
    figures = {
        "reward": fmean(rewards),
        "tokens": fmean(answer.tokens for answer in answers),
        "repeated_4gram": fmean(repeated_ngrams(answer.text_tokens) for answer in answers),
        "eos": fmean(answer.finish != "limit" for answer in answers),
    }
    if all("toy_answer" in prompt.extra for prompt in prompts):
        from lite_c2f.toy.world import is_analytic, is_right

        pairs = list(zip(prompts, answers, strict=True))
        figures["accuracy"] = fmean(is_right(answer.text, prompt.extra["toy_answer"]) for prompt, answer in pairs)
        figures["analytic"] = fmean(is_analytic(answer.text, prompt.extra["toy_steps"]) for prompt, answer in pairs)
    return {name: round(value, 4) for name, value in figures.items()}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of a sample: its spread (n - 1) over the root of n; 0 for a single value."""
    mean = fmean(values)
    return (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)) ** 0.5
