"""Follows a query or a job, and shows how far it is once it takes long.

Theory of operation. A run counts what happens to it (`runs.Tally`); a thread of its own looks at those numbers five
times a second and hands what it sees to a display, once the work has been under way for two seconds. A job has an
end. A session's statements have none that can be seen (an engine hands rows over as they are read), so they count as
under way while the engine waits for answers, and for half a second longer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aiquery.displays import Display, display
from aiquery.snapshots import Reading, read, snapshot

if TYPE_CHECKING:
    from aiquery_serving.gateway import Gateway
    from aiquery_udfs.runs import Run

#: Work that takes no longer than this shows nothing, in seconds.
QUICK_SECONDS: Final = 2.0
#: Between two looks, in seconds.
LOOK_SECONDS: Final = 0.2
#: A session's engine that has not waited for so long is done with its statement, in seconds.
IDLE_SECONDS: Final = 0.5
#: Rates are those of the latest so many seconds.
WINDOW_SECONDS: Final = 10.0

_log = logging.getLogger("aiquery.progress")


class Progress:
    """Follows one run, and shows it when it takes long.

    Args:
        run: What is followed.
        gateway: Says what its calls stand in line for.
        display: Where it is seen.
        open_ended: Whether it is under way only while its engine waits, as a session's is.
        total_rows: How many rows there will be, where that is known.
        total_requests: How many distinct requests there will be, where that is known.
    """

    def __init__(
        self,
        run: Run,
        gateway: Gateway,
        display: Display,
        *,
        open_ended: bool = False,
        total_rows: int | None = None,
        total_requests: int | None = None,
    ) -> None:
        self._run, self._gateway, self._display = run, gateway, display
        self._open_ended = open_ended
        self._totals = {"total_rows": total_rows, "total_requests": total_requests}
        self._began: Reading | None = None
        self._window: deque[Reading] = deque()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Follow the run on a thread, unless that is so already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="aiquery-progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, and leave nothing on display."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def look(self, now: float) -> None:
        """See how far the run is at `now`, in monotonic seconds, and show it when it is time to."""
        latest = read(self._run, self._gateway, now)
        if self._began is None or not self._under_way(now):
            self._display.hide()
            self._began, self._window = latest, deque([latest])
            return
        self._window.append(latest)
        while len(self._window) > 2 and self._window[1].at <= now - WINDOW_SECONDS:  # noqa: PLR2004 - first and last
            self._window.popleft()
        # While nothing waits, the statement may have ended: what is on display stays, and somebody else may write.
        if now - self._began.at >= QUICK_SECONDS and (self._run.tally.waiting or not self._open_ended):
            self._display.show(snapshot(self._began, self._window[0], latest, **self._totals))

    def _under_way(self, now: float) -> bool:
        tally = self._run.tally
        return not self._open_ended or tally.waiting > 0 or now - tally.waited_at < IDLE_SECONDS

    def _follow(self) -> None:
        """Look until `stop`. A display that breaks (its terminal is gone) must not break the run."""
        try:
            self.look(time.monotonic())
            while not self._ended.wait(LOOK_SECONDS):
                self.look(time.monotonic())
            self._display.hide()
        except Exception:  # noqa: BLE001 - whatever a terminal or a notebook raises
            _log.debug("Progress is not shown any more.", exc_info=True)


@contextmanager
def shown(
    run: Run,
    gateway: Gateway,
    *,
    total_rows: int | None = None,
    total_requests: int | None = None,
    enabled: bool | None = None,
) -> Iterator[None]:
    """Show how far a run is for as long as this block lasts, if that is over two seconds.

    Args:
        run: What the block does.
        gateway: Says what its calls stand in line for.
        total_rows: How many rows there will be; rows count once for every `ai_query` they pass.
        total_requests: How many distinct requests there will be.
        enabled: See `display`.
    """
    where = display(enabled)
    if where is None:
        yield
        return
    progress = Progress(run, gateway, where, total_rows=total_rows, total_requests=total_requests)
    progress.start()
    try:
        yield
    finally:
        progress.stop()


def following(run: Run, gateway: Gateway, *, enabled: bool | None = None) -> Progress | None:
    """Return what shows a session's statements, once started; None when nothing is to be shown."""
    where = display(enabled)
    return None if where is None else Progress(run, gateway, where, open_ended=True)
