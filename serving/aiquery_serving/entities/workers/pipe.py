"""Messages between this process and a model's: a JSON object, and bytes beside it where it is about rows."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiquery_serving.messages import Json

#: The lengths of the JSON and of the bytes.
_LENGTHS = struct.Struct("!IQ")


class Pipe:
    """One end of a socket pair. Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._reader = end.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: Mapping[str, Any], data: bytes | pa.Buffer = b"") -> None:
        """Send a message; waits for as long as the other side does not read.

        Raises:
            OSError: The other side is gone.
            TypeError: The message is not JSON.
        """
        text = orjson.dumps(message)
        view = memoryview(data)
        with self._sending:
            self._socket.sendall(_LENGTHS.pack(len(text), view.nbytes) + text)
            if view.nbytes:
                self._socket.sendall(view)

    def receive(self) -> tuple[Json, bytes]:
        """Wait for the next message.

        Raises:
            EOFError: The other side is gone.
        """
        size, more = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        return orjson.loads(self._exactly(size)), self._exactly(more)

    def hang_up(self) -> None:
        """End what both sides wait for. `close` is the receiver's."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._reader.close()
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        try:
            found = self._reader.read(count)
        except OSError as error:
            raise EOFError from error
        if len(found) < count:
            raise EOFError
        return found


def packed(rows: pa.RecordBatch) -> pa.Buffer:
    """Return a batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue()


def unpacked(data: bytes) -> pa.RecordBatch:
    """Return the batch of an Arrow IPC stream, without a copy."""
    return pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch()
