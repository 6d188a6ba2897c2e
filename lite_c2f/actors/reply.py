"""Reply of an actor to a question, in the chat, on its page and in saved sessions. Imports no torch."""

from typing import NamedTuple

ENDINGS = {
    None: "writing",
    "eos": "ended (EOS)",
    "stop": "ended (stop)",
    "limit": "hit the limit",
    "stopped": "stopped",
    "error": "failed",
}


class Reply(NamedTuple):
    """The reply of one pane, finished or in progress, with its figures."""

    pane: str
    text: str  # without its ending
    tokens: int  # the ending included
    tokens_per_s: float  # after the first token, so without the prompt's prefill
    finish: str | None  # None while in progress, then "eos" | "stop" | "limit" | "stopped" | "error"
    message: str = ""  # one line, with "error"
    first_token_s: float | None = None  # seconds from the question to the first token, waiting in the queue included
    reward: float | None = None  # of a finished answer, in the reward model's standard deviations
    repeated: float = 0.0  # share of its 4-grams of tokens that repeat an earlier one
    dropped: int = 0  # oldest turns dropped because they did not fit into the context
    cut: bool = False  # the question itself did not fit: its beginning was dropped
    ratio: float | None = None  # of the Fine Actor
    seed: int = 0

    @property
    def status(self) -> str:
        """Tokens, speed and ending in one line, e.g. `42 tokens, 85 tokens/s, ended (EOS)`."""
        if self.finish == "error":
            return f"failed: {self.message}"
        unit = "token" if self.tokens == 1 else "tokens"
        return f"{self.tokens} {unit}, {self.tokens_per_s:.0f} tokens/s, {ENDINGS[self.finish]}"
