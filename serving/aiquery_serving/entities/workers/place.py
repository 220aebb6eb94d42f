"""A place for one process of a custom model: empty until somebody asks, and again after a crash."""

from __future__ import annotations

import threading
from enum import Enum, auto

from aiquery_serving.entities.workers.process import About, ModelProcess, Program
from aiquery_serving.errors import ModelError, OverloadedError

#: The longest wait before a process that keeps ending is started again, in seconds.
_LONGEST_WAIT = 10.0


class State(Enum):
    """What may happen at a place: requests come only where it is open."""

    CLOSED = auto()
    STARTING = auto()
    OPEN = auto()
    ENDING = auto()


class Place:
    """Where a process runs, and who is there.

    Attributes:
        process: What runs there.
        state: As `State` has it.
        in_flight: Requests that it is asked.
        crashes: Processes that have ended here since one gave an answer.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self.process: ModelProcess | None = None
        self.state = State.CLOSED
        self.in_flight = 0
        self.crashes = 0

    @property
    def runs(self) -> bool:
        """Whether a process is there that has not ended."""
        process = self.process
        return process is not None and not process.ended

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
                raise out_of_service(self._program.name)
            return process

    def start(self) -> About | None:
        """Start a process and load the model, or do nothing once stopped.

        Raises:
            ModelError: The model does not load.
        """
        if self._stopped.wait(restart_wait(self.crashes)):
            return None
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
        """End the process; `running` starts another."""
        process = self.process
        if process is not None:
            process.close()
            self.process = None

    def _count_crash(self) -> None:
        self.crashes += 1
        self.process = None


def restart_wait(crashes: int) -> float:
    """Return the seconds before a process is started again, when so many have ended and answered nothing.

    Examples:
        >>> [restart_wait(crashes) for crashes in (0, 1, 2, 3, 4, 20)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 10.0]
    """
    # The first two ends may be one request's, which is tried twice.
    return min(0.5 * 2 ** min(crashes - 3, 10), _LONGEST_WAIT) if crashes > 2 else 0.0  # noqa: PLR2004


def out_of_service(name: str) -> OverloadedError:
    """Return what those are told who ask a model that was taken out of service."""
    return OverloadedError(f"Model {name!r} was taken out of service before it answered. Ask again.")
