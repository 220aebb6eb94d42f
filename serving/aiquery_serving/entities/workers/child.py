"""A model's process: loads one model, answers what comes through the pipe, ends when the pipe does."""

from __future__ import annotations

import base64
import logging
import os
import socket
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aiquery_serving.entities.pyfunc import PyfuncEntity, load_pyfunc
from aiquery_serving.entities.workers.pipe import Pipe, packed, unpacked
from aiquery_serving.errors import AiQueryError, ModelError

if TYPE_CHECKING:
    from aiquery_serving.messages import Json


def main(descriptor: int, threads: int) -> None:
    """Serve until the other side of a socket is gone, whatever the model is doing then."""
    # What the model forks must not keep the socket open after this process.
    os.set_inheritable(descriptor, False)
    os.register_at_fork(after_in_child=partial(os.close, descriptor))
    pipe = Pipe(socket.socket(fileno=descriptor))
    logging.getLogger().addHandler(_ToPipe(pipe))
    with suppress(EOFError):
        Child(pipe, threads).serve()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    # Not sys.exit(): that waits for the model's threads.
    os._exit(0)


class Child:
    """Answers the messages of one pipe with one model, several at once."""

    def __init__(self, pipe: Pipe, threads: int) -> None:
        self._pipe = pipe
        self._threads = ThreadPoolExecutor(threads)
        self._streams: dict[int, SimpleQueue[str]] = {}
        self._entity: PyfuncEntity | None = None

    def serve(self) -> None:
        """Take messages until there are no more.

        Raises:
            EOFError: The other side is gone.
        """
        while True:
            message, data = self._pipe.receive()
            number, order = message["id"], message["do"]
            if order in ("next", "close"):
                if number in self._streams:
                    self._streams[number].put(order)
                continue
            if order == "stream":
                self._streams[number] = SimpleQueue()
            self._threads.submit(self._guarded, getattr(self, f"_{order}"), message, data)

    def _guarded(self, work: Any, message: Json, data: bytes) -> None:
        try:
            work(message, data)
        except OSError:
            return  # nobody is there to be told
        except BaseException as error:  # noqa: BLE001 a model may raise anything, SystemExit too
            with suppress(OSError):
                self._pipe.send({"id": message["id"], "error": _described(error)})

    def _load(self, message: Json, _: bytes) -> None:
        entity = load_pyfunc(Path(message["path"]), name=message["name"], environment={})
        self._entity = entity
        schema, kind = entity.input_schema, entity.output_type
        about = {
            "input_schema": None if schema is None else _text(schema),
            "output_type": None if kind is None else _text(pa.schema([pa.field("answer", kind)])),
            "can_stream": entity.can_stream,
            "mergeable": entity.mergeable,
        }
        self._pipe.send({"id": message["id"], "answer": about})

    def _predict(self, message: Json, data: bytes) -> None:
        answers = self._loaded().predict(unpacked(data), message["params"])
        self._pipe.send({"id": message["id"]}, packed(pa.RecordBatch.from_arrays([answers], ["answer"])))

    def _query(self, message: Json, _: bytes) -> None:
        self._pipe.send({"id": message["id"], "answer": self._loaded().query(message["body"])})

    def _stream(self, message: Json, _: bytes) -> None:
        number = message["id"]
        orders = self._streams[number]
        try:
            with closing(self._loaded().stream(message["body"])) as pieces:
                while orders.get() == "next":
                    piece = next(pieces, None)
                    self._pipe.send({"id": number, "answer": piece})
                    if piece is None:
                        return
        finally:
            del self._streams[number]

    def _loaded(self) -> PyfuncEntity:
        if self._entity is None:
            raise ModelError("The model's process was asked before it had loaded the model.")
        return self._entity


class _ToPipe(logging.Handler):
    """Takes what the model logs to the other side, with its level."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._pipe.send({"level": record.levelno, "line": self.format(record)})


def _described(error: BaseException) -> Json:
    known = isinstance(error, AiQueryError)
    return {
        "class": type(error).__name__ if known else "ModelError",
        "text": str(error) if known else f"The model's process failed: {type(error).__name__}: {error}",
        "trace": "".join(traceback.format_exception(error)),
    }


def _text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode("ascii")
