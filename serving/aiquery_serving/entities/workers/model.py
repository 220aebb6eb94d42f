"""Custom models in processes of their own: the doors, and what becomes of a crash."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aiquery_serving.entities.microbatch import Microbatcher
from aiquery_serving.entities.workers.crew import Crew
from aiquery_serving.entities.workers.environments import model_python
from aiquery_serving.entities.workers.pipe import packed, unpacked
from aiquery_serving.entities.workers.place import out_of_service
from aiquery_serving.entities.workers.process import ModelProcess, OnLine, ProcessEndedError, Program
from aiquery_serving.entities.workers.replicas import Replicas
from aiquery_serving.errors import ModelCrashError

if TYPE_CHECKING:
    import pyarrow as pa

    from aiquery_serving.messages import Json

T = TypeVar("T")

_log = logging.getLogger("aiquery.models")


class ProcessModel:
    """A custom model in processes of its own (`messages.BatchEntity`, `messages.StreamingModel`).

    Requests go to the processes of a `crew.Crew`, which grows and shrinks with them. When a process ends, what it
    was asked is asked once more, elsewhere if there is another process, each request alone: who is in flight when
    that ends too is the one that did it.

    Attributes:
        can_stream: Whether the model can answer piece by piece.
        mergeable: Whether requests that come together may be answered together.
    """

    def __init__(self, program: Program, replicas: Replicas, idle_seconds: float) -> None:
        """Start the first processes and load the model in them.

        Raises:
            ModelError: It does not load; with the last lines that the process wrote.
        """
        self.name = program.name
        self._crew = Crew(program, replicas, idle_seconds)
        about = self._crew.about
        self.input_schema, self.output_type = about.input_schema, about.output_type
        self.can_stream, self.mergeable = about.can_stream, about.mergeable
        self._batcher = Microbatcher(
            self._query,
            together=partial(self._query, tries=1),
            merges=self.mergeable,
            batches=replicas.most,
            threads=replicas.most * replicas.each,
        )

    async def aquery(self, payload: Mapping[str, Any]) -> Json:
        """Do as `query`, for callers on an event loop: in batches where that pays (`microbatch.Microbatcher.ask`).

        Raises:
            As `query`.
        """
        with self._crew.counted():
            return await self._batcher.ask(payload)

    def predict(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None = None) -> pa.Array:
        """Return one answer per row.

        Raises:
            InvalidRequestError: The rows do not fit the model's signature.
            ModelCrashError: The process ended over them, twice.
            ModelError: The model raised, or gave another number of answers than rows.
        """
        message = {"do": "predict", "params": None if params is None else dict(params)}
        data = packed(rows)
        with self._crew.counted():
            return self._tried(lambda process: unpacked(process.ask(message, data)[1]).column(0))

    def query(self, payload: Mapping[str, Any]) -> Json:
        """Answer one REST request body of contract D.1.

        Raises:
            MalformedRequestError: The body has not exactly one of the four input forms.
            InvalidRequestError: The input does not fit the model's signature.
            ModelCrashError: The process ended over it, twice.
            ModelError: The model raised.
        """
        with self._crew.counted():
            return self._query(payload)

    def stream(self, payload: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Yield the pieces of one answer. Closing it tells the model to stop.

        Raises:
            As `query`; an answer that has begun is not tried again.
        """
        with self._crew.counted():
            yield from self._pieces(payload)

    def retire(self, *, at_once: bool = False) -> None:
        """End the processes as soon as they have answered what they were asked, or within a second."""
        self._crew.retire(at_once=at_once)

    def close(self) -> None:
        """End the processes within a second; who waits for an answer gets an error."""
        self._crew.close()

    def _query(self, payload: Mapping[str, Any], *, tries: int = 2) -> Json:
        """Answer a body; `tries` counts the processes it may end."""
        message = {"do": "query", "body": payload}
        answer: Json = self._tried(lambda process: process.ask(message)[0]["answer"], tries)
        return answer

    def _pieces(self, payload: Mapping[str, Any]) -> Generator[Json, None, None]:
        for alone in (False, True):
            begun = False
            try:
                with self._crew.lent(alone=alone) as process, closing(process.stream(payload)) as pieces:
                    for piece in pieces:
                        begun = True
                        yield piece
            except ProcessEndedError as ended:
                if begun or alone:
                    raise self._crash(ended, 1 + alone) from ended
            else:
                return

    def _tried(self, ask: Callable[[ModelProcess], T], tries: int = 2) -> T:
        """Ask a process; if it ends, another one, alone."""
        for alone in (False, True)[:tries]:
            try:
                with self._crew.lent(alone=alone) as process:
                    return ask(process)
            except ProcessEndedError as ended:
                last = ended
        raise self._crash(last, tries) from last

    def _crash(self, ended: ProcessEndedError, tries: int) -> Exception:
        if self._crew.closed:
            return out_of_service(self.name)
        often = f", {tries} times" if tries > 1 else ""
        return ModelCrashError(f"Model {self.name!r} crashed over this request{often}: {ended}")


def load_in_process(
    path: Path,
    *,
    name: str,
    environment: Mapping[str, str],
    on_line: OnLine | None = None,
    replicas: Replicas = Replicas(),  # noqa: B008 - it never changes
    idle_seconds: float = math.inf,
    home: Path | None = None,
) -> ProcessModel:
    """Load the model in a folder that `mlflow.pyfunc` wrote, in processes of its own.

    Args:
        path: The folder.
        name: What errors call the model.
        environment: Variables that its processes have beside those of this one; this one's stay as they are. With
            `AIQUERY_ENV_MANAGER` the processes run in a virtual environment of the model's own requirements.
        on_line: Called with level and text of each line that the model prints or logs, on a thread; without,
            lines go to the logger `aiquery.models`.
        replicas: How many processes, and how many requests each answers at once; more wait.
        idle_seconds: After how long without a request a process ends that need not run; the next one starts another.
        home: The folder below which virtual environments are kept; the user's cache unless given.

    Raises:
        ConfigurationError: The model's environment cannot be what is asked for; the message says why.
        ModelError: The environment cannot be built, or the model does not load; with the last lines of that.
    """
    told = on_line or (lambda level, line: _log.log(level, "%s: %s", name, line))
    python = model_python(path, name=name, environment=environment, say=partial(told, logging.INFO), home=home)
    return ProcessModel(Program(path, name, dict(environment), replicas.each, told, python), replicas, idle_seconds)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
