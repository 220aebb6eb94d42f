"""Events of a streamed answer that hold JSON objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson

from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import Json

if TYPE_CHECKING:
    from aiquery_serving.entities.external.sse import Events

_DONE = b"[DONE]"


def json_events(events: Events, data: bytes, *, who: str) -> Iterator[Json]:
    """Yield the objects of the server-sent events that these bytes complete.

    Args:
        events: Cuts the stream.
        data: The next bytes.
        who: The provider and the model, for messages.

    Raises:
        ProviderResponseError: An event is no JSON object.
    """
    for event in events.feed(data):
        if event.data.strip() != _DONE:
            yield json_object(event.data, who=who)


def json_object(data: bytes, *, who: str) -> Json:
    """Return the JSON object of an event.

    Raises:
        ProviderResponseError: It is none.
    """
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ProviderResponseError(f"{who} streams something that is no chunk of an answer.")
    return found
