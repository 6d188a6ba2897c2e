"""Names of the models: the actors, `fine@RATIO` for the Fine Actor at another ratio than the merged one, and actors of
other moments and runs, such as `coarse@best`.
"""

from typing import Any

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE, ratio_in
from lite_c2f.chat.engine import Chat
from lite_c2f.chat.other_actors import other_actor_in
from lite_c2f.chat.panes import Pane, pane_of
from lite_c2f.chat.server.errors import ApiError


def names_of(chat: Chat) -> list[str]:
    """The models that are listed: any other ratio is answered too. Models of other servers are not lent."""
    ratios = sorted({*chat.config.fine.ratios, chat.ratio})
    others = [other.name for other in chat.actors.others.listed()]
    return [COARSE, FINE, *(f"{FINE}@{ratio:g}" for ratio in ratios), BASELINE, BASE, *others]


def pane_named(name: str, key: str) -> Pane:
    """The pane, under `key`, of a model's name. Raises ApiError 404 for an unknown one.

    >>> pane_named("fine@0.5", "0")
    Pane(key='0', actor='fine', ratio=0.5)
    """
    if name in (COARSE, FINE, BASELINE, BASE):
        return Pane(key, name)
    if other_actor_in(name):  # whether it is there, `load_other` says
        return pane_of(name)._replace(key=key)
    if (ratio := ratio_in(name)) is None:
        expected = f"{COARSE}, {FINE}, {FINE}@RATIO such as {FINE}@0.5, {BASELINE} or {BASE}"
        raise ApiError(404, f"The model '{name}' does not exist; expected {expected}", "model", "model_not_found")
    return Pane(key, FINE, ratio)


def load_other(chat: Chat, name: str) -> None:
    """Load the residue of an actor of another moment or run. Raises ApiError 404 where that fails."""
    pane = pane_named(name, name)
    for _, message in chat.actors.others.load_for([pane]).failures.values():
        raise ApiError(404, f"The model '{name}' cannot be loaded: {message}", "model", "model_not_found")


def model_body(name: str, created: int, context: int) -> dict[str, Any]:
    """One entry of the list. created: in seconds of the epoch; context: in tokens."""
    return {"id": name, "object": "model", "created": created, "owned_by": "lite_c2f", "max_model_len": context}
