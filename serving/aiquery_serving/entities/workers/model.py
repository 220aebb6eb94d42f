"""Custom models in processes of their own: who answers which request, and what becomes of a crash."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiquery_serving.entities.microbatch import Microbatcher
from aiquery_serving.entities.workers.pipe import packed, unpacked
from aiquery_serving.entities.workers.process import About, ModelProcess, OnLine, ProcessEndedError, Program
from aiquery_serving.errors import ModelCrashError, ModelError, OverloadedError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from aiquery_serving.messages import Json

T = TypeVar("T")

#: Requests that one process answers at once, unless the load says otherwise.
CONCURRENCY = 16
#: The longest wait before a process that keeps ending is started again, in seconds.
_LONGEST_WAIT = 10.0

_log = logging.getLogger("aiquery.models")


def restart_wait(crashes: int) -> float:
    """Return the seconds before a process is started again, when so many have ended and answered nothing.

    Examples:
        >>> [restart_wait(crashes) for crashes in (0, 1, 2, 3, 4, 20)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 10.0]
    """
    # The first two ends may be one request's, which is tried twice.
    return min(0.5 * 2 ** min(crashes - 3, 10), _LONGEST_WAIT) if crashes > 2 else 0.0  # noqa: PLR2004


class _Replica:
    """A place for a process: empty until somebody asks, and again after a crash.

    Attributes:
        process: What runs there.
        in_flight: Requests that it is asked.
        used: When the last one ended, as `time.monotonic` has it.
        crashes: Processes that have ended here since one gave an answer.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self.crashes = 0
        self.process: ModelProcess | None = None
        self.in_flight = 0
        self.used = 0.0

    def running(self) -> ModelProcess:
        """Return the process, started if there is none.

        Raises:
            ModelError: The model does not load.
            OverloadedError: The model was taken out of service.
        """
        with self._starting:
            process = self.process  # whoever stops this takes it away meanwhile
            if process is not None and process.ended:
                self._count_crash()
            if process is None or process.ended:
                self.start()
                process = self.process
            if process is None:
                raise _out_of_service(self._program.name)
            return process

    def start(self) -> About | None:
        """Start a process and load the model, or do nothing once stopped."""
        if self._stopped.wait(restart_wait(self.crashes)):
            return None
        self.used = time.monotonic()
        process = self.process = ModelProcess(self._program)
        try:
            if self._stopped.is_set():  # since the look above
                self.rest()
                return None
            return process.load()
        except BaseException as error:
            process.close()
            self._count_crash()
            if isinstance(error, ModelError) and self._stopped.is_set():
                return None
            raise

    def stop(self) -> None:
        """End the process for good."""
        self._stopped.set()
        self.rest()

    def rest(self) -> None:
        """End the process; the next request starts another."""
        process = self.process
        if process is not None:
            process.close()
            self.process = None

    def _count_crash(self) -> None:
        self.crashes += 1
        self.process = None


class ProcessModel:
    """A custom model in processes of its own (`messages.BatchEntity`, `messages.StreamingModel`).

    A request goes to the process with the fewest, and waits while all have as many as they take. When a
    process ends, what it was asked is asked once more, each request alone on a process: who is in flight
    when that ends too is the one that did it. A process is started again when it is needed.

    Attributes:
        can_stream: Whether the model can answer piece by piece.
        mergeable: Whether requests that come together may be answered together.
        aquery: `query` for callers on an event loop, in batches where that pays (`microbatch.Microbatcher.ask`).
    """

    def __init__(self, program: Program, replicas: int, idle_seconds: float | None = None) -> None:
        """Start the processes and load the model in all of them.

        With `idle_seconds`, those that nobody has asked for so long are ended.

        Raises:
            ModelError: It does not load; with the last lines that the process wrote.
        """
        self.name = program.name
        self._room = program.threads
        self._replicas = [_Replica(program) for _ in range(replicas)]
        self._changed = threading.Condition()
        self._suspects = 0
        self._retired = self._closed = False
        self._end = threading.Event()
        try:
            with ThreadPoolExecutor(replicas) as starters:
                about, *_ = starters.map(_Replica.start, self._replicas)
        except BaseException:
            self.close()
            raise
        assert about is not None  # noqa: S101 - nobody has stopped them yet
        self.input_schema, self.output_type = about.input_schema, about.output_type
        self.can_stream, self.mergeable = about.can_stream, about.mergeable
        once = partial(self.query, tries=1)
        self.aquery = Microbatcher(
            self.query, together=once, merges=self.mergeable, batches=replicas, threads=replicas * program.threads
        ).ask
        if idle_seconds is not None:
            name = f"aiquery-idle-{self.name}"
            threading.Thread(target=self._watch_idle, args=(idle_seconds,), name=name, daemon=True).start()

    def predict(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None = None) -> pa.Array:
        """Return one answer per row.

        Raises:
            InvalidRequestError: The rows do not fit the model's signature.
            ModelCrashError: The process ended over them, twice.
            ModelError: The model raised, or gave another number of answers than rows.
        """
        message = {"do": "predict", "params": None if params is None else dict(params)}
        data = packed(rows)
        return self._tried(lambda process: unpacked(process.ask(message, data)[1]).column(0))

    def query(self, payload: Mapping[str, Any], *, tries: int = 2) -> Json:
        """Answer one REST request body of contract D.1; `tries` counts the processes it may end.

        Raises:
            MalformedRequestError: The body has not exactly one of the four input forms.
            InvalidRequestError: The input does not fit the model's signature.
            ModelCrashError: The process ended over it that often.
            ModelError: The model raised.
        """
        message = {"do": "query", "body": payload}
        answer: Json = self._tried(lambda process: process.ask(message)[0]["answer"], tries)
        return answer

    def stream(self, payload: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Yield the pieces of one answer. Closing it tells the model to stop.

        Raises:
            As `query`; an answer that has begun is not tried again.
        """
        for alone in (False, True):
            begun = False
            with self._lent(alone=alone) as process, closing(process.stream(payload)) as pieces:
                try:
                    for piece in pieces:
                        begun = True
                        yield piece
                except ProcessEndedError as ended:
                    if begun or alone:
                        raise self._crash(ended, 1 + alone) from ended
                else:
                    return

    def stop_idle(self, seconds: float) -> None:
        """End processes that nobody has asked for so long; the next request starts one again."""
        for replica in self._replicas:
            with self._changed:
                if replica.in_flight or time.monotonic() - replica.used < seconds:
                    continue
                replica.in_flight += self._room  # nobody comes in meanwhile
            try:
                replica.rest()
            finally:
                self._give_back(replica, self._room)

    def retire(self, *, at_once: bool = False) -> None:
        """End the processes as soon as they have answered what they were asked, or within a second."""
        with self._changed:
            self._retired = True
            busy = any(replica.in_flight for replica in self._replicas)
        if at_once or not busy:
            self.close()

    def close(self) -> None:
        """End the processes within a second; who waits for an answer gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._end.set()
        for replica in self._replicas:
            replica.stop()

    def _watch_idle(self, seconds: float) -> None:
        while not self._end.wait(seconds / 4):
            self.stop_idle(seconds)

    def _tried(self, ask: Callable[[ModelProcess], T], tries: int = 2) -> T:
        """Ask a process; if it ends, another one, alone."""
        for alone in (False, True)[:tries]:
            try:
                with self._lent(alone=alone) as process:
                    return ask(process)
            except ProcessEndedError as ended:
                last = ended
        raise self._crash(last, tries) from last

    def _crash(self, ended: ProcessEndedError, tries: int) -> Exception:
        if self._closed:
            return _out_of_service(self.name)
        often = f", {tries} times" if tries > 1 else ""
        return ModelCrashError(f"Model {self.name!r} crashed over this request{often}: {ended}")

    @contextmanager
    def _lent(self, *, alone: bool) -> Iterator[ModelProcess]:
        replica = self._taken_alone() if alone else self._taken()
        try:
            yield replica.running()
            replica.crashes = 0
        finally:
            replica.used = time.monotonic()
            self._give_back(replica, 1, suspects=alone)

    def _taken(self) -> _Replica:
        """Wait for room at a process. While suspects are asked, the first replica is theirs."""

        def free() -> _Replica | None:
            open_to_all = self._replicas[1:] if self._suspects else self._replicas
            least = min(open_to_all, key=lambda replica: replica.in_flight, default=None)
            return least if least is not None and least.in_flight < self._room else None

        return self._entered(free)

    def _taken_alone(self) -> _Replica:
        first = self._replicas[0]
        with self._changed:
            self._suspects += 1
        try:
            return self._entered(lambda: None if first.in_flight else first)
        except BaseException:
            with self._changed:
                self._suspects -= 1
            raise

    def _entered(self, free: Callable[[], _Replica | None]) -> _Replica:
        with self._changed:
            while not self._closed:
                if (replica := free()) is not None:
                    replica.in_flight += 1
                    return replica
                self._changed.wait()
        raise _out_of_service(self.name)

    def _give_back(self, replica: _Replica, count: int, *, suspects: int = 0) -> None:
        with self._changed:
            replica.in_flight -= count
            self._suspects -= suspects
            done = self._retired and not any(each.in_flight for each in self._replicas)
            self._changed.notify_all()
        if done:
            self.close()


def load_in_process(
    path: Path,
    *,
    name: str,
    environment: Mapping[str, str],
    on_line: OnLine | None = None,
    replicas: int = 1,
    concurrency: int = CONCURRENCY,
    idle_seconds: float | None = None,
) -> ProcessModel:
    """Load the model in a folder that `mlflow.pyfunc` wrote, in processes of its own.

    Args:
        path: The folder.
        name: What errors call the model.
        environment: Variables that its processes have beside those of this one; this one's stay as they are.
        on_line: Called with level and text of each line that the model prints or logs, on a thread; without,
            lines go to the logger `aiquery.models`.
        replicas: How many processes.
        concurrency: Requests that each answers at once; more wait.
        idle_seconds: End processes that nobody has asked for so long; the next request starts one again.

    Raises:
        ModelError: The model does not load, with the last lines that its process wrote.
    """
    told = on_line or (lambda level, line: _log.log(level, "%s: %s", name, line))
    return ProcessModel(Program(path, name, dict(environment), concurrency, told), replicas, idle_seconds)


def _out_of_service(name: str) -> OverloadedError:
    return OverloadedError(f"Model {name!r} was taken out of service before it answered. Ask again.")
