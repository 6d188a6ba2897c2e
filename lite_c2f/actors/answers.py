"""Answers of an actor, and the metrics of a set of answers."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from lite_c2f.data.records import Prompt


class Answer(NamedTuple):
    """One response."""

    text: str  # without its ending
    tokens: int  # the ending included
    finish: str  # "eos" | "stop" | "limit"
    text_tokens: list[int]
    chat: bool = False  # generated under an instruct model's chat template, not in the base's form


def repeated_ngrams(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a response's n-grams that repeat an earlier one, 0 to 1; 0 when it is shorter than n."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def summarize(prompts: Sequence[Prompt], answers: Sequence[Answer], rewards: Sequence[float]) -> dict[str, float]:
    """Means over answers: reward (z-score by the reward model), tokens, repeated 4-grams, share that ended.

    With prompts that carry their answer also `checked`. `eos` counts every response that ended by itself: by EOS or,
    on a base model, by the next turn's marker.
    """
    figures = {
        "reward": fmean(rewards),
        "tokens": fmean(answer.tokens for answer in answers),
        "repeated_4gram": fmean(repeated_ngrams(answer.text_tokens) for answer in answers),
        "eos": fmean(answer.finish != "limit" for answer in answers),
    }
    figures |= checked(prompts, answers)
    return {name: round(value, 4) for name, value in figures.items()}


def checked(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, float]:
    """`accuracy` and `analytic`, the shares of right and of analysing answers, where the prompts are embedded ones.

    Accuracy is of the questions that have an answer to check. {} for other prompts, whose answers nobody can check.
    """
    pairs = list(zip(prompts, answers, strict=True))
    if all("toy_answer" in prompt.extra for prompt in prompts):
        from lite_c2f.toy import world

        right = [world.is_right(answer.text, prompt.extra["toy_answer"]) for prompt, answer in pairs]
        analytic = [world.is_analytic(answer.text, prompt.extra["toy_steps"]) for prompt, answer in pairs]
        return {"accuracy": fmean(right), "analytic": fmean(analytic)}
    if all("smollm_question" in prompt.extra for prompt in prompts):
        from lite_c2f.smollm.questions import is_right
        from lite_c2f.smollm.rules import is_reasoned

        questions = [(prompt.extra["smollm_question"], answer.text) for prompt, answer in pairs]
        judged = [verdict for q, text in questions if (verdict := is_right(q, text)) is not None]
        accuracy = {"accuracy": fmean(judged)} if judged else {}
        return accuracy | {"analytic": fmean(is_reasoned(q.text, text) for q, text in questions)}
    return {}


def standard_error(values: Sequence[float]) -> float:
    """Standard error of a sample's mean: its standard deviation (n - 1) over sqrt(n); 0 for a single value."""
    mean = fmean(values)
    return (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)) ** 0.5


def paired_difference(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences left[i] - right[i] and its standard error; both sides answered the same prompts.

    >>> paired_difference([1.0, 3.0], [0.0, 1.0])
    (1.5, 0.5)
    """
    differences = [a - b for a, b in zip(left, right, strict=True)]
    return fmean(differences), standard_error(differences)


def min_eos_message(ratios: Mapping[str, Any]) -> str | None:
    """A message with the shares of ended responses where no ratio that was tried reaches fine.min_eos; else None.

    ratios: what RUN/fine/ratios.json or sweep.json holds, those of earlier versions included.
    """
    least, shares = ratios.get("min_eos"), {row["ratio"]: row.get("eos") for row in ratios["tried"] if row["ratio"] > 0}
    known = {ratio: share for ratio, share in shares.items() if share is not None}
    if least is None or not known or max(known.values()) >= least:
        return None
    listed = ", ".join(f"{share:.3f} at {ratio:g}" for ratio, share in known.items())
    return (
        f"no ratio reaches fine.min_eos={least:g}: the share of responses that ended is {listed}; took "
        f"{ratios['chosen']:g}, which ends most often (raise fine.max_tokens, or try other fine.ratios)"
    )
