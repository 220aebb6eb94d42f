"""Errors as replies: one shape for all of them (contract B.0)."""

from __future__ import annotations

import math

from aiquery_serving.errors import (
    AiQueryError,
    MethodNotAllowedError,
    RouteNotFoundError,
    SlowRequestError,
    UnauthenticatedError,
)
from aiquery_serving.messages import Json
from aiquery_serving.rest.messages import Headers, Reply

#: The statuses that clients wait after; how long is theirs to read in the `Retry-After`.
_BUSY = (429, 503)
#: How much of a path that is not there is repeated, in characters.
_MOST_SHOWN = 200


def error_document(error: AiQueryError) -> Json:
    """Return the JSON of an error."""
    return {"error_code": error.error_code, "message": str(error)}


def error_reply(error: AiQueryError) -> Reply:
    """Return what a client is told of an error."""
    return Reply.json(error_document(error), error.http_status, _headers(error))


def bug_document(request_id: str) -> Json:
    """Return the JSON of what is our own fault: nothing of the inside."""
    message = f"The server failed at this request; its log tells more under request id {request_id}."
    return {"error_code": AiQueryError.error_code, "message": message}


def no_route(method: str, path: str) -> Reply:
    """Return the answer to a path that the server does not have."""
    shown = path if len(path) <= _MOST_SHOWN else f"{path[:_MOST_SHOWN]}..."
    return error_reply(RouteNotFoundError(f"No API found for '{method} {shown}'."))


def wrong_method(method: str, path: str, *allowed: str) -> Reply:
    """Return the answer to a path that the server has, for other methods."""
    choices = ", ".join(allowed)
    error = MethodNotAllowedError(f"No API found for '{method} {path}': this path takes {choices}.")
    return Reply.json(error_document(error), error.http_status, ((b"allow", choices.encode()),))


def _headers(error: AiQueryError) -> Headers:
    if error.http_status in _BUSY:
        return ((b"retry-after", str(max(1, math.ceil(error.retry_after or 0))).encode()),)
    if isinstance(error, UnauthenticatedError):
        return ((b"www-authenticate", b'Bearer realm="aiquery"'),)
    if isinstance(error, SlowRequestError):
        return ((b"connection", b"close"),)
    return ()
