"""Several processes that answer at one socket: started, watched, replaced when they end, and ended together.

They share the workspace, and through it rate limits and what endpoints serve. A worker that was killed loses the
requests that it was answering, and no others: the socket stays open.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Final, NamedTuple

from aiquery.server import logs
from aiquery.server.program import run
from aiquery.server.signals import ENDING, counted, handled
from aiquery_serving.errors import AiQueryError, ConfigurationError
from aiquery_serving.rest.metrics import SHARED_FOLDER, forget_process

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from aiquery.server.running import Server
    from aiquery.server.settings import Settings

#: Workers in a row that may end before they answer anything.
MOST_FAILURES: Final = 5
#: Seconds between a worker that ended so and the next.
PAUSE_SECONDS: Final = 0.5
#: Seconds for which workers may clear up, beyond those for which they finish what they answer.
_GRACE_SECONDS: Final = 10.0
#: Seconds for which they may clear up when they are to end at once.
_LAST_SECONDS: Final = 3.0

_RELOAD: Final = getattr(signal, "SIGHUP", None)
_spawn = multiprocessing.get_context("spawn")
_log = logging.getLogger("aiquery.server")


class _Worker:
    """One process, and what it said of itself: nothing yet, "" that it answers, or why it cannot."""

    def __init__(self, task: Task, replaces: _Worker | None) -> None:
        self.news, theirs = _spawn.Pipe(duplex=False)
        self.process = _spawn.Process(target=_work, args=(theirs, task), name="aiquery-worker")
        self.process.start()
        theirs.close()
        self.said: str | None = None
        self.wanted = True
        self.replaces = replaces

    def listen(self) -> None:
        """Take what it says; nothing more comes when it has ended."""
        try:
            self.said = self.news.recv()
        except (EOFError, OSError):
            self.news.close()

    def end(self) -> None:
        """Have it end: gently, or at once when it was told before."""
        self.wanted = False
        if self.process.is_alive():
            self.process.terminate()


class Task(NamedTuple):
    """What every worker does.

    Attributes:
        path: The workspace's folder.
        user: Who opens it: who asks without a token, where none is needed.
        settings: How it is served.
        listener: Where: a socket that listens.
        log_format: How the log is written.
        verbose: Whether it tells the details.
    """

    path: Path
    user: str
    settings: Settings
    listener: socket.socket
    log_format: logs.LogFormat
    verbose: bool


class Workers:
    """The workers of one server. Belongs to the main thread."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._workers: list[_Worker] = []
        self._failures = 0
        self._deadline: float | None = None
        self._alarm, self._ring = _spawn.Pipe(duplex=False)

    def run(self, *, ready: Callable[[], None]) -> None:
        """Serve until a signal ends it; SIGHUP replaces every worker once a new one answers.

        Args:
            ready: Called when the first worker answers.

        Raises:
            ConfigurationError: No worker can be started.
        """
        with tempfile.TemporaryDirectory(prefix="aiquery-metrics-") as folder:
            os.environ[SHARED_FOLDER] = folder
            try:
                with handled(self._actions()):
                    self._serve(ready, folder)
            finally:
                self._kill_all()
                del os.environ[SHARED_FOLDER]

    def _actions(self) -> dict[int, Callable[[], None]]:
        end = counted(lambda: self._wake(b"end"), lambda: self._wake(b"now"))
        actions: dict[int, Callable[[], None]] = dict.fromkeys(ENDING, end)
        if _RELOAD is not None:
            actions[_RELOAD] = lambda: self._wake(b"new")
        return actions

    def _wake(self, word: bytes) -> None:
        with suppress(OSError):
            self._ring.send_bytes(word)

    def _serve(self, ready: Callable[[], None], folder: str) -> None:
        for _ in range(self._task.settings.workers):
            self._start()
        announced = False
        while self._workers:
            self._heed()
            self._reap(folder)
            if not announced and any(worker.said == "" for worker in self._workers):
                announced = True
                ready()

    def _start(self, replaces: _Worker | None = None) -> None:
        self._workers.append(_Worker(self._task, replaces))

    def _heed(self) -> None:
        """Wait for something to happen, and hear what it is."""
        listened = {worker.news: worker for worker in self._workers if not worker.news.closed}
        sentinels = [worker.process.sentinel for worker in self._workers]
        late = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        happened = wait([self._alarm, *listened, *sentinels], late)
        for connection in set(happened) & set(listened):
            self._hear(listened[connection])  # type: ignore[index]
        if self._alarm in happened:
            self._obey(self._alarm.recv_bytes())
        if not happened:
            _log.warning("The workers did not end in time, and are killed.")
            self._kill_all()

    def _hear(self, worker: _Worker) -> None:
        worker.listen()
        if worker.said == "":
            self._failures = 0
            if worker.replaces is not None:
                worker.replaces.end()
                worker.replaces = None

    def _obey(self, word: bytes) -> None:
        if word == b"new" and self._deadline is None:
            _log.info("Every worker is replaced.")
            for worker in [each for each in self._workers if each.wanted and each.replaces is None]:
                self._start(replaces=worker)
        elif word != b"new":
            patience = self._task.settings.closing_seconds + _GRACE_SECONDS if word == b"end" else _LAST_SECONDS
            self._deadline = time.monotonic() + patience
            self._task.listener.close()
            for worker in self._workers:
                worker.end()

    def _reap(self, folder: str) -> None:
        """Forget the workers that have ended, and replace those that should not have."""
        for worker in [each for each in self._workers if not each.process.is_alive()]:
            if not worker.news.closed and worker.news.poll():
                worker.listen()
            worker.process.join()
            self._workers.remove(worker)
            forget_process(worker.process.pid or 0, folder)
            if worker.wanted and self._deadline is None:
                self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        if worker.said:
            raise ConfigurationError(worker.said)
        _log.warning("Worker %d ended (%s) and is replaced.", worker.process.pid, worker.process.exitcode)
        if worker.said is None:
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise ConfigurationError(
                    f"{MOST_FAILURES} workers in a row ended before they answered anything: the log above tells why."
                )
            time.sleep(PAUSE_SECONDS)
        self._start(replaces=worker.replaces)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.wanted = False
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()


def _work(news: Connection, task: Task) -> None:
    """Be a worker."""
    from aiquery.client import Workspace

    # Those go to the whole group of processes at a terminal, and the first of it passes on what concerns us.
    deaf = {number: signal.SIG_IGN for number in ENDING if number != signal.SIGTERM}

    def answers(server: Server) -> None:
        threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
        news.send("")
        news.close()

    with handled(deaf), logs.written(task.log_format, verbose=task.verbose):
        try:
            with Workspace(task.path, user=task.user, isolated=True) as workspace:
                run(workspace, task.settings, task.listener, ready=answers, ends=(signal.SIGTERM,))
        except AiQueryError as error:
            with suppress(OSError):
                news.send(str(error))
            raise SystemExit(1) from None


def _end_with_parent(server: Server) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        server.stop()
