"""What anybody may ask a server: whether it lives, whether it takes requests, what kind of host it is."""

from __future__ import annotations

from typing import Final

from aiquery_serving.rest.messages import Reply
from aiquery_serving.rest.replies import wrong_method

#: Every client of the Databricks SDK asks this first, and waits up to 300 s for an answer (contract G.1).
_CONFIG: Final = "/.well-known/databricks-config"
_PATHS: Final = frozenset({_CONFIG, "/health", "/ready"})


def discovered(method: str, path: str, *, closing: bool, warming: bool) -> Reply | None:
    """Answer what needs no token; None when the path is not of that kind.

    Args:
        method: In upper case.
        path: The path.
        closing: Whether the server takes no new requests any more.
        warming: Whether endpoints in service are still loading.
    """
    if path not in _PATHS:
        return None
    if method not in ("GET", "HEAD"):
        return wrong_method(method, path, "GET", "HEAD")
    if path == _CONFIG:
        return Reply.json({})
    if path == "/ready" and (closing or warming):
        return Reply.json({"status": "closing" if closing else "loading"}, 503, ((b"retry-after", b"1"),))
    return Reply.json({"status": "ok"})
