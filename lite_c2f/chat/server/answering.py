"""Answers to one request, between the event loop and the answering thread: no thread waits for them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.engine import Chat
from lite_c2f.chat.server.errors import ApiError
from lite_c2f.chat.server.questions import Asked
from lite_c2f.chat.stream import AnswerStream
from lite_c2f.errors import C2FError


class Answers:
    """The answers to a request's questions, as they grow. Made and read on the event loop.

    client: whose turn in the queue they take. Raises ApiError 429 where too many questions wait already.
    """

    def __init__(self, chat: Chat, questions: Sequence[Asked], client: str) -> None:
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:  # on the answering thread
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(changed.set)

        self.questions = {asked.pane.key: asked for asked in questions}
        self.streams: dict[str, AnswerStream] = {}
        self._changed = changed
        try:
            for key, asked in self.questions.items():
                self.streams[key] = chat.stream(
                    asked.turns, [asked.pane], asked.settings, asker=client, form=asked.form, on_change=wake
                )
        except C2FError as error:
            self.close()
            raise ApiError(429, str(error), code="rate_limit_exceeded", headers={"retry-after": "1"}) from None

    async def growing(self) -> AsyncIterator[list[Reply]]:
        """New replies, several for each question; the last one of each has its finish."""
        while not all(stream.exhausted for stream in self.streams.values()):
            if replies := [reply for stream in self.streams.values() for reply in stream.poll()]:
                yield replies
            else:
                await self._changed.wait()
            self._changed.clear()

    async def finished(self) -> list[Reply]:
        """The last reply of each question, in their order."""
        while not all(stream.finished for stream in self.streams.values()):
            await self._changed.wait()
            self._changed.clear()
        return [reply for stream in self.streams.values() for reply in stream.poll()]

    def close(self) -> None:
        """End the answers; their slots are free after the token that is being generated."""
        for stream in self.streams.values():
            stream.close()

    @contextlib.asynccontextmanager
    async def closed_on_disconnect(self, receive: Receive) -> AsyncIterator[None]:
        """Inside the block the answers end when the client leaves; after it they have ended."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.close()

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            self.close()
