"""Panes of the chat: which actors answer, with which settings."""

import math
from typing import NamedTuple

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE
from lite_c2f.errors import ConfigError

PANES = (COARSE, FINE, BASELINE)
ALL_PANES = (*PANES, BASE)
TITLES = {COARSE: "Coarse Actor", FINE: "Fine Actor", BASELINE: "Baseline (instruct)", BASE: "Base"}
ON_BASE = (COARSE, BASE)  # the actors that answer as a base model does
SMALLEST_PROMPT = 32  # tokens of the context that an answer leaves to its prompt
LONGEST_TEXT = 32_768  # characters of a question or a system prompt


class Pane(NamedTuple):
    """One answer that is asked for. Two panes may have the same actor, at different ratios."""

    key: str  # by which its events are known
    actor: str  # one of ALL_PANES
    ratio: float | None = None  # the Fine Actor's; None: that of the settings


class ChatSettings(NamedTuple):
    """How answers are drawn. Every pane draws from the same random numbers."""

    max_tokens: int = 256  # the ending included
    temperature: float = 0.7  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    repetition_penalty: float = 1.0  # 1 is off; on tokens of the prompt and the answer
    seed: int = 0
    ratio: float | None = None  # share of the residue in the Fine Actor; None is the share that was merged
    system: str = ""  # stands before the first question that is read; a base model has no place of its own for it


def pane_of(given: "str | Pane") -> Pane:
    """A pane by the name of its actor. Raises ConfigError for an actor that is not there."""
    pane = Pane(given, given) if isinstance(given, str) else given
    if pane.actor not in ALL_PANES:
        raise ConfigError.because(f"pane '{pane.actor}'", "one of " + ", ".join(ALL_PANES), "correct it")
    return pane


def check_settings(settings: ChatSettings, context: int) -> None:
    """Raise ConfigError naming the first setting that is out of range. context: tokens a model reads and says."""
    most = context - SMALLEST_PROMPT
    ratio = 0.0 if settings.ratio is None else settings.ratio
    rules = {
        "max_tokens": (1 <= settings.max_tokens <= most, f"1 to {most}, which leaves room for the prompt"),
        "temperature": (settings.temperature == 0 or 0.01 <= settings.temperature <= 100, "0, or 0.01 to 100"),
        "top_p": (0 < settings.top_p <= 1, "more than 0, at most 1"),
        "top_k": (settings.top_k >= 0, "0 or more"),
        "repetition_penalty": (
            0.1 <= settings.repetition_penalty <= 10,
            "0.1 to 10; 1 is off",
        ),
        "seed": (0 <= settings.seed < 1 << 63, "0 or more, below 2**63"),
        "ratio": (math.isfinite(ratio) and ratio >= 0, "a finite number, 0 or more"),
    }
    for name in ("max_tokens", "top_k", "seed"):
        if not isinstance(getattr(settings, name), int):
            raise ConfigError.because(f"{name}={getattr(settings, name)!r}", "a whole number", "correct the value")
    for name, (holds, expected) in rules.items():
        if not holds:
            raise ConfigError.because(f"{name}={getattr(settings, name)}", expected, "correct the value")
    if len(settings.system) > LONGEST_TEXT:
        got = f"a system prompt of {len(settings.system)} characters"
        raise ConfigError.because(got, f"at most {LONGEST_TEXT}", "shorten it")
