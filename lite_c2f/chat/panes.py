"""Panes of the chat: which actors answer, with which settings."""

import math
from typing import NamedTuple

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE, ratio_in
from lite_c2f.chat.folder_names import FOLDER, folder_model_in
from lite_c2f.chat.other_actors import other_actor_in, title_of_other
from lite_c2f.chat.server_names import SERVER, server_model_in, title_of_model
from lite_c2f.errors import ConfigError

PANES = (COARSE, FINE, BASELINE)
ALL_PANES = (*PANES, BASE)
TITLES = {COARSE: "Coarse Actor", FINE: "Fine Actor", BASELINE: "Baseline (instruct)", BASE: "Base"}
BASE_MODEL_ACTORS = (COARSE, BASE)  # the actors on the base model's weights, prompted as it is
MIN_PROMPT_TOKENS = 32  # tokens of the context that max_tokens leaves to the prompt
MAX_TEXT_CHARACTERS = 32_768  # characters of a question or a system prompt


class Pane(NamedTuple):
    """One answer to a question. Two panes may have the same actor, at different ratios or with other residues."""

    key: str  # names its replies
    actor: str  # one of ALL_PANES; SERVER or FOLDER for a model of another server or of the folder of models
    ratio: float | None = None  # the Fine Actor's; None: that of the settings
    source: str = ""  # name of an actor of another moment or run, or of another model; "": the run's own


class Listed(NamedTuple):
    """A choice for a visitor."""

    name: str
    label: str  # title, note, and the memory that it adds


class ChatSettings(NamedTuple):
    """How answers are sampled. Every pane draws from the same random numbers."""

    max_tokens: int = 256  # the ending included
    temperature: float = 0.7  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    repetition_penalty: float = 1.0  # 1 is off; on tokens of the prompt and the answer
    seed: int = 0
    ratio: float | None = None  # share of the residue in the Fine Actor; None is the share that was merged
    system: str = ""  # put before the first question: a base model has no system role


class AnswerForm(NamedTuple):
    """What a program may ask of an answer beyond a person's settings."""

    stop: tuple[str, ...] = ()  # texts that end the answer, beside those of the run
    raw: bool = False  # the question is the whole prompt, without a template, and the answer keeps its spaces
    logprobs: int | None = None  # most likely tokens listed beside each token drawn; None: no log-probabilities
    begun: str = ""  # the answer so far, which is continued: as a reply has it, without spaces around it
    drawn: int = 0  # tokens that were drawn for `begun`; they count towards `max_tokens`


class TokenLogprobs(NamedTuple):
    """Log-probabilities of the model itself, in nats: at temperature 1, before filters and penalties."""

    token: int
    logprob: float
    top: list[tuple[int, float]]  # the most likely tokens, the best first


def pane_of(actor: "str | Pane") -> Pane:
    """The pane of an actor; a pane stays as it is. Raises ConfigError for an unknown actor.

    >>> pane_of("fine@0.5")
    Pane(key='fine@0.5', actor='fine', ratio=0.5)
    """
    pane = actor
    if isinstance(pane, str):
        ratio, other = ratio_in(pane), other_actor_in(pane)
        if other is not None:
            return Pane(pane, other.actor, source=pane)
        if server_model_in(pane) is not None:
            return Pane(pane, SERVER, source=pane)
        if folder_model_in(pane):
            return Pane(pane, FOLDER, source=pane)
        pane = Pane(pane, pane) if ratio is None else Pane(pane, FINE, ratio)
    if pane.actor not in (*ALL_PANES, SERVER, FOLDER):
        expected = (
            f"one of {', '.join(ALL_PANES)}, {FINE}@RATIO such as {FINE}@0.5, or another actor such as coarse@best"
        )
        raise ConfigError.because(f"pane '{pane.actor}'", expected, "correct it")
    return pane


def fine_ratio(pane: Pane, settings: ChatSettings, merged: float) -> float:
    """The Fine Actor's ratio in a pane: its own, else that of the settings, else the merged one."""
    return next(ratio for ratio in (pane.ratio, settings.ratio, merged) if ratio is not None)


def title_of(key: str) -> str:
    """The title of the pane with that key; "" for what is no pane.

    >>> title_of("fine"), title_of("fine@0.5"), title_of("coarse@best")
    ('Fine Actor', 'Second Fine at ratio 0.5', 'Coarse Actor, best policy')
    """
    ratio, other, model = ratio_in(key), other_actor_in(key), server_model_in(key)
    if other is not None:
        return title_of_other(other)
    if model is not None:
        return title_of_model(model)
    if folder := folder_model_in(key):
        return folder
    return TITLES.get(key, "") if ratio is None else f"Second Fine at ratio {ratio:g}"


def check_settings(settings: ChatSettings, context: int) -> None:
    """Raise ConfigError naming the first setting that is out of range. context: in tokens, prompt and answer."""
    limit = context - MIN_PROMPT_TOKENS
    ratio = 0.0 if settings.ratio is None else settings.ratio
    rules = {
        "max_tokens": (1 <= settings.max_tokens <= limit, f"1 to {limit}, which leaves room for the prompt"),
        "temperature": (settings.temperature == 0 or 0.01 <= settings.temperature <= 100, "0, or 0.01 to 100"),
        "top_p": (0 < settings.top_p <= 1, "more than 0, at most 1"),
        "top_k": (settings.top_k >= 0, "0 or more"),
        "repetition_penalty": (0.1 <= settings.repetition_penalty <= 10, "0.1 to 10; 1 is off"),
        "seed": (0 <= settings.seed < 1 << 63, "0 or more, below 2**63"),
        "ratio": (math.isfinite(ratio) and ratio >= 0, "a finite number, 0 or more"),
    }
    for name in ("max_tokens", "top_k", "seed"):
        if not isinstance(getattr(settings, name), int):
            raise ConfigError.because(f"{name}={getattr(settings, name)!r}", "a whole number", "correct the value")
    for name, (holds, expected) in rules.items():
        if not holds:
            raise ConfigError.because(f"{name}={getattr(settings, name)}", expected, "correct the value")
    if len(settings.system) > MAX_TEXT_CHARACTERS:
        got = f"a system prompt of {len(settings.system)} characters"
        raise ConfigError.because(got, f"at most {MAX_TEXT_CHARACTERS}", "shorten it")
