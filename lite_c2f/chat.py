"""Several actors answering the same question at once, token by token.

Two models are loaded: the base with the Coarse adapter, and the instruct model with the same adapter unmerged, which
is the Fine Actor at any ratio and the baseline at ratio 0. Panes take turns, a token each: all seem to speak together.
"""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from lite_c2f.actors import Instruct, load_coarse
from lite_c2f.backbone.load import end_tokens
from lite_c2f.backbone.roles import REFERENCE
from lite_c2f.data.encode import encode_chat, encode_prompt, stop_ids
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError, ModelError, RunError
from lite_c2f.inputs import TOY
from lite_c2f.manifest import open_run
from lite_c2f.runs import read_json
from lite_c2f.sampling import Sampling, draw

PANES = ("coarse", "fine", "baseline")
ALL_PANES = (*PANES, "base")
TITLES = {"coarse": "Coarse Actor", "fine": "Fine Actor", "baseline": "Baseline (instruct)", "base": "Base"}
ROLES = {"coarse": "policy", "base": REFERENCE}  # the panes that answer as a base model does
ENDINGS = {
    None: "writing",
    "eos": "ended (EOS)",
    "stop": "ended (stop)",
    "limit": "hit the limit",
    "stopped": "stopped",
    "error": "failed",
}
LONGEST_CHAT = 4096  # tokens of a conversation and its answer: Mistral-7B-v0.1's sliding window
SMALLEST_PROMPT = 32  # tokens of the context that an answer leaves to its prompt

History = Sequence[Turn]  # ends with a human turn


class ChatSettings(NamedTuple):
    """How answers are drawn. Every pane draws from the same random numbers."""

    max_tokens: int = 256  # the ending included
    temperature: float = 0.7  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    seed: int = 0
    ratio: float | None = None  # share of the residue in the Fine Actor; None is the share that was merged


class Event(NamedTuple):
    """What a pane has said so far."""

    pane: str
    text: str  # without its ending
    tokens: int  # the ending included
    tokens_per_s: float  # in the pane's own time: waiting for its turn does not count
    finish: str | None  # None while it goes on, then "eos" | "stop" | "limit" | "stopped" | "error"
    message: str = ""  # one line, with "error"

    @property
    def status(self) -> str:
        """One line on how it went, e.g. `42 tokens, 85 tokens/s, ended (EOS)`."""
        if self.finish == "error":
            return f"failed: {self.message}"
        unit = "token" if self.tokens == 1 else "tokens"
        return f"{self.tokens} {unit}, {self.tokens_per_s:.0f} tokens/s, {ENDINGS[self.finish]}"


class Step(NamedTuple):
    """One more token of a response."""

    tokens: list[int]  # all of them so far, the ending included
    finish: str | None  # "eos" | "stop" | "limit" with the last token
    ending: int  # how many of the last tokens are the ending
    seconds: float


def speak(
    model: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    eos_ids: Sequence[int],
    stop_ids: Sequence[Sequence[int]] = (),
    turn: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Iterator[Step]:
    """Answer one prompt, a token at a time; the same tokens as `sampling.sample` when greedy.

    turn: the context a token is computed in, such as a role. It is left before the token is handed over.
    Raises ModelError for logits that are not finite.
    """
    device = next(model.parameters()).device
    uniforms = torch.rand(sampling.limit, generator=torch.Generator().manual_seed(sampling.seed)).to(device)
    cache = DynamicCache(config=model.config)
    inputs = torch.tensor([list(prompt)], device=device)
    tokens: list[int] = []
    for step in range(sampling.limit):
        length = len(prompt) + step
        with turn(), torch.no_grad():
            began = time.perf_counter()
            output = model(
                input_ids=inputs,
                attention_mask=torch.ones((1, length), dtype=torch.long, device=device),
                position_ids=torch.arange(length - inputs.shape[1], length, device=device)[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            drawn, logprob = draw(output.logits[:, -1].float(), uniforms[step : step + 1], sampling)
            if not math.isfinite(float(logprob)):
                raise ModelError.because(f"logits at token {step} are not finite", "finite logits", "train it again")
            tokens.append(int(drawn))
            seconds = time.perf_counter() - began
        finish, ending = _finish(tokens, sampling.limit, eos_ids, stop_ids)
        yield Step(list(tokens), finish, ending, seconds)
        if finish:
            return
        inputs = drawn[:, None]


def _finish(
    tokens: list[int], limit: int, eos_ids: Sequence[int], stop_ids: Sequence[Sequence[int]]
) -> tuple[str | None, int]:
    if tokens[-1] in eos_ids:
        return "eos", 1
    for stop in stop_ids:
        if tokens[-len(stop) :] == list(stop):
            return "stop", len(stop)
    return ("limit", 0) if len(tokens) == limit else (None, 0)


def shown(text: str, stops: Sequence[str]) -> str:
    """What may be shown of a response that goes on: no stop sequence, not even its beginning, and no half character.

    >>> shown("It is 5.\\n\\nHum", ["\\n\\nHuman:"])
    'It is 5.'
    """
    for stop in stops:
        text = text.split(stop, 1)[0]
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)].rstrip("\N{REPLACEMENT CHARACTER}").strip()


class Chat:
    """The actors of a finished run, ready to answer.

    Several threads may stream at once: they take turns, one token each. Raises RunError for an unfinished run.

    >>> chat = Chat("runs/toy")
    >>> chat.answer("Tom has 3 apples, finds 4, loses 2. How many now?")["fine"].text
    """

    def __init__(self, run_dir: str | Path) -> None:
        run = Path(run_dir)
        self.config, models = open_run(run)
        self.ratio = _merged_ratio(run / "fine" / "merge.json")
        self.roles, judge = load_coarse(self.config, models, run)
        self.tokenizer = judge.tokenizer
        self.instruct = Instruct(self.config, models.instruct, run / "coarse" / "adapter")
        contexts = [getattr(m.config, "max_position_embeddings", None) for m in (self.roles.model, self.instruct.model)]
        # Beyond this, a model loaded without its sliding window is not the one that was trained.
        self.context = min(LONGEST_CHAT, *(context for context in contexts if context))
        self._lock = threading.Lock()

    def stream(
        self,
        turns: str | History | Mapping[str, History],
        panes: Sequence[str] = PANES,
        settings: ChatSettings | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Event]:
        """Answer in all panes at once: an event a token, the panes in turn, each pane's last one with its finish.

        turns: a question, a conversation, or one conversation a pane. stop: set it to end all panes soon. A pane that
        fails ends with finish "error" and the others go on. The oldest turns are dropped where the context ends.
        Raises ConfigError for settings out of range, C2FError for an empty prompt.
        """
        settings = settings or ChatSettings()
        self.check(settings)
        histories = {pane: _history(turns, pane) for pane in panes}
        return self._interleave([self._pane(pane, histories[pane], settings, stop) for pane in panes])

    def answer(self, prompt: str | History, panes: Sequence[str] | None = None, **settings: Any) -> dict[str, Event]:
        """The finished answers, by pane. settings: those of `ChatSettings`. Raises as `stream` does."""
        events = self.stream(prompt, panes or PANES, ChatSettings(**settings))
        return {event.pane: event for event in events if event.finish}

    def check(self, settings: ChatSettings) -> None:
        """Raise ConfigError naming the first setting that is out of range."""
        most = self.context - SMALLEST_PROMPT
        ratio = self.ratio if settings.ratio is None else settings.ratio
        rules = {
            "max_tokens": (1 <= settings.max_tokens <= most, f"1 to {most}, which leaves room for the prompt"),
            "temperature": (math.isfinite(settings.temperature) and settings.temperature >= 0, "0 or more"),
            "top_p": (0 < settings.top_p <= 1, "more than 0, at most 1"),
            "top_k": (settings.top_k >= 0, "0 or more"),
            "seed": (0 <= settings.seed < 1 << 63, "0 or more, below 2**63"),
            "ratio": (math.isfinite(ratio) and ratio >= 0, "a finite number, 0 or more"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ConfigError.because(f"{name}={getattr(settings, name)}", expected, "correct the value")

    def prompt_room(self, max_tokens: int) -> int:
        """Most tokens of a prompt, earlier turns included."""
        if self.config.model.base == TOY:  # its text never ran longer than this
            return self.config.data.max_prompt_tokens
        return self.context - max_tokens

    def _interleave(self, panes: list[Iterator[Event]]) -> Iterator[Event]:
        while panes:
            for pane in list(panes):
                event = next(pane)
                if event.finish:
                    panes.remove(pane)
                yield event

    def _pane(self, pane: str, turns: History, settings: ChatSettings, stop: threading.Event | None) -> Iterator[Event]:
        """One pane's events. Whatever goes wrong in it, out of memory included, is its last event and no one else's."""
        event = Event(pane, "", 0, 0.0, None)
        seconds = 0.0
        try:
            steps, tokenizer = self._speaker(pane, turns, settings)
            stops = self.config.model.stop if pane in ROLES else ()
            while not event.finish:
                if stop is not None and stop.is_set():
                    yield event._replace(finish="stopped")
                    return
                step = next(steps)
                seconds += step.seconds
                text = tokenizer.decode(step.tokens[: len(step.tokens) - step.ending], skip_special_tokens=True)
                finish = step.finish
                if any(marker in text for marker in stops):  # spelt in other tokens than those looked for
                    finish = "stop"
                said = text.strip() if finish == "eos" else shown(text, stops)
                event = Event(pane, said, len(step.tokens), len(step.tokens) / max(seconds, 1e-9), finish)
                yield event
        except Exception as error:
            yield event._replace(finish="error", message=_one_line(error))

    def _speaker(self, pane: str, turns: History, settings: ChatSettings) -> tuple[Iterator[Step], Any]:
        """The token generator of a pane, and the tokenizer that reads it."""
        sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_k, settings.top_p, settings.seed)
        room = self.prompt_room(settings.max_tokens)
        if pane in ROLES:
            tokenizer, model = self.tokenizer, self.roles.model
            eos_ids = end_tokens(model, tokenizer)
            prompt, _ = encode_prompt(tokenizer, turns, room, template=self.config.model.prompt_template)
            stops = stop_ids(tokenizer, self.config.model.stop)
        else:
            tokenizer, model, eos_ids = self.instruct.tokenizer, self.instruct.model, self.instruct.eos_ids
            prompt, stops = encode_chat(tokenizer, turns, room), []
        ratio = self.ratio if settings.ratio is None else settings.ratio
        turn = functools.partial(self._turn, pane, ratio)
        return speak(model, prompt, sampling, eos_ids=eos_ids, stop_ids=stops, turn=turn), tokenizer

    @contextlib.contextmanager
    def _turn(self, pane: str, ratio: float) -> Iterator[None]:
        """Be the pane's actor for one token: nobody else may switch adapters meanwhile."""
        share = ratio if pane == "fine" else 0.0
        actor = self.roles.use(ROLES[pane]) if pane in ROLES else self.instruct.ratio(share)
        with self._lock, actor:
            yield


def _merged_ratio(file: Path) -> float:
    try:
        return float(read_json(file)["ratio"])
    except (KeyError, TypeError, ValueError):
        raise RunError.because(
            f"'{file}' has no ratio", "the report of a merge", "train the fine stage again"
        ) from None


def _history(turns: str | History | Mapping[str, History], pane: str) -> History:
    if pane not in ALL_PANES:
        raise ConfigError.because(f"pane '{pane}'", "one of " + ", ".join(ALL_PANES), "correct it")
    if isinstance(turns, str):
        turns = [Turn("human", turns.strip())]
    history = turns[pane] if isinstance(turns, Mapping) else turns
    if not history or history[-1].role != "human" or not history[-1].text.strip():
        raise C2FError.because("an empty prompt", "a question", "type one")
    return history


def _one_line(error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return reason if isinstance(error, C2FError) else f"{type(error).__name__}: {reason}".rstrip(": ")


def with_answers(histories: Mapping[str, History], events: Mapping[str, Event]) -> dict[str, list[Turn]]:
    """Conversations with their answers added. A pane that failed forgets the question, so that it can go on."""
    after = {}
    for pane, turns in histories.items():
        event = events.get(pane)
        failed = event is None or event.finish == "error"
        after[pane] = list(turns[:-1]) if failed else [*turns, Turn("assistant", events[pane].text)]
    return after
