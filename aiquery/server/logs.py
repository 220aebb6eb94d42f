"""The log of a serving program: lines on standard error, as text or JSON, written by a thread of their own."""

from __future__ import annotations

import logging
import queue
import sys
import time
from contextlib import contextmanager
from enum import StrEnum
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Lines that may wait to be written; what comes while nobody reads them is counted.
_MOST_WAITING: Final = 20_000
_NAMES: Final = ("aiquery", "uvicorn")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FIELDS: Final = "%(levelname)s %(name)s %(process)d %(message)s"


class LogFormat(StrEnum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


@contextmanager
def written(log_format: LogFormat, *, verbose: bool = False) -> Iterator[None]:
    """Write the log within the `with` block; all of it is written when the block ends."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_formatter(log_format))
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_WAITING)
    handler, listener = _Waiting(waiting), QueueListener(waiting, output)
    for name in _NAMES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("aiquery").setLevel(logging.DEBUG if verbose else logging.INFO)
    listener.start()
    try:
        yield
    finally:
        for name in _NAMES:
            logging.getLogger(name).removeHandler(handler)
        listener.stop()


class _Waiting(QueueHandler):
    """Leaves a record as it is: the thread that writes it makes words of it."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Let a record wait, or count it if too many wait already."""
        try:
            if self._dropped:
                text = "%d lines of the log were left out: nobody read them."
                self.queue.put_nowait(
                    logging.LogRecord("aiquery.server", logging.WARNING, "", 0, text, (self._dropped,), None)
                )
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1


class _Text(logging.Formatter):
    """Begins with the time in UTC; what else stands in a record, a model's own words for one, begins no line."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text, its further lines indented."""
        first, *further = super().format(record).splitlines() or [""]
        return "\n    ".join([first, *further])


def _formatter(log_format: LogFormat) -> logging.Formatter:
    if log_format is LogFormat.TEXT:
        return _Text(_TEXT)
    from pythonjsonlogger.orjson import OrjsonFormatter

    class Lines(OrjsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            # The fields of a request say all that its text does.
            return log_data | {"message": "request"} if "request_id" in log_data else log_data

    return Lines(_FIELDS, timestamp="time", rename_fields={"levelname": "level"})
