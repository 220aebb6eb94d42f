"""A server that runs in this process, where the gateway does: on the engine thread's loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import uvicorn

from aiquery.server import listening
from aiquery.server.settings import Settings
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.rest import traces
from aiquery_serving.rest.access_log import AccessLog
from aiquery_serving.rest.app import App, create_app
from aiquery_serving.rest.connection import Connection
from aiquery_serving.rest.metrics import Metrics
from aiquery_serving.rest.serves import Serves
from aiquery_udfs.engine_thread import engine_thread

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from aiquery.client import Workspace

#: Ticks of uvicorn, which are 0.1 s apart, between two looks at the connections.
_TICKS: Final = 10
#: Seconds for which requests that are cut off may clear up.
_LAST_SECONDS: Final = 2.0

_log = logging.getLogger("aiquery.server")


class Server:
    """A running server; `with` closes it at the end. The workspace stays open.

    Args:
        workspace: What it serves.
        settings: How.
        listener: Where, if not at the settings' host and port: a socket that listens.

    Raises:
        ConfigurationError: It cannot be served like this; the message says why and what to do.
    """

    def __init__(self, workspace: Workspace, settings: Settings, listener: socket.socket | None = None) -> None:
        listening.check_certificate(settings)
        require_tokens(workspace, settings)
        self._traces = traces.Traces() if traces.wanted() else None
        metrics = Metrics(shared=settings.workers > 1)
        self._app = create_app(_serves(workspace, settings, metrics))
        outer = self._app if self._traces is None else self._traces.around(self._app)
        self._uvicorn = _Uvicorn(outer, settings, self._app, lambda: metrics.sample(workspace.engines()))
        workspace.control.registry.warm()
        # What has to be given back comes last: nothing fails after it.
        self._listener = listener or listening.listen(settings)
        self.url = listening.url(settings, self._listener)
        watchers = [metrics.invoked] if self._traces is None else [metrics.invoked, self._traces.invoked]
        self._endings: list[Callable[[], None]] = [workspace.watch(watcher) for watcher in watchers]
        self._done = engine_thread.submit(self._uvicorn.serve(sockets=[self._listener]))
        self._done.add_done_callback(lambda _: self._uvicorn.up.set())
        self._uvicorn.up.wait()
        if self._done.done():
            self.close()

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self, *, at_once: bool = False) -> None:
        """Take no new connections, answer what was asked, and end; does not wait for it. Any thread may call it.

        Args:
            at_once: Leave unanswered what is still being answered.
        """
        self._uvicorn.should_exit = True
        if at_once:
            engine_thread.call(self._uvicorn.cut_off)

    def wait(self) -> None:
        """Wait until the server has ended.

        Raises:
            OSError: It ended for its socket cannot be used.
        """
        try:
            self._done.result()
        finally:
            for end in self._endings:
                end()
            self._endings.clear()
            if self._traces is not None:
                self._traces.close()

    def close(self) -> None:
        """Stop, and wait until what was asked is answered."""
        self.stop()
        self.wait()


def serve(workspace: Workspace, *, port: int = 0, **settings: Any) -> Server:
    """Serve a workspace from this process, beside whatever else it does.

    Args:
        workspace: What is served; not closed with the server.
        port: Where; 0 for any port that is free.
        settings: The other fields of `Settings`.

    Returns:
        The running server; its `url` says where it is.

    Raises:
        ConfigurationError: It cannot be served like this; the message says why and what to do.

    Examples:
        with aiquery.server.serve(workspace) as server:
            httpx.get(server.url + "/health")
    """
    return Server(workspace, Settings(port=port, **settings))


def require_tokens(workspace: Workspace, settings: Settings) -> None:
    """Let pass a server that only this machine can reach, or that somebody holds a token for.

    Raises:
        ConfigurationError: Everybody on the network could do everything, or nobody anything.
    """
    if (local_user(workspace, settings) is None) and not _has_tokens(workspace):
        raise ConfigurationError(
            f"Others can reach {settings.host}, and nobody has a token yet: make one first (aiquery tokens create"
            f" --user {workspace.user}), or serve this machine alone (--host 127.0.0.1)."
            if not listening.is_loopback(settings)
            else f"Nobody has a token yet: make one first (aiquery tokens create --user {workspace.user})."
        )


def local_user(workspace: Workspace, settings: Settings) -> str | None:
    """Return who asks without a token; None where everybody needs one, as when somebody was given something."""
    alone = listening.is_loopback(settings) and not settings.tokens_only and not workspace.access.configured
    return workspace.user if alone else None


def _has_tokens(workspace: Workspace) -> bool:
    now_ms = workspace.clock.epoch_ms()
    return any(token.expires_ms is None or token.expires_ms > now_ms for token in workspace.access.tokens())


def _serves(workspace: Workspace, settings: Settings, metrics: Metrics) -> Serves:
    return Serves(
        control=workspace.control,
        gateway=workspace.gateway,
        access=workspace.access,
        local_user=local_user(workspace, settings),
        metrics=metrics,
        observers=(metrics, AccessLog()) if settings.access_log else (metrics,),
        body_seconds=settings.body_seconds,
        warming=workspace.control.registry.warming,
    )


class _Uvicorn(uvicorn.Server):
    """Uvicorn, on a loop that it does not own.

    Args:
        outer: What answers: the app, or the app with something around it.
        settings: How it listens.
        app: Is told when the server closes.
        sample: Is called once a second, to look at the process.
    """

    def __init__(self, outer: Any, settings: Settings, app: App, sample: Callable[[], None]) -> None:
        super().__init__(_config(outer, settings))
        self.up = threading.Event()
        self._settings, self._app, self._sample = settings, app, sample

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.up.set()

    async def on_tick(self, counter: int) -> bool:
        """Look at all connections, and at the process, once a second."""
        if counter % _TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                connection.tick(now, self._settings.header_seconds)
            self._sample()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is being answered, as long as that may take; then leave nothing behind."""
        self._app.closing = True
        _log.info("The server closes; %d requests are still being answered.", len(self.server_state.tasks))
        late = asyncio.get_running_loop().call_later(self._settings.closing_seconds, self.cut_off)
        await super().shutdown(sockets)
        late.cancel()
        for connection in self._connections():
            connection.transport.abort()
        tasks = set(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_SECONDS)

    def cut_off(self) -> None:
        """Leave unanswered what is still being answered."""
        if self.server_state.tasks:
            _log.warning("%d requests were not answered before the server ended.", len(self.server_state.tasks))
        for connection in self._connections():
            connection.cut_off()
        asyncio.get_running_loop().call_later(_LAST_SECONDS, setattr, self, "force_exit", True)

    def _connections(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection)]


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        workers=1,
        backlog=listening.BACKLOG,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=settings.idle_seconds,
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
    )
    config.load()
    if config.ssl is not None:
        listening.secured(config.ssl)
    return config
