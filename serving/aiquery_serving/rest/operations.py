"""The operations of the server: one table that requests are answered by, and that documents are written from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from aiquery_serving.control import ControlPlane
from aiquery_serving.messages import Json

ENDPOINTS: Final = "/api/2.0/serving-endpoints"
PERMISSIONS: Final = "/api/2.0/permissions/serving-endpoints"
EXTERNAL: Final = "/api/2.0/external-function"
#: The answer of operations that give a text.
PLAIN: Final = "text/plain"


class Operation(NamedTuple):
    """What one method does at one path.

    `id` is the name that the Databricks SDK has for it. `answer` and `body` name schemas of `openapi_schemas`.
    `call` takes who asks, the parameters of the path, and the body if there is one; None: it needs more than that.
    """

    method: str
    path: str
    id: str
    summary: str
    answer: str
    body: str | None = None
    call: Callable[..., Json] | None = None


#: Contract B.1. What could be an endpoint's name stands before `{name}`.
CONTROL: Final = (
    Operation(
        "GET",
        f"{ENDPOINTS}/get-model-optimization-info/{{model}}/{{version}}",
        "get_model_optimization_info",
        "Say whether throughput can be reserved for a model.",
        "OptimizationInfo",
        call=ControlPlane.optimization_info,
    ),
    Operation(
        "POST",
        f"{ENDPOINTS}/pt",
        "create_provisioned_throughput_endpoint",
        "Create an endpoint of reserved throughput.",
        "Endpoint",
        body="ProvisionedCreateForm",
        call=ControlPlane.create_pt,
    ),
    Operation(
        "PUT",
        f"{ENDPOINTS}/pt/{{name}}/config",
        "update_provisioned_throughput_endpoint_config",
        "Replace what is served with reserved throughput.",
        "Endpoint",
        body="ProvisionedUpdateForm",
        call=ControlPlane.update_pt_config,
    ),
    Operation(
        "POST", ENDPOINTS, "create", "Create an endpoint.", "Endpoint", body="CreateForm", call=ControlPlane.create
    ),
    Operation("GET", ENDPOINTS, "list", "List the endpoints that you may see.", "Endpoints", call=ControlPlane.list),
    Operation("GET", f"{ENDPOINTS}/{{name}}", "get", "Show an endpoint.", "Endpoint", call=ControlPlane.get),
    Operation("DELETE", f"{ENDPOINTS}/{{name}}", "delete", "Delete an endpoint.", "Nothing", call=ControlPlane.delete),
    Operation(
        "PUT",
        f"{ENDPOINTS}/{{name}}/config",
        "update_config",
        "Replace what is served.",
        "Endpoint",
        body="ConfigForm",
        call=ControlPlane.update_config,
    ),
    Operation(
        "PUT",
        f"{ENDPOINTS}/{{name}}/rate-limits",
        "put",
        "Replace the rate limits.",
        "RateLimits",
        body="RateLimitsForm",
        call=ControlPlane.update_rate_limits,
    ),
    Operation(
        "PUT",
        f"{ENDPOINTS}/{{name}}/ai-gateway",
        "put_ai_gateway",
        "Replace the AI Gateway block.",
        "AiGatewayForm",
        body="AiGatewayForm",
        call=ControlPlane.update_ai_gateway,
    ),
    Operation(
        "PATCH",
        f"{ENDPOINTS}/{{name}}/tags",
        "patch",
        "Add and delete tags.",
        "Tags",
        body="TagsForm",
        call=ControlPlane.update_tags,
    ),
    Operation(
        "PATCH",
        f"{ENDPOINTS}/{{name}}/notifications",
        "update_notifications",
        "Replace who hears of updates.",
        "Notifications",
        body="NotificationsUpdateForm",
        call=ControlPlane.update_notifications,
    ),
    Operation(
        "PATCH",
        f"{ENDPOINTS}/{{name}}/telemetry-config",
        "patch_telemetry_config",
        "Change the telemetry.",
        "Endpoint",
        body="TelemetryUpdateForm",
        call=ControlPlane.patch_telemetry,
    ),
    Operation("GET", f"{ENDPOINTS}/{{name}}/metrics", "export_metrics", "Export an endpoint's metrics.", PLAIN),
    Operation("GET", f"{ENDPOINTS}/{{name}}/openapi", "get_open_api", "Describe how an endpoint is queried.", PLAIN),
    Operation(
        "GET",
        f"{ENDPOINTS}/{{name}}/served-models/{{served_model}}/build-logs",
        "build_logs",
        "Show what was said while a served model loaded.",
        "Logs",
        call=ControlPlane.build_logs,
    ),
    Operation(
        "GET",
        f"{ENDPOINTS}/{{name}}/served-models/{{served_model}}/logs",
        "logs",
        "Show what was said while a served model served.",
        "Logs",
        call=ControlPlane.logs,
    ),
    Operation(
        "GET",
        f"{PERMISSIONS}/{{id}}",
        "get_permissions",
        "Show who may do what.",
        "Permissions",
        call=ControlPlane.permissions_get,
    ),
    Operation(
        "PUT",
        f"{PERMISSIONS}/{{id}}",
        "set_permissions",
        "Replace permissions.",
        "Permissions",
        body="AclForm",
        call=ControlPlane.permissions_set,
    ),
    Operation(
        "PATCH",
        f"{PERMISSIONS}/{{id}}",
        "update_permissions",
        "Give permissions.",
        "Permissions",
        body="AclForm",
        call=ControlPlane.permissions_update,
    ),
    Operation(
        "GET",
        f"{PERMISSIONS}/{{id}}/permissionLevels",
        "get_permission_levels",
        "List the levels there are.",
        "PermissionLevels",
        call=ControlPlane.permission_levels,
    ),
    Operation(
        "POST",
        EXTERNAL,
        "http_request",
        "Send a request through a named connection.",
        PLAIN,
        body="ExternalFunctionRequest",
    ),
)
#: Contract B.4.
QUERIES: Final = (
    Operation("POST", "/serving-endpoints/{name}/invocations", "query", "Query an endpoint.", "Answer", "Query"),
    Operation(
        "POST",
        "/serving-endpoints/{name}/served-models/{served_model}/invocations",
        "query_served_model",
        "Query one served model, whatever the traffic split says.",
        "Answer",
        "Query",
    ),
    *(
        Operation("POST", f"{base}/{path}", f"{name}_{path.replace('/', '_')}", summary, "Answer", "OpenAiRequest")
        for base, name in (
            ("/serving-endpoints", "openai"),
            ("/ai-gateway/mlflow/v1", "mlflow"),
            ("/ai-gateway/openai/v1", "gateway"),
        )
        for path, summary in (
            ("chat/completions", "Chat with the endpoint that `model` names."),
            ("completions", "Complete a text with the endpoint that `model` names."),
            ("embeddings", "Embed texts with the endpoint that `model` names."),
            ("responses", "Ask the agent that `model` names."),
        )
    ),
)
