"""A server as a program: runs until a signal ends it."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiquery.server.running import Server
from aiquery.server.signals import ENDING, counted, handled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from aiquery.client import Workspace
    from aiquery.server.settings import Settings

#: What a process has open beside connections, of clients and to providers.
_OTHER_DESCRIPTORS: Final = 256
_NAP_SECONDS: Final = 0.2


def run(
    workspace: Workspace,
    settings: Settings,
    listener: socket.socket,
    *,
    ready: Callable[[Server], None],
    ends: Sequence[int] = ENDING,
) -> None:
    """Serve a workspace until a signal ends it: gently, or at once with the second.

    Args:
        workspace: What is served.
        settings: How.
        listener: Where: a socket that listens.
        ready: Called when the server answers.
        ends: The signals.

    Raises:
        ConfigurationError: It cannot be served like this.
    """
    _allow_descriptors(2 * settings.max_connections + _OTHER_DESCRIPTORS)
    server = Server(workspace, settings, listener)
    end = counted(server.stop, lambda: server.stop(at_once=True))
    warming = workspace.control.registry.warming
    threading.Thread(target=_leave_what_stays, args=(warming,), name="aiquery-settle", daemon=True).start()
    with handled(dict.fromkeys(ends, end)):
        ready(server)
        server.wait()


def _leave_what_stays(warming: Callable[[], bool]) -> None:
    """Keep modules and the like out of what the garbage collector looks through while requests wait.

    What loading a model brings along (MLflow and its kin) takes it a tenth of a second, again and again.
    """
    while warming():
        time.sleep(_NAP_SECONDS)
    gc.collect()
    gc.freeze()


def _allow_descriptors(wanted: int) -> None:
    """Let the process open as many files and connections as the system allows it, up to what it may need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
