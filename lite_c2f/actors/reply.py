"""Reply of an actor to a question: as it grows in the chat, as it is shown, and as it is saved. Imports no torch."""

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
    """The reply of one pane, and how it went."""

    pane: str
    text: str  # without its ending
    tokens: int  # the ending included
    tokens_per_s: float  # from the first token on; reading the prompt is not in it
    finish: str | None  # None while it goes on, then "eos" | "stop" | "limit" | "stopped" | "error"
    message: str = ""  # one line, with "error"
    first_token_s: float | None = None  # seconds from the question to the first token, waiting in line included
    reward: float | None = None  # of a finished answer, in the reward model's standard deviations
    repeated: float = 0.0  # share of its 4-grams of tokens that repeat an earlier one
    dropped: int = 0  # oldest turns that the context had no room for
    cut: bool = False  # nor had it for the whole question
    ratio: float | None = None  # of the Fine Actor
    seed: int = 0

    @property
    def status(self) -> str:
        """One line on how it went, e.g. `42 tokens, 85 tokens/s, ended (EOS)`."""
        if self.finish == "error":
            return f"failed: {self.message}"
        unit = "token" if self.tokens == 1 else "tokens"
        return f"{self.tokens} {unit}, {self.tokens_per_s:.0f} tokens/s, {ENDINGS[self.finish]}"
