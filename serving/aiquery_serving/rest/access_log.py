"""One line per request in the log, written when its answer has ended: no bodies, no queries, no tokens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from aiquery_serving.rest.messages import Exchange

#: The log's name, for who wants to send it elsewhere.
NAME: Final = "aiquery.access"

_TEXT: Final = (
    "%(method)s %(path)s %(status)d %(ms)s ms in=%(bytes_in)d out=%(bytes_out)d"
    " endpoint=%(endpoint)s served_entity=%(served_entity)s caller=%(caller)s request_id=%(request_id)s"
)
#: What may stand in a path as it is; what could begin a new line may not.
_PLAIN: Final = "/:@!$&'()*+,;="
_LONGEST_PATH: Final = 500


class AccessLog:
    """Writes a line per request, as an observer of the server. Its fields are attributes of the log record."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(NAME)

    def asked(self, exchange: Exchange) -> None:
        """Wait for the end."""

    def ended(self, exchange: Exchange) -> None:
        """Write one line."""
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.handle(line(exchange))


def line(exchange: Exchange) -> logging.LogRecord:
    """Return the log record of a request that is over."""
    fields = {
        "request_id": exchange.id,
        "method": exchange.method,
        "path": _one_word(exchange.path[:_LONGEST_PATH]),
        "endpoint": exchange.endpoint,
        "served_entity": exchange.served_entity,
        "status": exchange.status,
        "ms": round((exchange.ended - exchange.began) * 1000, 3),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "caller": exchange.caller,
    }
    record = logging.LogRecord(NAME, logging.INFO, "", 0, _TEXT, (fields,), None)
    record.__dict__.update(fields)
    return record


def _one_word(path: str) -> str:
    return path if path.isascii() and path.isprintable() and " " not in path else quote(path, safe=_PLAIN)
