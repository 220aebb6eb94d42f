"""The server on a free port, over a workspace or over served entities that a test scripts.

    with serving(workspace) as server:
        httpx.get(server.url + "/health")

It runs where the gateway lives: on the engine thread's loop.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import uvicorn

from aiquery_serving.access import Access
from aiquery_serving.clock import SystemClock
from aiquery_serving.endpoint import EndpointConfig, ExternalModel, Route, ServedEntity
from aiquery_serving.errors import EndpointNotFoundError
from aiquery_serving.gateway import Gateway
from aiquery_serving.registry import Serving
from aiquery_serving.rest.app import App, create_app
from aiquery_serving.rest.serves import Serves
from aiquery_serving.store import Store
from aiquery_udfs.engine_thread import engine_thread


class Records:
    """An observer that keeps every exchange."""

    def __init__(self) -> None:
        self.asked_of: list[str] = []
        self.exchanges: list[Any] = []

    def asked(self, exchange: Any) -> None:
        self.asked_of.append(exchange.endpoint)

    def ended(self, exchange: Any) -> None:
        self.exchanges.append(exchange)


@contextmanager
def serving(workspace: Any, *, local_user: str | None = "", **more: Any) -> Iterator[SimpleNamespace]:
    """Serve a workspace; by default its own user needs no token."""
    store = workspace._store
    serves = Serves(
        control=getattr(workspace, "control", None),
        gateway=workspace.gateway,
        access=getattr(workspace, "access", None) or Access(store, SystemClock()),
        local_user=workspace.user if local_user == "" else local_user,
        **more,
    )
    with running(create_app(serves)) as url:
        yield SimpleNamespace(url=url, workspace=workspace, serves=serves)


@contextmanager
def serving_entities(endpoints: dict[str, Any], *, local_user: str | None = "ada", **more: Any) -> Iterator[Any]:
    """Serve one endpoint per name, each with the one served entity given for it, which is called `only`."""
    records = Records()
    access = Access(Store(None), SystemClock())
    gateway = Gateway(Entities(endpoints), access=access)
    serves = Serves(
        control=None,  # type: ignore[arg-type]
        gateway=gateway,
        access=access,
        local_user=local_user,
        observers=(records,),
        **more,
    )
    app = create_app(serves)
    with running(app) as url:
        yield SimpleNamespace(url=url, serves=serves, app=app, records=records)


class Entities:
    """A registry of endpoints with one served entity each: external if it has a task, custom if not."""

    def __init__(self, endpoints: dict[str, Any]) -> None:
        self._servings = {name: _of_one(name, entity) for name, entity in endpoints.items()}

    def serving(self, name: str, *, wait: float | None = None) -> Serving:
        if name not in self._servings:
            raise EndpointNotFoundError(f"Endpoint with name '{name}' does not exist.")
        return self._servings[name]


def _of_one(name: str, entity: Any) -> Serving:
    task = getattr(entity, "task", None)
    served = (
        ServedEntity(name="only", external_model=ExternalModel(provider="openai", name="gpt", task=task))
        if task
        else ServedEntity(name="only", entity_name="demo.model", entity_version="1", workload_size="Small")
    )
    config = EndpointConfig(served_entities=(served,), routes=(Route("only", 100),), config_version=1)
    return Serving(
        name=name, config=config, entities={"only": entity}, rate_limits=(), fallback=False, endpoint_id=name,
        creator="ada",
    )  # fmt: skip


@contextmanager
def running(app: App) -> Iterator[str]:
    """Run an application on a free port, and say under which URL."""
    config = uvicorn.Config(
        app, http="httptools", lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )  # fmt: skip
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        done = engine_thread.submit(server.serve([listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            done.result(10)


class _Server(uvicorn.Server):
    """A server that leaves signals to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
