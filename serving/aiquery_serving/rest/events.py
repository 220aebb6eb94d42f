"""Answers piece by piece, as server-sent events: `data:` lines alone, and `[DONE]` at the end (contract D.5)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import orjson

from aiquery_serving.errors import AiQueryError, CancelledCallError
from aiquery_serving.rest.deadlines import Deadlines, Within
from aiquery_serving.rest.replies import bug_document, error_document

if TYPE_CHECKING:
    from aiquery_serving.messages import Json
    from aiquery_serving.rest.messages import Exchange, Headers, Send
    from aiquery_serving.streaming import Streamed

_logger = logging.getLogger("aiquery.rest")

#: Nobody between us and the client may keep events back, or keep them.
_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_DONE: Final = b"data: [DONE]\n\n"


class Begun:
    """A streamed answer whose first chunk is there: what fails from now on fails in mid-stream."""

    __slots__ = ("first", "streamed")

    def __init__(self, streamed: Streamed, first: Json | None) -> None:
        self.streamed, self.first = streamed, first


async def begun(streamed: Streamed) -> Begun:
    """Wait for the first chunk of an answer; the answer is closed when there is none to be had.

    Raises:
        AiQueryError: The model failed before its first chunk.
    """
    try:
        return Begun(streamed, await anext(streamed, None))
    except BaseException:
        await streamed.aclose()
        raise


class EventStream:
    """Sends the chunks of one answer as events, each when the client has taken those before.

    Args:
        send: Sends parts of the answer.
        transfers: Says by when a client has to make room for the next event.
    """

    def __init__(self, send: Send, transfers: Deadlines) -> None:
        self._send = send
        self._transfers = transfers
        self.bytes_out = 0

    async def carry(self, answer: Begun, exchange: Exchange, headers: Headers) -> None:
        """Send a whole answer, which is closed in the end.

        An error of the model becomes the last event, without `[DONE]` after it.

        Raises:
            CancelledCallError: The client stopped reading.
        """
        async with answer.streamed:
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *headers]})
            exchange.status = 200
            await self._event(await self._rest(answer, exchange), more=False)

    async def _rest(self, answer: Begun, exchange: Exchange) -> bytes:
        """Send all chunks, and return the event that comes after the last."""
        try:
            if answer.first is not None:
                await self._event(event(answer.first))
            async for chunk in answer.streamed:
                await self._event(event(chunk))
        except CancelledCallError:
            raise
        except AiQueryError as error:
            return _failed(error_document(error))
        except Exception:
            _logger.exception("Request %s failed while its answer was under way.", exchange.id)
            return _failed(bug_document(exchange.id))
        return _DONE

    async def _event(self, text: bytes, *, more: bool = True) -> None:
        self.bytes_out += len(text)
        try:
            with Within(self._transfers):
                await self._send({"type": "http.response.body", "body": text, "more_body": more})
        except TimeoutError:
            raise CancelledCallError(f"The client took no event for {self._transfers.seconds:g} s.") from None


def event(document: Json) -> bytes:
    """Return a JSON object as one event."""
    return b"data: " + orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n\n"


def _failed(error: dict[str, Any]) -> bytes:
    # OpenAI's clients look for `error`, everybody else's for `error_code`.
    return event({"error": {"message": error["message"], "code": error["error_code"]}, **error})
