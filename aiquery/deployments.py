"""MLflow's deployments plugin: `mlflow.deployments.get_deploy_client("aiquery")`, no server needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow.deployments import BaseDeploymentClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from aiquery.client import Workspace
from aiquery_serving.errors import AiQueryError
from aiquery_serving.messages import Json


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> None:
    """Refuse: endpoints of a workspace are local already."""
    msg = "aiquery serves in your own process: use create_endpoint() of get_deploy_client('aiquery')."
    raise MlflowException(msg)


def target_help() -> str:
    """Describe the target for `mlflow deployments help`."""
    return (
        "aiquery: endpoints that live in a workspace folder and are served in your own process.\n"
        "Targets: 'aiquery' (AIQUERY_HOME, else ./.aiquery) or 'aiquery:/path/to/workspace'.\n"
        "Configs are the JSON of the Databricks Model Serving REST API."
    )


class AiQueryDeploymentClient(BaseDeploymentClient):  # type: ignore[misc]  # MLflow has no types
    """The endpoints of a workspace, through MLflow's deployments calls.

    Args:
        target_uri: `aiquery`, or `aiquery:/path/to/workspace`.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri=target_uri)
        _, _, path = target_uri.partition(":")
        with _mlflow_errors():
            self.workspace = Workspace(path.removeprefix("//") or None)

    def create_endpoint(
        self,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        route_optimized: bool | None = None,
    ) -> Json:
        """Create an endpoint.

        Args:
            name: Its name, where `config` does not hold it.
            config: The whole body of the REST API, or only its inner `config`; `tags`, `rate_limits` and the
                body's other fields may then stand in it.
            route_optimized: The same as in the body.
        """
        body = _whole_body(dict(config or {}))
        name = _one_name(name, body.pop("name", None))
        if route_optimized is not None and body.setdefault("route_optimized", route_optimized) != route_optimized:
            raise MlflowException.invalid_parameter_value(
                f"Conflicting 'route_optimized' values for endpoint '{name}': give it only within config."
            )
        return _said(self.workspace.create_endpoint, name, **body)

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> Json:
        """Update a config or, when that is all `config` holds, the rate limits. Deprecated by MLflow."""
        warnings.warn(
            "update_endpoint is deprecated: use update_endpoint_config or update_endpoint_rate_limits.",
            FutureWarning,
            stacklevel=2,
        )
        if set(config or {}) == {"rate_limits"}:
            return self.update_endpoint_rate_limits(endpoint, config)
        return self.update_endpoint_config(endpoint, config)

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any] | None) -> Json:
        """Replace what an endpoint serves."""
        return _said(self.workspace.update_endpoint_config, endpoint, config or {})

    def update_endpoint_rate_limits(self, endpoint: str, config: Mapping[str, Any] | None) -> Json:
        """Replace an endpoint's rate limits: `{"rate_limits": [...]}`."""
        return _said(self.workspace.update_endpoint_rate_limits, endpoint, config or {})

    def update_endpoint_tags(self, endpoint: str, config: Mapping[str, Any]) -> Json:
        """Change an endpoint's tags: `{"add_tags": [...], "delete_tags": [...]}`."""
        return _said(self.workspace.update_endpoint_tags, endpoint, config)

    def update_endpoint_ai_gateway(self, endpoint: str, config: Mapping[str, Any]) -> Json:
        """Replace an endpoint's AI Gateway block."""
        return _said(self.workspace.update_endpoint_ai_gateway, endpoint, config)

    def delete_endpoint(self, endpoint: str) -> Json:
        """Delete an endpoint."""
        return _said(self.workspace.delete_endpoint, endpoint)

    def list_endpoints(self) -> list[Json]:
        """Return every endpoint, in short."""
        with _mlflow_errors():
            return [DeployedEndpoint(item) for item in self.workspace.list_endpoints()]

    def get_endpoint(self, endpoint: str) -> Json:
        """Return one endpoint with its state and config."""
        return _said(self.workspace.get_endpoint, endpoint)

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> Json:
        """Send one request; waits for a rate limit, as MLflow's clients of a server retry a 429."""
        name = _one_name(endpoint, deployment_name)
        return _said(self.workspace.query, name, _request_body(name, inputs), wait=True)

    def predict_stream(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> Iterator[Json]:
        """Send one request and return the pieces of its answer as they come."""
        name = _one_name(endpoint, deployment_name)
        with _mlflow_errors():
            pieces = self.workspace.stream(name, _request_body(name, inputs), wait=True)
        return _translated(pieces)

    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> Json:  # fmt: skip
        """Refuse: aiquery has endpoints (MLflow's newer calls), not deployments."""
        raise MlflowException(_ENDPOINTS_ONLY)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Any = None,
        endpoint: str | None = None,
    ) -> Json:
        """Refuse: see `update_endpoint_config`."""
        raise MlflowException(_ENDPOINTS_ONLY)

    def delete_deployment(self, name: str, config: Any = None, endpoint: str | None = None) -> None:
        """Refuse: see `delete_endpoint`."""
        raise MlflowException(_ENDPOINTS_ONLY)

    def list_deployments(self, endpoint: str | None = None) -> list[Json]:
        """Refuse: see `list_endpoints`."""
        raise MlflowException(_ENDPOINTS_ONLY)

    def get_deployment(self, name: str, endpoint: str | None = None) -> Json:
        """Refuse: see `get_endpoint`."""
        raise MlflowException(_ENDPOINTS_ONLY)


class DeployedEndpoint(dict[str, Any]):
    """The JSON of an answer whose fields are attributes too, as MLflow's own clients return it."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            value = self[name]
            return DeployedEndpoint(value) if isinstance(value, dict) else value
        msg = f"There is no field {name!r} here; the fields are: {', '.join(self)}."
        raise AttributeError(msg)


_ENDPOINTS_ONLY = "aiquery has endpoints, not deployments: use the *_endpoint calls of this client."
#: What tells the REST body's inner `config` from the whole body.
_INNER_FIELDS = frozenset({"served_entities", "served_models", "traffic_config"})
#: What else may stand beside those, and belongs to the body.
_LIFTED_FIELDS = ("tags", "rate_limits", "ai_gateway", "description", "email_notifications", "route_optimized")


def _whole_body(config: dict[str, Any]) -> dict[str, Any]:
    if "config" in config or not _INNER_FIELDS & config.keys():
        return config
    lifted = {field: config.pop(field) for field in _LIFTED_FIELDS if field in config}
    return {"config": config, **lifted}


def _one_name(first: str | None, second: str | None) -> str:
    if first and second and first != second:
        msg = f"Name mismatch: {first!r} and {second!r} were both given as the endpoint's name."
        raise MlflowException.invalid_parameter_value(msg)
    if name := first or second:
        return name
    raise MlflowException.invalid_parameter_value("Give the endpoint's name: name=..., or 'name' in config.")


def _request_body(name: str, inputs: Any) -> Mapping[str, Any]:
    if not isinstance(inputs, Mapping):
        raise MlflowException.invalid_parameter_value(
            f"inputs must be a request body of endpoint '{name}', for example {{'messages': [...]}} or "
            f"{{'dataframe_split': ...}}; got {type(inputs).__name__}."
        )
    return inputs


def _translated(pieces: Iterator[Json]) -> Iterator[Json]:
    with _mlflow_errors():
        for piece in pieces:
            yield DeployedEndpoint(piece)


def _said(call: Callable[..., Json], *arguments: Any, **options: Any) -> Json:
    with _mlflow_errors():
        return DeployedEndpoint(call(*arguments, **options))


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Turn the workspace's errors into MLflow's, with the same code and sentence."""
    try:
        yield
    except AiQueryError as error:
        raise MlflowException(str(error), error_code=_code(error)) from error


def _code(error: AiQueryError) -> int:
    return int(getattr(databricks_pb2, error.error_code, databricks_pb2.INTERNAL_ERROR))
