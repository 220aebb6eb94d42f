"""JSON schemas of what the server answers, and of what it reads (contract B.2, B.3, D, K)."""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from aiquery_serving.access import LEVELS
from aiquery_serving.messages import Json
from aiquery_serving.wire import forms

#: Where a document keeps its schemas.
HOME: Final = "#/components/schemas/"

TEXT: Final = {"type": "string"}
COUNT: Final = {"type": "integer"}
SWITCH: Final = {"type": "boolean"}
#: Milliseconds since 1970.
MOMENT: Final = {"type": "integer", "description": "Milliseconds since 1970."}
ANYTHING: Final[Json] = {}

_READ: Final = (
    forms.AclForm,
    forms.AiGatewayForm,
    forms.ConfigForm,
    forms.CreateForm,
    forms.NotificationsUpdateForm,
    forms.ProvisionedCreateForm,
    forms.ProvisionedUpdateForm,
    forms.RateLimitsForm,
    forms.TagsForm,
    forms.TelemetryUpdateForm,
)


def ref(name: str) -> Json:
    """Return a reference to a schema of the document."""
    return {"$ref": HOME + name}


def many(schema: Json) -> Json:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


def _some(schema: Json) -> Json:
    return {**many(schema), "minItems": 1}


#: A text as a model's tokenizer has it.
_TOKENS: Final = _some({"type": "integer", "minimum": 0})


def one_of(*words: str) -> Json:
    """Return the schema of a few words."""
    return {"type": "string", "enum": list(words)}


def record(required: dict[str, Json], optional: dict[str, Json] | None = None, *, open_to: Any = False) -> Json:
    """Return the schema of an object.

    Args:
        required: The members that are always there.
        optional: Those that may be.
        open_to: The schema of members that are not named; False for none of them.
    """
    properties = {**required, **(optional or {})}
    schema: Json = {"type": "object", "properties": properties, "additionalProperties": open_to}
    return {**schema, "required": list(required)} if required else schema


def _asked(required: dict[str, Json], optional: dict[str, Json]) -> Json:
    """Return the schema of a request to a model: null is as good as nothing, other members are the model's."""
    nullable = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in optional.items()}
    return record(required, nullable, open_to=True)


def read_schemas() -> dict[str, Json]:
    """Return the schemas of request bodies by name: the forms that read them."""
    _, found = models_json_schema([(form, "validation") for form in _READ], ref_template=HOME + "{model}")
    schemas: dict[str, Json] = found["$defs"]
    return schemas


def _served(model: str, version: str, more: dict[str, Json]) -> Json:
    sizes: dict[str, Json] = {
        "workload_size": TEXT,
        "workload_type": TEXT,
        "scale_to_zero_enabled": SWITCH,
        "min_provisioned_concurrency": COUNT,
        "max_provisioned_concurrency": COUNT,
        "provisioned_model_units": COUNT,
        "environment_vars": {"type": "object", "additionalProperties": TEXT},
        "instance_profile_arn": TEXT,
    }
    history = {"creator": TEXT, "creation_timestamp": MOMENT, "state": ref("ServedModelState")}
    return record({"name": TEXT, **history}, {model: TEXT, version: TEXT, **sizes, **more})


_THROUGHPUT: Final = {"min_provisioned_throughput": COUNT, "max_provisioned_throughput": COUNT}
_MODELS: Final = {"external_model": ref("ExternalModel"), "foundation_model": ref("FoundationModel")}
_CONFIG: Final = {
    "config_version": COUNT,
    "served_entities": many(ref("ServedEntity")),
    "traffic_config": record({"routes": many(ref("Route"))}),
}
_CONFIG_OPTIONS: Final = {"served_models": many(ref("ServedModel")), "auto_capture_config": ref("AutoCaptureConfig")}
_ENDPOINT: Final = {
    "name": TEXT,
    "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "creator": TEXT,
    "creator_display_name": TEXT,
    "creator_kind": one_of("User", "ServicePrincipal"),
    "creation_timestamp": MOMENT,
    "last_updated_timestamp": MOMENT,
    "state": ref("EndpointState"),
    "tags": many(ref("Tag")),
    "description": TEXT,
}
_ENDPOINT_OPTIONS: Final = {
    "task": TEXT,
    "ai_gateway": ref("AiGatewayForm"),
    "telemetry_config": ref("TelemetryConfig"),
    "endpoint_type": one_of("EXTERNAL_MODEL", "FOUNDATION_MODEL_API", "CUSTOM_MODEL"),
}
_USAGE: Final = record({"prompt_tokens": COUNT, "total_tokens": COUNT}, {"completion_tokens": COUNT}, open_to=True)
_LEVEL: Final = one_of(*LEVELS)

#: What is answered, by name.
ANSWERS: Final[dict[str, Json]] = {
    "Error": record({"error_code": TEXT, "message": TEXT}),
    "Nothing": record({}),
    "Tag": record({"key": TEXT}, {"value": TEXT}),
    "Tags": record({"tags": many(ref("Tag"))}),
    "EndpointState": record(
        {
            "ready": one_of("READY", "NOT_READY"),
            "config_update": one_of("NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED", "UPDATE_CANCELED"),
        }
    ),
    "ServedModelState": record(
        {
            "deployment": one_of(
                *(f"DEPLOYMENT_{state}" for state in ("CREATING", "READY", "RECOVERING", "FAILED", "ABORTED"))
            ),
            "deployment_state_message": TEXT,
        }
    ),
    # The provider's block beside these holds references in the place of keys.
    "ExternalModel": record({"provider": TEXT, "name": TEXT, "task": TEXT}, open_to={"type": "object"}),
    "FoundationModel": record({"name": TEXT, "display_name": TEXT, "description": TEXT, "docs": TEXT}),
    "ServedEntity": _served("entity_name", "entity_version", {**_THROUGHPUT, **_MODELS}),
    "ServedModel": _served("model_name", "model_version", {}),
    "Route": record(
        {
            "served_model_name": TEXT,
            "served_entity_name": TEXT,
            "traffic_percentage": {"type": "integer", "minimum": 0, "maximum": 100},
        }
    ),
    "AutoCaptureConfig": record(
        {
            "enabled": SWITCH,
            "state": record({"payload_table": record({"name": TEXT, "status": TEXT, "status_message": TEXT})}),
        },
        {"catalog_name": TEXT, "schema_name": TEXT, "table_name_prefix": TEXT},
    ),
    "Config": record(_CONFIG, _CONFIG_OPTIONS),
    "PendingConfig": record({**_CONFIG, "start_time": MOMENT}, _CONFIG_OPTIONS),
    "ConfigSummary": record(
        {"served_entities": many(record({"name": TEXT}, {"entity_name": TEXT, "entity_version": TEXT, **_MODELS}))},
        {"served_models": many(record({"name": TEXT, "model_name": TEXT, "model_version": TEXT}))},
    ),
    "TelemetryConfig": record(
        {},
        {
            "telemetry_profile_id": TEXT,
            "inference_table_config": ref("PayloadTableForm"),
            "enabled_telemetry_features": many(TEXT),
        },
    ),
    "Endpoint": record(
        {**_ENDPOINT, "permission_level": _LEVEL, "route_optimized": SWITCH},
        {
            **_ENDPOINT_OPTIONS,
            "config": ref("Config"),
            "pending_config": ref("PendingConfig"),
            "email_notifications": ref("NotificationsForm"),
            "effective_budget_policy_id": TEXT,
            "endpoint_url": TEXT,
            "data_plane_info": record(
                {"query_info": record({"endpoint_url": TEXT, "authorization_details": TEXT})},
            ),
        },
    ),
    "Endpoints": record(
        {
            "endpoints": many(
                record(_ENDPOINT, {**_ENDPOINT_OPTIONS, "config": ref("ConfigSummary"), "usage_policy_id": TEXT})
            )
        }
    ),
    "RateLimits": record({"rate_limits": many(ref("RateLimitForm"))}),
    "Notifications": record({"name": TEXT, "email_notifications": ref("NotificationsForm")}),
    "Logs": record({"logs": TEXT}),
    "OptimizationInfo": record({"optimizable": SWITCH}, {"model_type": TEXT, "throughput_chunk_size": COUNT}),
    "Permissions": record(
        {
            "object_id": TEXT,
            "object_type": one_of("serving-endpoint"),
            "access_control_list": many(
                record(
                    {
                        "all_permissions": many(
                            record(
                                {"permission_level": _LEVEL, "inherited": SWITCH},
                                {"inherited_from_object": many(TEXT)},
                            )
                        )
                    },
                    {"user_name": TEXT, "group_name": TEXT, "service_principal_name": TEXT, "display_name": TEXT},
                )
            ),
        }
    ),
    "PermissionLevels": record({"permission_levels": many(record({"permission_level": _LEVEL, "description": TEXT}))}),
    "ExternalFunctionRequest": record(
        {
            "connection_name": TEXT,
            "method": one_of("GET", "POST", "PUT", "PATCH", "DELETE"),
        },
        {
            "path": TEXT,
            "headers": {**TEXT, "description": "A JSON object, as text."},
            "json": {**TEXT, "description": "JSON, as text."},
            "params": {**TEXT, "description": "A JSON object, as text."},
            "sub_domain": TEXT,
        },
        open_to=True,
    ),
    "ChatRequest": _asked(
        {"messages": {**many(record({"role": TEXT}, {"content": ANYTHING}, open_to=True)), "minItems": 1}},
        {
            "max_tokens": {"type": "integer", "minimum": 1},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "top_p": {"type": "number", "minimum": 0, "maximum": 1},
            "n": {"type": "integer", "minimum": 1},
            "stop": {"anyOf": [TEXT, many(TEXT)]},
            "stream": SWITCH,
            "tools": many({"type": "object"}),
            "response_format": {"type": "object"},
        },
    ),
    "CompletionsRequest": _asked(
        {"prompt": {"anyOf": [TEXT, _some(TEXT)]}},
        {"max_tokens": {"type": "integer", "minimum": 1}, "stream": SWITCH},
    ),
    "EmbeddingsRequest": _asked(
        {"input": {"anyOf": [TEXT, _some(TEXT), _TOKENS, _some(_TOKENS)]}},
        {"dimensions": {"type": "integer", "minimum": 1}, "encoding_format": one_of("float", "base64")},
    ),
    "ChatCompletion": record(
        {"choices": many(record({"index": COUNT, "message": {"type": "object"}}, open_to=True))},
        {"id": TEXT, "object": one_of("chat.completion"), "created": COUNT, "model": TEXT, "usage": _USAGE},
        open_to=True,
    ),
    "Completion": record(
        {"choices": many(record({"index": COUNT, "text": TEXT}, open_to=True))},
        {"id": TEXT, "object": one_of("text_completion"), "created": COUNT, "model": TEXT, "usage": _USAGE},
        open_to=True,
    ),
    "Embeddings": record(
        {
            "data": many(
                record({"index": COUNT, "embedding": {"anyOf": [TEXT, many({"type": "number"})]}}, open_to=True)
            )
        },
        {"object": one_of("list"), "model": TEXT, "usage": _USAGE},
        open_to=True,
    ),
    "Query": {"type": "object", "description": "What the endpoint's models take; its own document says what."},
    "Answer": {"type": "object", "description": "What the endpoint's models answer."},
    "OpenAiRequest": record({"model": {**TEXT, "description": "The endpoint's name."}}, open_to=True),
}
