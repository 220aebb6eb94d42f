"""What travels inside the server: a request that was read whole, the reply to it, and what both came to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

import orjson

from aiquery_serving.messages import Json
from aiquery_serving.rest.json_text import parsed

#: Headers as ASGI wants them: names in lower case.
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
#: Sends a message of ASGI's.
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, with its whole body.

    Attributes:
        method: In upper case.
        path: Without the query, percent-decoded.
        headers: Names in lower case; of a repeated header the last.
        body: As it was before the client compressed it.
        scheme: `http` or `https`.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    scheme: str = "http"

    def json(self) -> Json:
        """Return the JSON object in the body.

        Raises:
            MalformedRequestError: The body is not one JSON object; the message says why.
        """
        return parsed(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whole."""

    status: int = 200
    body: bytes = b"{}"
    media_type: str = "application/json"
    headers: Headers = ()

    @classmethod
    def json(cls, document: Any, status: int = 200, headers: Headers = ()) -> Self:
        """Return a JSON answer. Numbers that JSON lacks (NaN, infinity) become null."""
        return cls(status, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), "application/json", headers)

    def head(self, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Return all its headers, and more."""
        length = str(len(self.body)).encode()
        return [(b"content-type", self.media_type.encode()), (b"content-length", length), *self.headers, *more]

    async def send(self, send: Send, *more: tuple[bytes, bytes]) -> None:
        """Send it as ASGI wants it, with more headers."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.head(*more)})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as logs and metrics see them: no bodies, no headers, no query.

    `endpoint` and `served_entity` are empty where a request is for none. `status` is 499 when the client
    went away, and 0 until it is known. `began` and `ended` are seconds of `time.perf_counter`.
    """

    id: str
    method: str
    path: str
    began: float
    ended: float = 0.0
    endpoint: str = ""
    served_entity: str = ""
    caller: str = ""
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Observer(Protocol):
    """Who is told of every exchange, on the event loop: so be quick, and never raise."""

    def asked(self, exchange: Exchange) -> None:
        """Note that a request for `exchange.endpoint` is about to be answered. Not called for other requests."""
        ...

    def ended(self, exchange: Exchange) -> None:
        """Note that an exchange is over. Called once for every request, whatever became of it."""
        ...
