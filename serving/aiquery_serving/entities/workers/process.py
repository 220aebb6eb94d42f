"""One process with one model: how it is started, asked, heard and ended."""

from __future__ import annotations

import base64
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Full, Queue, SimpleQueue
from typing import IO, Any, TypeAlias

import pyarrow as pa

from aiquery_serving import errors
from aiquery_serving.entities.workers.pipe import Pipe
from aiquery_serving.errors import AiQueryError, ModelError
from aiquery_serving.messages import Json

#: Called with the level (as `logging` counts) and the text of each line that a model prints or logs.
OnLine: TypeAlias = Callable[[int, str], None]

#: The child finds its modules where this process does.
_FIND_HERE = "import sys; sys.path[:] = {path!r}"
#: The child finds its modules in an environment of its own, and there only what is ours besides.
_FIND_APART = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("aiquery_serving", {file!r}, submodule_search_locations=[{folder!r}])
sys.modules["aiquery_serving"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
"""
_BOOT = "{find}\nfrom aiquery_serving.entities.workers.child import main\nmain({descriptor}, {threads})"
#: Lines that are shown of a model that did not start.
_LAST_LINES = 20
#: Lines that wait to be taken; those beyond are nobody's.
_MOST_WAITING = 1_000
#: Seconds that a process has to end by itself.
_GRACE = 0.5

_log = logging.getLogger("aiquery.models")


class ProcessEndedError(Exception):
    """The process ended before it answered; the text says how."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a process runs.

    `environment` is added to this process's own variables. At most `threads` requests run at once. `python` is the
    interpreter of an environment of the model's own.
    """

    path: Path
    name: str
    environment: Mapping[str, str] = field(repr=False)  # it may hold keys
    threads: int
    on_line: OnLine
    python: Path | None = None


@dataclass(frozen=True, slots=True)
class About:
    """What a model says of itself once it is loaded; see `messages.BatchEntity`."""

    input_schema: pa.Schema | None
    output_type: pa.DataType | None
    can_stream: bool
    mergeable: bool


class ModelProcess:
    """A running process. Any thread may ask it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._numbers = itertools.count()
        self._calls: dict[int, SimpleQueue[tuple[Json, bytes] | None]] = {}
        self._changing = threading.Lock()
        self._ended = False
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._logged: Queue[tuple[int, str] | None] = Queue(_MOST_WAITING)
        self._process, self._pipe = _spawn(program)
        self._threads = [
            self._thread(self._receive),
            self._thread(self._tell_logged),
            self._thread(self._read, self._process.stdout, logging.INFO),
            self._thread(self._read, self._process.stderr, logging.WARNING),
        ]

    @property
    def ended(self) -> bool:
        """Whether it cannot be asked any more."""
        return self._ended

    def load(self) -> About:
        """Load the model.

        Raises:
            ModelError: It does not load, or the process ended meanwhile; with the last lines that it wrote.
        """
        path, name = str(self._program.path), self._program.name
        try:
            found = self.ask({"do": "load", "path": path, "name": name})[0]["answer"]
        except ProcessEndedError as ended:
            for thread in self._threads:
                thread.join(_GRACE)
            said = "".join(f"\n  {line}" for line in self._lines) or " It wrote nothing."
            raise ModelError(f"Model {name!r} could not be loaded: {ended} Its last lines:{said}") from ended
        kind = _schema(found.pop("output_type"))
        schema = _schema(found.pop("input_schema"))
        return About(input_schema=schema, output_type=None if kind is None else kind.field(0).type, **found)

    def ask(self, message: Json, data: bytes | pa.Buffer = b"") -> tuple[Json, bytes]:
        """Send one message and wait for its answer.

        Raises:
            ProcessEndedError: The process ended meanwhile.
            AiQueryError: What the model's side raised, with its traceback as a note.
        """
        number, replies = self._called()
        try:
            self._send({"id": number, **message}, data)
            return self._reply(replies)
        finally:
            self._calls.pop(number, None)

    def stream(self, body: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Yield the pieces of one answer, each computed when it is asked for.

        Raises:
            As `ask`.
        """
        number, replies = self._called()
        try:
            self._send({"id": number, "do": "stream", "body": body})
            while True:
                self._send({"id": number, "do": "next"})
                piece = self._reply(replies)[0]["answer"]
                if piece is None:
                    return
                yield piece
        finally:
            self._calls.pop(number, None)
            if not self._ended:
                self._send({"id": number, "do": "close"})

    def close(self) -> None:
        """End the process, within a second: what it is asked just now gets no answer."""
        self._pipe.hang_up()
        self._reap()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_GRACE)

    def how_it_ended(self) -> str:
        """Say in words how the process ended."""
        code = self._process.wait()
        if code >= 0:
            return f"its process ended with exit code {code}."
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"its process was ended by signal {-code} ({name}){hint}."

    def _reap(self) -> None:
        """Wait for the process, which has no pipe any more, and lose patience soon."""
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _called(self) -> tuple[int, SimpleQueue[tuple[Json, bytes] | None]]:
        replies: SimpleQueue[tuple[Json, bytes] | None] = SimpleQueue()
        with self._changing:
            if self._ended:
                raise ProcessEndedError(self.how_it_ended())
            number = next(self._numbers)
            self._calls[number] = replies
        return number, replies

    def _send(self, message: Json, data: bytes | pa.Buffer = b"") -> None:
        try:
            self._pipe.send(message, data)
        except OSError:
            return  # whoever receives tells all callers

    def _reply(self, replies: SimpleQueue[tuple[Json, bytes] | None]) -> tuple[Json, bytes]:
        reply = replies.get()
        if reply is None:
            raise ProcessEndedError(self.how_it_ended())
        if "error" in reply[0]:
            raise _raised(reply[0]["error"])
        return reply

    # On threads of their own.

    def _thread(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, name=f"aiquery-{self._program.name}", daemon=True)
        thread.start()
        return thread

    def _receive(self) -> None:
        """Hand answers to whoever waits for them, and tell all of them when there will be none."""
        try:
            while True:
                message, data = self._pipe.receive()
                if "line" in message:
                    self._note(message["level"], message["line"])
                elif (replies := self._calls.get(message["id"])) is not None:
                    replies.put((message, data))
        except EOFError:
            self._end()

    def _end(self) -> None:
        self._reap()
        with self._changing:
            self._ended = True
            waiting = list(self._calls.values())
        for replies in waiting:
            replies.put(None)
        self._pipe.close()
        self._logged.put(None)

    def _read(self, pipe: IO[str], level: int) -> None:
        with pipe:
            for line in pipe:
                self._heard(level, line.rstrip("\n"))

    def _note(self, level: int, line: str) -> None:
        """Put a line aside that came between answers: who takes lines may be slow, and nobody waits for that."""
        self._lines.append(line)
        with suppress(Full):
            self._logged.put_nowait((level, line))

    def _tell_logged(self) -> None:
        while (noted := self._logged.get()) is not None:
            self._told(*noted)

    def _heard(self, level: int, line: str) -> None:
        self._lines.append(line)
        self._told(level, line)

    def _told(self, level: int, line: str) -> None:
        try:
            self._program.on_line(level, line)
        except Exception:  # noqa: BLE001 - it is not ours
            _log.exception("A line of model %r was lost.", self._program.name)


def visible_variables() -> dict[str, str]:
    """Return what a model, or what it is built of, may see of this process's variables: not the key to all secrets."""
    from aiquery_serving.secrets import KEY_VARIABLE  # what this loads, a model's process need not have

    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def apart(variables: Mapping[str, str], python: Path) -> dict[str, str]:
    """Return variables as a shell has them in which a virtual environment is active."""
    kept = {name: value for name, value in variables.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    path = os.pathsep.join([str(python.parent), *filter(None, [kept.get("PATH")])])
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(python.parents[1])}


def _command(program: Program, descriptor: int) -> list[str]:
    if program.python is None:
        find = _FIND_HERE.format(path=sys.path)
    else:
        ours = Path(errors.__file__).parent
        find = _FIND_APART.format(file=str(ours / "__init__.py"), folder=str(ours))
    boot = _BOOT.format(find=find, descriptor=descriptor, threads=program.threads)
    # A crash in native code then says where, lines come when they are written, and no module is taken from whatever
    # folder this process is in.
    return [str(program.python or sys.executable), "-u", "-P", "-X", "faulthandler", "-c", boot]


def _spawn(program: Program) -> tuple[subprocess.Popen[str], Pipe]:
    variables = visible_variables()
    if program.python is not None:
        variables = apart(variables, program.python)
    ours, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(  # noqa: S603 - it is this interpreter, or the environment's
            _command(program, theirs.fileno()),
            env={**variables, **program.environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C is for this process, which then ends the child.
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise ModelError(f"Model {program.name!r} could not be loaded: no process for it starts: {error}") from error
    finally:
        theirs.close()
    return process, Pipe(ours)


def _raised(error: Mapping[str, str]) -> AiQueryError:
    """Return an error of the other side as one of this side's."""
    kind = getattr(errors, error["class"], ModelError)
    try:
        rebuilt: AiQueryError = kind(error["text"])
    except TypeError:  # one that tells more than a text: a model may ask endpoints itself
        rebuilt = ModelError(error["text"])
    rebuilt.add_note(error["trace"])
    return rebuilt


def _schema(text: str | None) -> pa.Schema | None:
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
