"""Requests whose headers have come, and who sends them; their bodies are read when a route knows how much may come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from aiquery_serving.errors import MalformedRequestError, MediaTypeError
from aiquery_serving.rest import bodies
from aiquery_serving.rest.json_text import parsed

if TYPE_CHECKING:
    from aiquery_serving.access import Principal
    from aiquery_serving.messages import Json
    from aiquery_serving.rest.deadlines import Deadlines
    from aiquery_serving.rest.messages import Exchange

#: From this size on a body is parsed on a thread, so that others are answered meanwhile, in bytes.
_LARGE: Final = 256 * 1024
#: What clients call JSON: without a type of their own, curl says form, and fetch says plain text.
_JSON_TYPES: Final = ("json", "x-www-form-urlencoded", "text/plain")


class Arrival:
    """One request, its body unread.

    Attributes:
        receive: Gives the parts of the body, and says when the client goes away.
        headers: Names in lower case.
        who: Who sends it.
        patience: Says when somebody begins to look whether the client is still there.
        exchange: What the log will say of it.
    """

    __slots__ = ("_uploads", "exchange", "headers", "patience", "receive", "who")

    def __init__(
        self,
        receive: bodies.Receive,
        headers: Mapping[bytes, bytes],
        who: Principal,
        exchange: Exchange,
        *,
        uploads: Deadlines,
        patience: Deadlines,
    ) -> None:
        self.receive, self.headers = receive, headers
        self.who, self.exchange = who, exchange
        self._uploads, self.patience = uploads, patience

    async def body(self, cap: int) -> bytes:
        """Return the whole body, of at most `cap` bytes; once.

        Raises:
            As `bodies.read`.
        """
        body = await bodies.read(self.receive, self.headers, cap=cap, uploads=self._uploads)
        self.exchange.bytes_in = len(body)
        return body

    async def document(self, cap: int) -> Json:
        """Return the JSON object in the body, of at most `cap` bytes; once. Its content type may be wrong or missing.

        Raises:
            MalformedRequestError: The body is not one JSON object.
            MediaTypeError: Nor does it claim to be JSON.
            InvalidRequestError: As `bodies.read`.
        """
        body = await self.body(cap)
        try:
            return await asyncio.to_thread(parsed, body) if len(body) > _LARGE else parsed(body)
        except MalformedRequestError as error:
            kind = self.headers.get(b"content-type", b"json").decode("latin-1").lower()
            if any(name in kind for name in _JSON_TYPES):
                raise
            raise MediaTypeError(f"The server reads JSON bodies, not '{kind}'. {error}") from None
