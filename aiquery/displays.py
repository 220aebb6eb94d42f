"""Where progress is seen: on a terminal, in a notebook, or as lines of the log."""

from __future__ import annotations

import logging
import math
import sys
import threading
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from aiquery.snapshots import Snapshot, line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Between two lines of the log, in seconds.
LOG_SECONDS: Final = 10.0
_STREAMS: Final = ("stdout", "stderr")

_log = logging.getLogger("aiquery.progress")


class Display(Protocol):
    """Where progress is seen. One thread at a time calls it."""

    def show(self, now: Snapshot) -> None:
        """Show how far the run is, in place of what was shown before."""
        ...

    def hide(self) -> None:
        """Leave nothing behind."""
        ...


class Terminal:
    """One bar and one line of a terminal, below the place where others write.

    The cursor stays above them, on an empty line: a prompt that somebody writes meanwhile is not wiped out, and
    whatever a resized terminal makes of the two lines is below the cursor, where it is erased. What is printed while
    they are shown erases them first.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._guard = threading.RLock()
        self._shown = False

    def show(self, now: Snapshot) -> None:
        """Draw the two lines again."""
        console = self._opened()
        with console.capture() as drawn:
            console.print(_bar(now, console.width - 1), end="")
            console.line()
            console.print(line(now, console.width - 1), end="", markup=False, highlight=False, no_wrap=True)
        with self._guard:
            self._write(f"\x1b[J\n{drawn.get()}\x1b[2A\r")
            self._shown = True
            for name in _STREAMS:
                stream = getattr(sys, name)
                if stream is not None and stream.isatty() and not isinstance(stream, _Watched):
                    setattr(sys, name, _Watched(stream, self))

    def erase(self) -> None:
        """Erase the two lines; they may be drawn again."""
        with self._guard:
            if self._shown:
                self._write("\x1b[J")
            self._shown = False

    def hide(self) -> None:
        """Erase the two lines for good."""
        self.erase()
        for name in _STREAMS:
            stream = getattr(sys, name)
            if isinstance(stream, _Watched) and stream.terminal is self:
                setattr(sys, name, stream.stream)

    def _opened(self) -> Console:
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=sys.stderr)
        return self._console

    def _write(self, text: str) -> None:
        file = self._opened().file
        file.write(text)
        file.flush()


class _Watched:
    """A stream of the terminal that erases what is shown before something is written."""

    def __init__(self, stream: TextIO, terminal: Terminal) -> None:
        self.stream, self.terminal = stream, terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        self.terminal.erase()
        return self.stream.write(text)


def _bar(now: Snapshot, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar

    known = now.share is not None
    return ProgressBar(total=1, completed=now.share or 0, width=width, pulse=not known, animation_time=now.seconds)


class Notebook:
    """One output of a notebook, updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, now: Snapshot) -> None:
        """Show the output, or update it."""
        value = "" if now.share is None else f' value="{now.share:.4f}"'
        self._put(f'<progress max="1"{value} style="width:100%"></progress><br><code>{escape(line(now))}</code>')

    def hide(self) -> None:
        """Empty the output."""
        if self._handle is not None:
            self._put("")
        self._handle = None

    def _put(self, text: str) -> None:
        ipython = import_module("IPython.display")
        if self._handle is None:
            self._handle = ipython.display(ipython.HTML(text), display_id=True)
        else:
            self._handle.update(ipython.HTML(text))


class Lines:
    """A line every ten seconds: to the logger `aiquery.progress`, or to stderr where no logging would show it."""

    def __init__(self) -> None:
        self._due = -math.inf

    def show(self, now: Snapshot) -> None:
        """Write a line, when it is time for one."""
        if now.seconds < self._due:
            return
        self._due = now.seconds + LOG_SECONDS
        if _log.hasHandlers() and _log.isEnabledFor(logging.INFO):
            _log.info("%s", line(now))
        elif sys.stderr is not None:
            sys.stderr.write(f"aiquery: {line(now)}\n")
            sys.stderr.flush()

    def hide(self) -> None:
        """Begin anew."""
        self._due = -math.inf


def display(enabled: bool | None = None) -> Display | None:
    """Return where this program shows progress.

    Args:
        enabled: True writes lines where there is neither a notebook nor a terminal; False shows nothing.

    Returns:
        None when nothing is to be shown.
    """
    if enabled is False:
        return None
    if _in_notebook():
        return Notebook()
    if _on_terminal():
        return Terminal()
    return Lines() if enabled else None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _on_terminal() -> bool:
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    from rich.console import Console

    console = Console(stderr=True)
    return not (console.is_dumb_terminal or console.legacy_windows)
