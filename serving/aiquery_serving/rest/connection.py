"""HTTP connections that cannot be held open, flooded or confused: uvicorn's, with limits and coded refusals.

Theory of operation. A client owes us something from when it connects, or begins a request, until the request's
headers are complete; and while it leaves bytes untaken, or goes on sending a body that was answered already. When that
began is all that a connection notes by itself; the server looks at every connection once a second (`tick`) and ends
those that have owed for too long. How long a wanted body may take is for whoever reads it to say.

What a client sent since something last came of it is counted, too: a head, or what stands between the bytes of a
body, can be endless, and the parser keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from aiquery_serving.errors import MalformedRequestError, OverloadedError, SlowRequestError
from aiquery_serving.rest.corked import Corked
from aiquery_serving.rest.messages import Reply
from aiquery_serving.rest.replies import error_document, error_reply

if TYPE_CHECKING:
    import asyncio

#: The most bytes of a request's line and headers together.
HEAD_CAP: Final = 64 * 1024
#: Seconds for which a client may leave what it was sent untaken, while more waits.
STALLED_SECONDS: Final = 120.0
#: How many times as many connections as are served may be open: beyond, they are not even told.
_REFUSED: Final = 2
#: Requests whose headers take more than the cap.
_HEAD_TOO_LARGE: Final = 431


class _LargeHeadError(Exception):
    """The headers of a request are complete, and too large."""


class _Trailers(list[tuple[bytes, bytes]]):
    """Takes what follows a body like headers: to count it among those would let it say who asks."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        """Let go of a header."""


class Connection(HttpToolsProtocol):
    """One client's connection. The config's `limit_concurrency` is how many are served at once."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._most = self.limit_concurrency
        # Both are done here in other ways.
        self.limit_concurrency = None
        self.access_log = False
        #: Whether the next bytes belong to a request's head, and not to its body.
        self._heading = True
        self._owes_since: float | None = None
        self._loose = 0

    def tick(self, now: float, patience: float) -> None:
        """End the connection if the client has owed something for too long.

        Args:
            now: The loop's time.
            patience: For how many seconds it may owe a request's headers.
        """
        if self._answering():
            patience = STALLED_SECONDS
            if not self.flow.write_paused:
                self._owes_since = None
                return
        if self._owes_since is None:
            if self.flow.write_paused or self.transport.is_closing() or not self._heading:
                self._owes_since = now
        elif now - self._owes_since > patience:
            self._expire(patience)

    def cut_off(self) -> None:
        """Hang up on a client, answered or not; it is told if its answer has not begun."""
        if self._answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if not self.cycle.response_started and not self.pipeline:
                self._write(error_reply(OverloadedError("The server closes: ask again when it is back.")))
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the first request."""
        super().connection_made(Corked(transport, self.loop))
        self._owes_since = self.loop.time()
        if self._most is not None and len(self.connections) > _REFUSED * self._most:
            transport.abort()

    def resume_writing(self) -> None:
        """Note that the client takes what it is sent."""
        self._owes_since = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take what a client sent."""
        if self._heading and self._owes_since is None:
            self._owes_since = self.loop.time()
        self._loose += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._stay_as_we_are()
        except httptools.HttpParserError as error:
            self._reject(_large_head() if isinstance(error.__context__, _LargeHeadError) else _malformed(error))
        else:
            if self._loose > HEAD_CAP:
                self._reject(_large_head())

    def on_headers_complete(self) -> None:
        """Begin to answer a request."""
        if self._loose > HEAD_CAP and self._head_bytes() > HEAD_CAP:
            raise _LargeHeadError
        self._heading, self._owes_since, self._loose = False, None, 0
        super().on_headers_complete()
        self.headers = _Trailers()

    def on_body(self, body: bytes) -> None:
        """Take a part of a request's body."""
        self._loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request is complete."""
        self._heading, self._loose = True, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        crowded = self._most is not None and len(self.connections) > self._most
        super()._start_asgi_task(cycle, _busy if crowded else app)

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _stay_as_we_are(self) -> None:
        # The request was answered as any other, or is being answered. What follows it may be of any protocol.
        if self._answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _expire(self, patience: float) -> None:
        if self._heading and self._loose and not self._answering() and not self.transport.is_closing():
            late = SlowRequestError(f"The headers of the request did not arrive within {patience:g} s.")
            self._write(error_reply(late))
            self.transport.close()
            self._owes_since = None
        else:
            self.transport.abort()

    def _reject(self, reply: Reply) -> None:
        """Answer what is no request, and end the connection; the answer to what came before is not cut off."""
        if self.pipeline:
            self.transport.abort()
        elif not self._answering():
            self._write(reply)
            self.transport.close()
        elif self.cycle.more_body and not self.cycle.response_started:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._write(reply)
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _write(self, reply: Reply) -> None:
        self.transport.write(b"".join([STATUS_LINE[reply.status], *_lines(reply), b"\r\n", reply.body]))


def _lines(reply: Reply) -> list[bytes]:
    # Some refusals say themselves that the connection ends.
    headers = dict(reply.head((b"connection", b"close")))
    return [b"%b: %b\r\n" % header for header in headers.items()]


def _malformed(error: httptools.HttpParserError) -> Reply:
    reason = "" if isinstance(error, httptools.HttpParserCallbackError) else f" ({error})"
    return error_reply(MalformedRequestError(f"This is not a request of HTTP/1.1 that the server understands{reason}."))


def _large_head() -> Reply:
    error = MalformedRequestError(f"The headers of the request are larger than {HEAD_CAP // 1024} KiB.")
    return Reply.json(error_document(error), _HEAD_TOO_LARGE)


async def _busy(_scope: Any, _receive: Any, send: Any) -> None:
    error = OverloadedError("The server has as many connections as it serves at once: try again soon.")
    await error_reply(error).send(send, (b"connection", b"close"))
