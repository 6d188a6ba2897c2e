"""Names of the models of other servers as panes: `server@HOST:PORT/MODEL`, such as `server@127.0.0.1:11434/llama3.2`.

A name is only ever looked up among what the servers list that were given at the start (`remote_servers.py`): no address
is made of it.
"""

import re
from pathlib import PureWindowsPath
from typing import NamedTuple

SERVER = "server"  # the actor of such a pane
MAX_PLACE, MAX_MODEL = 260, 200  # characters
MAX_TITLE = 48  # characters of a model's name in a title
_NAME = re.compile(rf"{SERVER}@([^/@\\\s]{{1,{MAX_PLACE}}})/(.{{1,{MAX_MODEL}}})")
ABOUT = "Another server's model, prompted there, without top-k and repetition penalty; this run's tokens and reward"


class ServerModel(NamedTuple):
    """A model of a server."""

    place: str  # HOST:PORT, without the port that the scheme has anyway
    model: str  # as the server names it


def server_model_in(name: str) -> ServerModel | None:
    """What a name stands for; None for any other name.

    >>> server_model_in("server@127.0.0.1:11434/a/b"), server_model_in("coarse@best")
    (ServerModel(place='127.0.0.1:11434', model='a/b'), None)
    """
    match = _NAME.fullmatch(name)
    return ServerModel(match[1], match[2]) if match and name.isprintable() else None


def name_of_model(place: str, model: str) -> str:
    """The inverse of `server_model_in`, which says whether it is a name."""
    return f"{SERVER}@{place}/{model}"


def title_of_model(model: ServerModel) -> str:
    """The title of its pane; of a file, as llama.cpp's server names its model, the name without folders.

    >>> title_of_model(ServerModel("127.0.0.1:11434", "llama3.2"))
    'llama3.2 at 127.0.0.1:11434'
    >>> title_of_model(ServerModel("127.0.0.1:8080", "/models/qwen/Qwen3-4B-Q4_K_M.gguf"))
    'Qwen3-4B-Q4_K_M.gguf at 127.0.0.1:8080'
    """
    path = PureWindowsPath(model.model)  # which takes both kinds of slashes
    name = path.name if path.root and path.name.strip(". ") else model.model
    name = name if len(name) <= MAX_TITLE else f"...{name[-MAX_TITLE:]}"
    return f"{name} at {model.place}"
