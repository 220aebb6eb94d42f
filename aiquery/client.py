"""The workspace: endpoints, secrets and usage in one folder, and `ai_query` on a connection."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiquery_serving.access import Access, Principal
from aiquery_serving.chunk_sizes import ChunkSizes
from aiquery_serving.clock import SystemClock
from aiquery_serving.connections import Connections
from aiquery_serving.control import ControlPlane, ExternalFunctions, ModelAliases
from aiquery_serving.endpoint import EndpointRecord, ServedEntity
from aiquery_serving.entities.external import HttpTransport
from aiquery_serving.entities.loading import EntityLoader
from aiquery_serving.gateway import Gateway
from aiquery_serving.job_log import JobLog
from aiquery_serving.leases import Leases
from aiquery_serving.ledger import Ledger
from aiquery_serving.messages import Entity, Json, ReportingEntity
from aiquery_serving.model_sources import ModelAlias, ModelSources
from aiquery_serving.models import Models, default_uris
from aiquery_serving.payload_log import PayloadLog
from aiquery_serving.prices import Prices
from aiquery_serving.registry import Registry
from aiquery_serving.secrets import Secrets
from aiquery_serving.served_log import ServedLog
from aiquery_serving.store import Store
from aiquery_serving.streaming import Streamed
from aiquery_serving.usage import UsageLog
from aiquery_udfs.engine_thread import engine_thread
from aiquery_udfs.execution import Execution

if TYPE_CHECKING:
    from types import TracebackType

    import duckdb

#: How long `query` waits for an endpoint whose first deployment is still loading, in seconds.
FIRST_DEPLOYMENT_SECONDS = 300.0


class Workspace:
    """A folder with everything of one project: endpoints, secrets, usage, and its model registry.

    Two processes may use one folder at once.

    Args:
        path: The folder, made when it is missing, or `":memory:"` for one that vanishes with the process.
            Default: the environment's `AIQUERY_HOME`, else `./.aiquery`.
        user: Who creates, changes and calls endpoints, and may do no more than they were permitted. Default:
            `AIQUERY_USER`, else the name at the machine.
        isolated: Run every custom model in a process of its own, as the server does: one that crashes takes nothing
            down with it.

    Attributes:
        access: Tokens, groups and permissions.
        clock: The time.
        control: Every management operation, as somebody else too.
        gateway: Answers requests to endpoints.
        payloads: What endpoints were asked and answered, of those that log it.

    Raises:
        WorkspaceError: The folder cannot be used; the message says why and what to do.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, user: str | None = None, isolated: bool = False
    ) -> None:
        chosen = os.fspath(path) if path is not None else os.environ.get("AIQUERY_HOME", ".aiquery")
        self.path = None if chosen == ":memory:" else Path(chosen).absolute()
        self.user = user or os.environ.get("AIQUERY_USER") or getpass.getuser()
        self._store = Store(self.path)
        self.secrets = Secrets(self._store, key=None)
        self._usage = UsageLog(self._store)
        self.job_log = JobLog(self._store)
        self.models = Models(*default_uris(self.path))
        self.sources = ModelSources(self.models, self._store)
        self._transport = HttpTransport()
        self.clock = clock = SystemClock()
        parts = self.sources, self.secrets, self._transport, ChunkSizes(self._store, clock)
        self._loader = loader = EntityLoader(*parts, isolated=isolated, home=self.path)
        self.access = Access(self._store, clock)
        self._registry = Registry(self._store, self.secrets, load=self._load, resolve=loader.resolve, clock=clock)
        self.payloads = PayloadLog(self.path, clock)
        self.control = ControlPlane(
            registry=self._registry,
            access=self.access,
            models=self.sources,
            served_log=ServedLog(self._store, clock.epoch_ms),
            external=ExternalFunctions(Connections(self._store), self.access, self.secrets),
            forget=self.payloads.forget,
            foundation=loader.foundation,
        )
        self._aliases = ModelAliases(self.control, self.sources)
        self.gateway = Gateway(
            self._registry,
            clock=clock,
            usage=self._usage.record,
            leases=Leases(self.path, clock) if self.path else None,
            access=self.access,
            payloads=self.payloads,
        )
        self.execution = Execution(self.gateway, ledger=lambda: self.ledger, caller=self.user)

    def __repr__(self) -> str:
        return f"Workspace({str(self.path) if self.path else ':memory:'!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @cached_property
    def ledger(self) -> Ledger:
        """What was answered before, for jobs and for sessions that reuse it; encrypted where it is a file.

        Raises:
            SecretError: The workspace's key cannot be read.
        """
        key = self.secrets.derived_key(b"ledger") if self.path else None
        return Ledger(self.path, cipher_key=key)

    @cached_property
    def prices(self) -> Prices:
        """What calls cost: the shipped list prices, and those of the workspace's `prices.toml`.

        Raises:
            ConfigurationError: The file cannot be read; the message says where.
        """
        return Prices.load(self.path)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow logs models for this workspace: for `mlflow.set_tracking_uri`.

        The first use creates the tables of a new workspace's registry (seconds). MLflow alone would do so with
        a lot of talk, and put the models' files below the current directory.

        Raises:
            ConfigurationError: The registry cannot be opened.
        """
        self.models.start()
        return self.models.tracking_uri

    @property
    def registry_uri(self) -> str:
        """Where MLflow registers models for this workspace, if not at `tracking_uri`.

        Raises:
            ConfigurationError: The registry cannot be opened.
        """
        self.models.start()
        return self.models.registry_uri

    def create_endpoint(
        self,
        name: str,
        config: Mapping[str, Any] | None = None,
        *,
        rate_limits: Sequence[Mapping[str, Any]] | None = None,
        tags: Sequence[Mapping[str, str]] | None = None,
        ai_gateway: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Json:
        """Create an endpoint from the REST API's own JSON (contract B.2).

        Models load in the background: the endpoint's state says `READY` when they have, and queries wait for
        it. An endpoint of external models is ready at once.

        Args:
            name: Letters, digits, `-` and `_`; 63 characters at most.
            config: `served_entities` and, when there are several, `traffic_config`.
            rate_limits: `[{"calls": 100, "renewal_period": "minute"}]`.
            tags: `[{"key": "team", "value": "x"}]`.
            ai_gateway: The AI Gateway block (contract C.6).
            more: The other fields of the REST body, `description` for one.

        Returns:
            The endpoint as the REST API echoes it (contract B.3).

        Raises:
            ConfigurationError: A rule is broken; nothing was created.
            EndpointExistsError: The name is taken.
        """
        given = {
            "config": config, "rate_limits": rate_limits, "tags": tags, "ai_gateway": ai_gateway, **more,
        }  # fmt: skip
        payload = {key: value for key, value in given.items() if value is not None}
        return self.control.create(self._who, {"name": name, **payload})

    def get_endpoint(self, name: str) -> Json:
        """Return an endpoint with its state, config and pending config (contract B.3).

        Raises:
            EndpointNotFoundError: No endpoint has that name.
        """
        return self.control.get(self._who, name)

    def list_endpoints(self) -> list[Json]:
        """Return every endpoint, in the short form of contract B.3."""
        endpoints: list[Json] = self.control.list(self._who)["endpoints"]
        return endpoints

    def endpoint_records(self) -> dict[str, EndpointRecord]:
        """Return all that was declared of every endpoint, by name: the REST form leaves rate limits out."""
        return self.control.records(self._who)

    def update_endpoint_config(self, name: str, config: Mapping[str, Any]) -> Json:
        """Replace what an endpoint serves; the old config serves until the new one has loaded.

        Raises:
            ConfigurationError: A rule is broken; the endpoint is as it was.
            UpdateConflictError: Another update is still in progress.
        """
        return self.control.update_config(self._who, name, config)

    def update_endpoint_rate_limits(
        self, name: str, rate_limits: Sequence[Mapping[str, Any]] | Mapping[str, Any]
    ) -> Json:
        """Replace an endpoint's rate limits; they hold from the next request on."""
        return self.control.update_rate_limits(self._who, name, _wrapped("rate_limits", rate_limits))

    def update_endpoint_tags(self, name: str, tags: Mapping[str, Any]) -> Json:
        """Change an endpoint's tags: `{"add_tags": [{"key", "value"}], "delete_tags": ["key"]}`."""
        return self.control.update_tags(self._who, name, tags)

    def update_endpoint_ai_gateway(self, name: str, ai_gateway: Mapping[str, Any]) -> Json:
        """Replace an endpoint's AI Gateway block."""
        return self.control.update_ai_gateway(self._who, name, ai_gateway)

    def delete_endpoint(self, name: str) -> Json:
        """Delete an endpoint and the secrets that came with its declaration."""
        return self.control.delete(self._who, name)

    def wait(self, name: str, timeout: float | None = None) -> Json:
        """Wait until no update of an endpoint is in progress, and return the endpoint.

        Raises:
            EndpointNotReadyError: `timeout` seconds were not enough.
        """
        return self.control.wait(self._who, name, timeout)

    def query(
        self, name: str, inputs: Mapping[str, Any], served_model: str | None = None, *, wait: bool = False
    ) -> Json:  # fmt: skip
        """Send one request to an endpoint, in the REST API's own JSON (contract D).

        Args:
            name: The endpoint.
            inputs: The request body.
            served_model: Ask this served entity, whatever the traffic split says.
            wait: Wait for a rate limit that is used up, rather than raise.

        Raises:
            TooManyRequestsError: A rate limit is used up; `retry_after` says for how long.
            AiQueryError: The endpoint is unknown or not ready, or did not answer.
        """
        self.gateway.serving(name, wait=FIRST_DEPLOYMENT_SECONDS, caller=self.user)
        call = self.gateway.query(name, inputs, served_entity=served_model, caller=self.user, patient=wait)
        return engine_thread.run(call)

    def stream(
        self, name: str, inputs: Mapping[str, Any], served_model: str | None = None, *, wait: bool = False
    ) -> Iterator[Json]:
        """Send one request to an endpoint, and return the pieces of its answer as they come (contract D.5).

        The answer has begun when this returns. To leave the iteration early is to hang up.

        Args:
            name: The endpoint.
            inputs: The request body.
            served_model: Ask this served entity, whatever the traffic split says.
            wait: Wait for a rate limit that is used up, rather than raise.

        Raises:
            TooManyRequestsError: A rate limit is used up; `retry_after` says for how long.
            AiQueryError: The endpoint is unknown or not ready, or did not answer; also from the iteration.
        """
        self.gateway.serving(name, wait=FIRST_DEPLOYMENT_SECONDS, caller=self.user)
        begin = self.gateway.stream(name, inputs, served_entity=served_model, caller=self.user, patient=wait)
        return _pieces(engine_thread.run(begin))

    def alias_model(self, name: str, source: str, version: str = "") -> ModelAlias:
        """Let `system.ai.<name>` stand for a model, and serve it as the endpoint `databricks-<name>` to everybody.

        Nothing is loaded before the endpoint is asked. To name another model is to update it.

        Args:
            name: `databricks-<name>` or `system.ai.<name>`, which are one.
            source: A folder in Hugging Face's format, a model on a hub (`organisation/model`), or a registered model.
            version: The hub's revision, or the registered model's version; `models:/name/version` has it in it.

        Raises:
            ConfigurationError: The name is not legal or the endpoint is somebody else's, or there is no such model.
            PermissionDeniedError: Only admins name models.
        """
        return self._aliases.alias(self._who, name, source, version)

    def unalias_model(self, name: str) -> ModelAlias:
        """Forget a name of a model and delete its endpoint; returns what it stood for.

        Raises:
            ConfigurationError: It stands for nothing.
            PermissionDeniedError: Only admins name models.
        """
        return self._aliases.unalias(self._who, name)

    def model_aliases(self) -> list[ModelAlias]:
        """Return the names that were given to models, in their order."""
        return self.sources.aliases()

    def usage(self) -> list[Json]:
        """Return calls, rows, errors, tokens and latency per endpoint and served entity."""
        return self._usage.totals()

    def engines(self) -> list[Json]:
        """Return what the engines of foundation models do in this process, per endpoint and served entity."""
        return [
            {"endpoint": endpoint, "served_entity": name, **entity.report()}
            for endpoint, serving in sorted(self._registry.loaded().items())
            for name, entity in serving.entities.items()
            if isinstance(entity, ReportingEntity)
        ]

    def invocations(self) -> list[tuple[Any, ...]]:
        """Return every invocation, as the fields of `usage.Invocation`."""
        return self._usage.rows()

    def watch(self, watcher: Callable[[Any], None]) -> Callable[[], None]:
        """Call a function with every invocation that is recorded; returns what ends this."""
        return self._usage.subscribe(watcher)

    def close(self) -> None:
        """Write what is still to be written and give connections back."""
        with ExitStack() as last:  # one that cannot be closed keeps none of the others open; the last is closed first
            last.callback(self._store.close)
            if "ledger" in self.__dict__:
                last.callback(self.ledger.close)
            last.callback(self._usage.close)
            last.callback(self.payloads.close)
            for close in (self.gateway.close, self._transport.close, self.control.external.close):
                last.callback(_run, close)
            last.callback(self._registry.close)

    @property
    def _who(self) -> Principal:
        return self.access.principal(self.user)

    def _load(self, entity: ServedEntity, say: Callable[[str], None]) -> Entity:
        return self._loader.load(entity, say)


def register(connection: duckdb.DuckDBPyConnection, workspace: Workspace, *, look_ahead: bool = False) -> None:
    """Make `ai_query` available on a DuckDB connection and its cursors.

    Also `ai_served_entity(endpoint, request)`: which served entity of a traffic split answers a row. Nothing is
    written to the connection's database file.

    Args:
        connection: Any connection of DuckDB 2.x.
        workspace: Where the endpoints are.
        look_ahead: Keep an endpoint busy over the whole of a query, not 2,048 rows at a time: the part of a
            statement that yields its rows is run beside it to see what it will ask. Turns DuckDB's query log on.
    """
    from aiquery_udfs import duckdb_engine

    duckdb_engine.register(connection, workspace.execution, look_ahead=look_ahead)


def _run(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    engine_thread.run(close())


def _pieces(streamed: Streamed) -> Iterator[Json]:
    async def following() -> Json | None:
        return await anext(streamed, None)

    try:
        while (piece := engine_thread.run(following())) is not None:
            yield piece
    finally:
        if not sys.is_finalizing():  # else the loop's thread is gone, and nothing would ever come of it
            engine_thread.run(streamed.aclose())


def _wrapped(field: str, value: Any) -> Any:
    return value if isinstance(value, Mapping) else {field: value}
