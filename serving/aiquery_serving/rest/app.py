"""The server's ASGI application: who asks, which route, one reply or one stream, and nothing but coded errors.

No framework stands between a query and its endpoint: all that every request pays for is in this module.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aiquery_serving.errors import AiQueryError, CancelledCallError
from aiquery_serving.rest import data_plane
from aiquery_serving.rest.arrivals import Arrival
from aiquery_serving.rest.bodies import CAP, Receive
from aiquery_serving.rest.callers import caller
from aiquery_serving.rest.deadlines import Deadlines
from aiquery_serving.rest.departures import UNWATCHED, Attended
from aiquery_serving.rest.discovery import discovered
from aiquery_serving.rest.events import Begun, EventStream
from aiquery_serving.rest.messages import Exchange, Reply, Request, Send
from aiquery_serving.rest.replies import bug_document, error_reply, no_route, wrong_method

if TYPE_CHECKING:
    from aiquery_serving.rest.serves import Serves

Scope: TypeAlias = Mapping[str, Any]

_logger = logging.getLogger("aiquery.rest")

#: What a client may call its request; anything else could be made to look like another line of a log.
_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_CONTROL_PLANE: Final = ("/api/2.0/", "/openapi.json")
#: What nginx calls the status of an answer that nobody waited for.
_GONE: Final = 499


class App:
    """Serves HTTP (ASGI 3). Belongs to the event loop of the gateway.

    Attributes:
        closing: Set when no new requests should come: `/ready` says so, and everything is still answered.
    """

    def __init__(self, serves: Serves) -> None:
        self.closing = False
        self._serves = serves
        self._transfers, self._patience = Deadlines(serves.body_seconds), Deadlines(UNWATCHED)
        self._run = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        exchange = Exchange(self._id(headers), scope["method"], scope["path"], perf_counter())
        try:
            answer = await self._answered(headers, scope, receive, exchange)
            if isinstance(answer, Reply):
                await _send_reply(answer, exchange, send)
            else:
                await self._send_stream(answer, exchange, receive, send)
        finally:
            exchange.ended = perf_counter()
            for observer in self._serves.observers:
                observer.ended(exchange)

    async def _answered(
        self, headers: Mapping[bytes, bytes], scope: Scope, receive: Receive, exchange: Exchange
    ) -> data_plane.Answer:
        try:
            return await self._routed(headers, scope, receive, exchange)
        except AiQueryError as error:
            exchange.served_entity = error.served_entity
            return error_reply(error)
        except Exception:
            _logger.exception("Request %s failed.", exchange.id)
            return Reply.json(bug_document(exchange.id), 500)

    async def _routed(
        self, headers: Mapping[bytes, bytes], scope: Scope, receive: Receive, exchange: Exchange
    ) -> data_plane.Answer:
        method, path = exchange.method, exchange.path.rstrip("/")
        if (asked := data_plane.target(path)) is not None:
            if method != "POST":
                return wrong_method(method, path, "POST")
            return await data_plane.answer(asked, self._arrival(headers, receive, exchange), self._serves)
        if (reply := discovered(method, path, closing=self.closing, warming=self._serves.warming())) is not None:
            return reply
        if path.startswith(_CONTROL_PLANE):
            return await self._controlled(self._arrival(headers, receive, exchange), scope, path)
        if path == "/metrics":
            return await self._metrics(self._arrival(headers, receive, exchange))
        return no_route(method, path)

    def _arrival(self, headers: Mapping[bytes, bytes], receive: Receive, exchange: Exchange) -> Arrival:
        who = caller(headers, self._serves)
        exchange.caller = who.name
        return Arrival(receive, headers, who, exchange, uploads=self._transfers, patience=self._patience)

    async def _controlled(self, arrival: Arrival, scope: Scope, path: str) -> Reply:
        from aiquery_serving.rest import control_routes

        exchange = arrival.exchange
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in arrival.headers.items()}
        request = Request(exchange.method, path, headers, await arrival.body(CAP), scope["scheme"])
        reply = await control_routes.handle(request, arrival.who, self._serves)
        return no_route(exchange.method, path) if reply is None else reply

    async def _metrics(self, arrival: Arrival) -> Reply:
        if arrival.exchange.method not in ("GET", "HEAD"):
            return wrong_method(arrival.exchange.method, "/metrics", "GET", "HEAD")
        if self._serves.metrics is None:
            return no_route(arrival.exchange.method, "/metrics")
        self._serves.access.require_admin(arrival.who, "read the metrics of all endpoints")
        text = await asyncio.to_thread(self._serves.metrics.export_all)
        return Reply(200, text, "text/plain; version=0.0.4; charset=utf-8")

    async def _send_stream(self, answer: Begun, exchange: Exchange, receive: Receive, send: Send) -> None:
        exchange.served_entity = answer.streamed.served_entity
        headers = ((b"x-request-id", exchange.id.encode()), *data_plane.served_by(exchange.served_entity))
        events = EventStream(send, self._transfers)
        try:
            with Attended(receive, self._patience):
                await events.carry(answer, exchange, headers)
        except CancelledCallError:
            exchange.status = _GONE
        finally:
            exchange.bytes_out = events.bytes_out

    def _id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _SANE_ID.fullmatch(given):
            return given.decode()
        return f"{self._run}-{next(self._numbers):x}"

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.closing = True
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _send_reply(reply: Reply, exchange: Exchange, send: Send) -> None:
    exchange.status, exchange.bytes_out = reply.status, len(reply.body)
    await reply.send(send, (b"x-request-id", exchange.id.encode()))


def create_app(serves: Serves) -> App:
    """Return the ASGI application that serves a workspace.

    Args:
        serves: What it serves, and to whom.
    """
    return App(serves)
