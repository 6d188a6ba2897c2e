"""API of a served page for scripts, with types: `/compare`, `/facts`."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lite_c2f.actors.reply import Reply
from lite_c2f.chat import ALL_PANES, PANES
from lite_c2f.errors import C2FError, ConfigError
from lite_c2f.ui.answering import PATIENCE, Served, settings_of

PAUSE = 0.25  # seconds between two updates of the answers


def as_json(reply: Reply) -> dict[str, Any]:
    """A reply as scripts receive it; `finish` is "" while it grows."""
    return reply._asdict() | {"finish": reply.finish or ""}


def add_api(served: Served) -> None:
    """Add the functions to the page that is being built."""
    chat = served.chat

    def compare(
        request: gr.Request,
        prompt: str,
        panes: list[str] = [*PANES],  # noqa: B006  its default is shown to scripts
        ratio: float | None = None,
        system: str = "",
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Answer a question with several actors: each one's answer by its name, with its figures, as it grows.

        panes: of coarse, fine, baseline, base, fine@RATIO such as fine@0.5, and the `others` of /facts. ratio: that of
        fine, else the merged one. The last result is whole.
        """
        texts = [prompt, system, *(panes if isinstance(panes, list) else [panes])]
        try:
            if not all(isinstance(text, str) for text in texts):
                raise ConfigError.because("a prompt, system prompt or pane that is no text", "texts", "correct it")
            settings = settings_of(ratio, system, temperature, top_p, top_k, repetition_penalty, max_tokens, seed)
            stream = chat.stream(prompt, texts[2:], settings, score=True, pause=PAUSE, asker=request.session_hash)
        except C2FError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise gr.Error(f"a setting of the wrong type: {error}", print_exception=False) from None
        replies: dict[str, Any] = {}
        try:  # a script that disconnects is noticed between two updates
            for batch in stream.batches(PATIENCE):
                replies = {**replies, **{reply.pane: as_json(reply) for reply in batch}}
                yield replies
        finally:
            stream.close()

    def facts() -> dict[str, Any]:
        """What is served: the run, its merged ratio, the actors, those of other updates and runs, the most tokens of a
        conversation.
        """
        others = [other.name for other in chat.listed_others()]
        known = {"run": served.facts, "ratio": chat.ratio, "panes": list(ALL_PANES), "others": others}
        return known | {"context": chat.context}

    gr.api(compare, api_name="compare", concurrency_limit=None)
    gr.api(facts, api_name="facts", concurrency_limit=None)
