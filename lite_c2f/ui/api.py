"""What scripts may ask a served page for, with types: `/compare`, `/facts`."""

from typing import Any

import gradio as gr

from lite_c2f.chat import ALL_PANES, PANES
from lite_c2f.errors import C2FError, ConfigError
from lite_c2f.ui.answering import Served, reply_of, settings_of


def add_api(served: Served) -> None:
    """Add the functions to the page that is being built."""
    chat = served.chat

    def compare(
        prompt: str,
        panes: list[str] | None = None,
        ratio: float | None = None,
        system: str = "",
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Answer a question with several actors; returns each one's answer by its name, with its figures.

        panes: of coarse, fine, baseline, base. ratio: the Fine Actor's; none is the merged one.
        """
        if panes is None:
            panes = list(PANES)
        settings = settings_of(ratio, system, temperature, top_p, top_k, repetition_penalty, max_tokens, seed)
        try:
            if not isinstance(prompt, str) or not all(isinstance(pane, str) for pane in panes):
                raise ConfigError.because("a prompt or a pane that is no text", "texts", "correct them")
            events = chat.answer(prompt, panes, score=True, **settings._asdict())
        except C2FError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except TypeError as error:
            raise gr.Error(f"a setting of the wrong type: {error}", print_exception=False) from None
        return {pane: reply_of(event)._asdict() for pane, event in events.items()}

    def facts() -> dict[str, Any]:
        """What is served: the run, its merged ratio, the actors, the most tokens of a conversation."""
        return {"run": served.facts, "ratio": chat.ratio, "panes": list(ALL_PANES), "context": chat.context}

    gr.api(compare, api_name="compare", concurrency_limit=None)
    gr.api(facts, api_name="facts", concurrency_limit=None)
