"""Servers with OpenAI's interface, given at the start: their models, as they list them, can answer in a pane."""

import asyncio
import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import httpx

from lite_c2f.chat.history import History, one_line
from lite_c2f.chat.panes import AnswerForm, ChatSettings, Listed, Pane
from lite_c2f.chat.remote_row import RemoteRow, Server, server_client
from lite_c2f.chat.server_names import (
    MAX_MODEL,
    MAX_PLACE,
    SERVER,
    ServerModel,
    name_of_model,
    server_model_in,
    title_of_model,
)
from lite_c2f.errors import C2FError, ConfigError, ModelError, RunError
from lite_c2f.runtime import chat_servers
from lite_c2f.runtime.chat_servers import ALSO_KEY_VARIABLE
from lite_c2f.runtime.lingering_threads import add_lingering

LIST_SECONDS, REMEMBERED_SECONDS = 3.0, 10.0  # for the list of a server to come; that it is not asked for again
MAX_LIST, MAX_MODELS = 2**20, 400  # bytes of a list, models of it
MAX_AT_ONCE = 16  # answers of servers: each holds a thread and a connection


class _Models(NamedTuple):
    """What a server listed last."""

    models: tuple[str, ...] = ()
    message: str = ""  # why there is none
    at: float = -1e9  # time.monotonic()


class RemoteServers:
    """The servers that a chat may ask; safe in several threads.

    urls: such as http://127.0.0.1:11434/v1, with #NAME for a model that the server does not list; one key, from
    LITE_C2F_ALSO_KEY, is sent to these servers and to no other address. Raises ConfigError for an address or a key that
    is none, and for two addresses at one host and port.
    """

    def __init__(self, urls: Sequence[str] = ()) -> None:
        self._servers = {server.place: server for server in check_servers(urls)}
        self._models = dict.fromkeys(self._servers, _Models())
        self._lock = threading.Lock()  # held while lists are fetched, so that each is fetched once
        self._rows: weakref.WeakSet[RemoteRow] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._servers)

    def listed(self, *, fresh: bool = True) -> list[Listed]:
        """Their models as a visitor chooses from them. fresh: ask the servers, else only what is remembered."""
        if fresh:
            self._fetch(self._servers)
        names = [ServerModel(place, model) for place, known in self._models.items() for model in known.models]
        return [Listed(name_of_model(*each), f"{title_of_model(each)} (another server)") for each in names]

    def messages(self) -> list[str]:
        """A line for each server that listed nothing when it was asked last."""
        return [f"{place}: {known.message}" for place, known in self._models.items() if known.message]

    def check_form(self, panes: Sequence[Pane], form: AnswerForm) -> None:
        """Raise ConfigError for a form that no server's answer can have."""
        if any(pane.actor == SERVER for pane in panes) and (form.begun or form.raw or form.logprobs is not None):
            got = "an answer of another server that is continued, of a raw prompt or with log-probabilities"
            raise ConfigError.because(got, "a whole answer", "ask again")

    def find_for(self, panes: Sequence[Pane]) -> tuple[dict[str, ServerModel], dict[str, tuple[str, str]]]:
        """By pane's key the models that panes name, and finish and message of panes whose models are not there."""
        models, failures = dict[str, ServerModel](), dict[str, tuple[str, str]]()
        for pane in panes:
            if pane.actor == SERVER:
                try:
                    models[pane.key] = self._find(pane.source)
                except C2FError as error:
                    failures[pane.key] = ("error", one_line(error))
        return models, failures

    def ask(
        self,
        model: ServerModel,
        history: History,
        settings: ChatSettings,
        form: AnswerForm,
        on_change: Callable[[], None],
    ) -> RemoteRow:
        """The answer of a model that `find_for` found, begun. Raises C2FError where too many are being written."""
        if sum(row.finish is None for row in self._rows) >= MAX_AT_ONCE:
            raise C2FError.because(f"{MAX_AT_ONCE} answers of other servers", "fewer", "ask again in a moment")
        row = RemoteRow(self._servers[model.place], model.model, history, settings, form.stop, on_change)
        self._rows.add(row)
        row.start()
        return row

    def _find(self, name: str) -> ServerModel:
        """Raises RunError or ModelError for a name that is not listed."""
        model = server_model_in(name)
        if model is None or model.place not in self._servers:
            got = f"'{title_of_model(model) if model else name}' is of no server that was given at the start"
            raise RunError.because(got, "--also with its address", "start the app with it, or remove the pane")
        if model.model not in self._models[model.place].models:
            self._fetch([model.place])
        known = self._models[model.place]
        if known.message:
            raise ModelError.because(f"{model.place}: {known.message}", "a list of its models", "start that server")
        if model.model not in known.models:
            got = f"'{title_of_model(model)}' is not listed there (any more)"
            raise RunError.because(got, "a model that is listed", "choose another, or remove the pane")
        return model

    def _fetch(self, places: Sequence[str] | Mapping[str, Server]) -> None:
        """Ask for the lists that are not remembered."""
        with self._lock:
            now = time.monotonic()
            old = [place for place in places if now - self._models[place].at > REMEMBERED_SECONDS]
            if old:
                servers = [self._servers[place] for place in old]
                lists = map(_with_named, servers, _fetch_lists(servers))
                self._models |= dict(zip(old, lists, strict=True))


def check_servers(urls: Sequence[str]) -> list[Server]:
    """The servers at some addresses. Raises as `RemoteServers` does."""
    key, servers = chat_servers.key_in(ALSO_KEY_VARIABLE) if urls else "", list[Server]()
    for place, (url, models) in chat_servers.checked_places(urls, "--also", ALSO_KEY_VARIABLE).items():
        if server_model_in(name_of_model(place, "x")) is None:
            raise ConfigError.because(f"--also: '{place}'", f"a host of at most {MAX_PLACE} characters", "correct it")
        if not all(server_model_in(name_of_model(place, model)) for model in models):
            expected = f"names of models of at most {MAX_MODEL} characters, without line breaks"
            raise ConfigError.because(f"--also: models of '{place}'", expected, "correct them")
        servers.append(Server(url, place, key, ALSO_KEY_VARIABLE, models))
    return servers


def _with_named(server: Server, listed: _Models) -> _Models:
    """The models that a server listed, after those that were named at the start: some servers list others alone."""
    if not server.models:
        return listed
    return listed._replace(models=tuple(dict.fromkeys((*server.models, *listed.models))), message="")


def _fetch_lists(servers: Sequence[Server]) -> list[_Models]:
    """The models of some servers, asked at the same time.

    In a thread: the caller's may have an event loop already, as in a notebook. It is not waited for to the end, which a
    resolver of names can put off.
    """
    result = Future[list[_Models]]()

    async def fetch() -> None:
        try:
            result.set_result(await _lists(servers))
        except Exception as error:  # such as a proxy in the environment that is none
            result.set_result([_failed(server, error) for server in servers])

    thread = threading.Thread(target=lambda: asyncio.run(fetch()), name="lite_c2f-models", daemon=True)
    add_lingering([thread])
    thread.start()
    return result.result()


async def _lists(servers: Sequence[Server]) -> list[_Models]:
    async with server_client(servers, httpx.Timeout(LIST_SECONDS)) as client:
        return await asyncio.gather(*(_list(client, server) for server in servers))


async def _list(client: httpx.AsyncClient, server: Server) -> _Models:
    """The models of a server."""
    try:
        async with (
            asyncio.timeout(LIST_SECONDS),
            client.stream("GET", f"{server.url}/models", headers=server.headers) as response,
        ):
            content = bytearray()
            async for portion in response.aiter_raw():
                content += portion
                if len(content) > MAX_LIST:
                    raise ValueError(f"more than {MAX_LIST} bytes")
        if response.status_code != 200:
            error = chat_servers.read_error(bytes(content), server.key).message
            raise ValueError(f"HTTP {response.status_code}" + (f": {error}" if error else ""))
        models = [
            model
            for model in dict.fromkeys(_ids(bytes(content)))
            if server_model_in(name_of_model(server.place, model))
        ]
        return _Models(tuple(models[:MAX_MODELS]), "" if models else "it lists no models", time.monotonic())
    except Exception as error:  # of any kind: the lists of the other servers are shown
        return _failed(server, error)


def _failed(server: Server, error: Exception) -> _Models:
    slow = isinstance(error, TimeoutError | httpx.TimeoutException)
    reason = f"no answer within {LIST_SECONDS:g} s" if slow else str(error) or type(error).__name__
    message = chat_servers.one_line(f"its models cannot be listed: {reason}", server.key)
    return _Models((), message, time.monotonic())


def _ids(content: bytes) -> list[str]:
    """The names in a list of models. Raises ValueError for another form than OpenAI's."""
    try:
        body: Any = json.loads(content)
    except RecursionError:
        body = None
    entries = body.get("data") if isinstance(body, dict) else body
    if not isinstance(entries, list):
        raise ValueError("a list in another form than OpenAI's")
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return [name for name in ids if isinstance(name, str)]
