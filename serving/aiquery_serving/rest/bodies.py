"""Request bodies: read whole, within a size and a time, and uncompressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

from aiquery_serving.errors import (
    CancelledCallError,
    MalformedRequestError,
    MediaTypeError,
    PayloadTooLargeError,
    SlowRequestError,
)
from aiquery_serving.rest.deadlines import Deadlines, Within

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

#: What a custom model may be sent in one request, and what everything else may, in bytes (contract F).
CUSTOM_CAP: Final = 16 * 1024 * 1024
CAP: Final = 4 * 1024 * 1024

_GZIP = frozenset({b"gzip", b"x-gzip"})


async def read(receive: Receive, headers: Mapping[bytes, bytes], *, cap: int, uploads: Deadlines) -> bytes:
    """Return a request's body, without its compression.

    Args:
        receive: Gives the parts of the body.
        headers: Names in lower case.
        cap: The most bytes, before and after uncompressing.
        uploads: Says by when the last part has to be there.

    Raises:
        PayloadTooLargeError: The body is longer; as soon as that is known.
        MediaTypeError: It is compressed in a way that is not read here.
        MalformedRequestError: It is not compressed as the headers say.
        SlowRequestError: Its end did not come in time.
        CancelledCallError: The client went away before its end.
    """
    refuse_larger(int(headers.get(b"content-length", b"0")), cap)
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in _GZIP and encoding != b"identity":
        raise MediaTypeError(
            f"The server does not read bodies of Content-Encoding '{encoding.decode('latin-1')}': send them plain "
            "or as gzip."
        )
    try:
        with Within(uploads):
            body = await _received(receive, cap)
    except TimeoutError:
        raise SlowRequestError(f"The request body did not arrive within {uploads.seconds:g} s.") from None
    return await asyncio.to_thread(_gunzipped, body, cap) if encoding in _GZIP else body


def refuse_larger(length: int, cap: int) -> None:
    """Let a body pass that is within a size.

    Raises:
        PayloadTooLargeError: It is larger.
    """
    if length > cap:
        raise PayloadTooLargeError(
            f"The request body is larger than {cap // (1024 * 1024)} MiB, the most that can be sent here in one "
            "request: send less at a time."
        )


async def _received(receive: Receive, cap: int) -> bytes:
    message = await receive()
    parts: list[bytes] = []
    length = 0
    while message["type"] == "http.request":
        part: bytes = message.get("body", b"")
        length += len(part)
        refuse_larger(length, cap)
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)
        message = await receive()
    raise CancelledCallError("The client went away before it had sent the whole request.")


def _gunzipped(body: bytes, cap: int) -> bytes:
    """Uncompress a body, and stop where it turns out to be larger than it may be."""
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = unzip.decompress(body, cap + 1)
    except zlib.error as error:
        raise MalformedRequestError(f"The request body is not gzip, as its Content-Encoding says: {error}.") from None
    refuse_larger(len(plain), cap)
    if not unzip.eof or unzip.unused_data:
        raise MalformedRequestError(
            "The request body is not one whole gzip stream: it is cut off, or more follows after it."
        )
    return plain
