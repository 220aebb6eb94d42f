"""The parser: request bodies in, checked values out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from aiquery_serving.endpoint import (
    AutoCapture,
    EndpointConfig,
    ExternalModel,
    RateLimit,
    Route,
    ServedEntity,
    check_endpoint_name,
)
from aiquery_serving.endpoint.rules import check_unique
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.wire.forms import (
    AclForm,
    AiGatewayForm,
    ConfigForm,
    CreateForm,
    EntityForm,
    ExternalModelForm,
    Form,
    GrantForm,
    NotificationsUpdateForm,
    ProvisionedCreateForm,
    ProvisionedUpdateForm,
    RateLimitForm,
    RateLimitsForm,
    RouteForm,
    TagForm,
    TagsForm,
    TelemetryUpdateForm,
)
from aiquery_serving.wire.guardrails import check_guardrails
from aiquery_serving.wire.providers import provider_config

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from aiquery_serving.wire.providers import Stash

FormT = TypeVar("FormT", bound=Form)

#: How many faults of one body are told at once.
_TOLD = 5
#: Models that need no version: folders, and those on a hub.
_UNVERSIONED = re.compile(r"~|[^/]*/")
_MESSAGES = {
    "missing": "is missing",
    "model_type": "should be a JSON object",
    "dict_type": "should be a JSON object",
    "list_type": "should be a list",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the body of a create request asks for."""

    name: str
    config: EndpointConfig | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    ai_gateway: dict[str, Any] | None = None
    description: str = ""
    route_optimized: bool = False
    email_notifications: dict[str, Any] | None = None
    telemetry_config: dict[str, Any] | None = None
    budget_policy_id: str | None = None


@dataclass(frozen=True, slots=True)
class TagChange:
    """Tags to set (key, value), and the keys of tags to remove."""

    add: tuple[tuple[str, str], ...] = ()
    delete: tuple[str, ...] = ()


def parse_create(payload: Mapping[str, Any], *, stash: Stash) -> Declaration:
    """Read the body of a create request.

    Raises:
        ConfigurationError: The body breaks the schema or a rule; nothing has been stashed.
    """
    return _declaration(_read(CreateForm, payload), stash)


def parse_provisioned_create(payload: Mapping[str, Any], *, stash: Stash) -> Declaration:
    """Read the body of a create request for reserved throughput.

    Raises:
        ConfigurationError: The body breaks the schema or a rule.
    """
    return _declaration(_read(ProvisionedCreateForm, payload), stash)


def _declaration(form: CreateForm, stash: Stash) -> Declaration:
    check_endpoint_name(form.name)
    _check_route_optimized(form)
    gateway, notifications, telemetry = form.ai_gateway, form.email_notifications, form.telemetry_config
    return Declaration(
        name=form.name,
        rate_limits=_rate_limits(form.rate_limits),
        tags=_tags(form.tags),
        ai_gateway=None if gateway is None else _ai_gateway(gateway),
        description=form.description,
        route_optimized=form.route_optimized,
        email_notifications=None if notifications is None else notifications.model_dump(),
        telemetry_config=None if telemetry is None else telemetry.model_dump(exclude_none=True),
        budget_policy_id=form.budget_policy_id,
        # Last, because it stashes secrets.
        config=None if form.config is None else _checked_config(form.config, 1, stash),
    )


def _check_route_optimized(form: CreateForm) -> None:
    if form.route_optimized and form.config and any(entity.external_model for entity in _entity_forms(form.config)):
        raise ConfigurationError("route_optimized is for models of your own: leave it out for an external model")


def parse_config(payload: Mapping[str, Any], *, config_version: int, stash: Stash) -> EndpointConfig:
    """Read an endpoint's core config, which is the body of a config update.

    Raises:
        ConfigurationError: The body breaks the schema or a rule; nothing has been stashed.
    """
    return _checked_config(_read(ConfigForm, payload, "config"), config_version, stash)


def parse_provisioned_config(
    payload: Mapping[str, Any], *, config_version: int, served: Mapping[str, str], stash: Stash
) -> EndpointConfig:
    """Read the body of a config update for reserved throughput.

    Args:
        payload: The body.
        config_version: The version of the new config.
        served: The version of each model that is served now, which stays where the body names none.
        stash: Keeps secrets.

    Raises:
        ConfigurationError: The body breaks the schema or a rule.
    """
    config = _read(ProvisionedUpdateForm, payload).config
    for entity in config.served_entities:
        entity.entity_version = entity.entity_version or served.get(entity.entity_name)
    return _checked_config(config, config_version, stash)


def parse_rate_limits(
    payload: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> tuple[RateLimit, ...]:
    """Read `{"rate_limits": [...]}`, or the list itself.

    Raises:
        ConfigurationError: A limit breaks the schema or a rule.
    """
    body = payload if isinstance(payload, Mapping) else {"rate_limits": payload}
    return _rate_limits(_read(RateLimitsForm, body).rate_limits)


def parse_tags(payload: Mapping[str, Any]) -> TagChange:
    """Read the body of a tags update, `add_tags` and `delete_tags`.

    Raises:
        ConfigurationError: The body breaks the schema, or adds one key twice.
    """
    form = _read(TagsForm, payload)
    return TagChange(_tags(form.add_tags), tuple(form.delete_tags))


def parse_ai_gateway(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Read an AI Gateway block; the result has the known members only, in their own types.

    Raises:
        ConfigurationError: The block breaks the schema, or a rate limit in it a rule.
    """
    return _ai_gateway(_read(AiGatewayForm, payload, "ai_gateway"))


def parse_notifications(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the body of a notifications update: whom to tell, or None for nobody.

    Raises:
        ConfigurationError: The body breaks the schema.
    """
    form = _read(NotificationsUpdateForm, payload).email_notifications
    return None if form is None else form.model_dump()


def parse_telemetry(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the body of a telemetry update; None removes the config.

    Raises:
        ConfigurationError: The body breaks the schema.
    """
    form = _read(TelemetryUpdateForm, payload).telemetry_config
    return None if form is None else form.model_dump(exclude_none=True)


def parse_acl(payload: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Read the body of a permissions update: kind of principal, its name, and the level, of each.

    Raises:
        ConfigurationError: The body breaks the schema, or an item names no or several principals.
    """
    forms = _read(AclForm, payload).access_control_list
    grants = tuple(_grant(form, f"access_control_list[{place}]") for place, form in enumerate(forms))
    check_unique("items of access_control_list are for", [f"{kind} {name}" for kind, name, _ in grants])
    return grants


def _grant(form: GrantForm, path: str) -> tuple[str, str, str]:
    holders = {
        "user": form.user_name,
        "group": form.group_name,
        "service_principal": form.service_principal_name,
    }
    named = [(kind, name) for kind, name in holders.items() if name is not None]
    if len(named) != 1:
        raise ConfigurationError(f"{path} needs one of user_name, group_name and service_principal_name")
    return (*named[0], form.permission_level)


def gateway_rate_limits(ai_gateway: Mapping[str, Any] | None) -> tuple[RateLimit, ...]:
    """Return the rate limits that an AI Gateway block declares.

    Raises:
        ConfigurationError: A limit breaks the schema or a rule.
    """
    return parse_rate_limits((ai_gateway or {}).get("rate_limits") or ())


def _read(form: type[FormT], payload: object, path: str = "") -> FormT:
    try:
        return form.model_validate(payload)
    except ValidationError as error:
        faults = [_fault(fault, path) for fault in error.errors()[:_TOLD]]
    # Outside the except block: pydantic's error holds the whole body, secrets included.
    raise ConfigurationError("; ".join(faults))


def _fault(fault: ErrorDetails, path: str) -> str:
    for step in fault["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    message = _MESSAGES.get(fault["type"], fault["msg"].replace("Input should", "should"))
    return f"{path.lstrip('.') or 'the request body'}: {message}"


def _checked_config(form: ConfigForm, version: int, stash: Stash) -> EndpointConfig:
    # A first pass that keeps nothing: a refused declaration must leave no secret behind.
    _config(form, version, lambda _name, _value: "{{secrets/checked/only}}")
    return _config(form, version, stash)


def _config(form: ConfigForm, version: int, stash: Stash) -> EndpointConfig:
    entities = _entities(form, stash)
    routes = tuple(
        _route(route, f"config.traffic_config.routes[{place}]")
        for place, route in enumerate(form.traffic_config.routes)
    )
    if not routes and len(entities) == 1:
        routes = (Route(entities[0].name, 100),)
    capture = form.auto_capture_config
    return EndpointConfig(
        served_entities=entities,
        routes=routes,
        config_version=version,
        auto_capture=None if capture is None else AutoCapture(**capture.model_dump()),
    )


def _entities(form: ConfigForm, stash: Stash) -> tuple[ServedEntity, ...]:
    if form.served_entities is not None and form.served_models is not None:
        raise ConfigurationError(
            "config has both served_entities and served_models, two words for one thing: keep served_entities"
        )
    word = "served_entities" if form.served_models is None else "served_models"
    return tuple(
        _entity(entity, f"config.{word}[{place}]", form.task, stash) for place, entity in enumerate(_entity_forms(form))
    )


def _entity_forms(form: ConfigForm) -> Sequence[EntityForm]:
    return form.served_entities or form.served_models or ()


def _entity(form: EntityForm, path: str, task: str | None, stash: Stash) -> ServedEntity:
    if form.external_model is None:
        _check_registered(form, path)
    name = form.name or _default_name(form)
    members = {member: getattr(form, member) for member in EntityForm.model_fields}
    return ServedEntity(
        **members
        | {
            "name": name,
            "external_model": form.external_model
            and _external(form.external_model, name, f"{path}.external_model", task, stash),
            "workload_size": _workload_size(form),
            "workload_type": form.workload_type.upper(),
        }
    )


def _check_registered(form: EntityForm, path: str) -> None:
    if not form.entity_name:
        raise ConfigurationError(f"{path} names no model: give entity_name and entity_version, or external_model")
    if not form.entity_version and not _UNVERSIONED.match(form.entity_name):
        raise ConfigurationError(f"{path}: entity_version is missing; say which version of {form.entity_name} to serve")


def _default_name(form: EntityForm) -> str:
    """Name an entity as contract C.2 says, without the characters that names cannot have."""
    if form.external_model is not None:
        name = form.external_model.name
    else:
        name = "-".join(filter(None, (_last_part(form.entity_name or ""), form.entity_version)))
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _last_part(name: str) -> str:
    """Return a model's name without its catalog and schema, or without the folders that it lies in."""
    return name.rstrip("/").rpartition("/" if "/" in name else ".")[2]


def _workload_size(form: EntityForm) -> str | None:
    """Return the size in its own spelling; Small where no member says how big."""
    if form.workload_size is not None:
        return form.workload_size.capitalize()
    declared = (
        form.external_model,
        form.min_provisioned_concurrency,
        form.max_provisioned_concurrency,
        form.min_provisioned_throughput,
        form.max_provisioned_throughput,
        form.provisioned_model_units,
    )
    return "Small" if all(member is None for member in declared) else None


def _external(form: ExternalModelForm, owner: str, path: str, task: str | None, stash: Stash) -> ExternalModel:
    task = form.task or task
    if not task:
        raise ConfigurationError(f"{path}.task is missing; say for example llm/v1/chat")
    model = ExternalModel(provider=form.provider.lower(), name=form.name, task=task)
    members = form.model_extra or {}
    return replace(
        model,
        config=provider_config(model.provider, members, owner=owner, path=path, stash=stash),
    )


def _route(form: RouteForm, path: str) -> Route:
    names = {form.served_entity_name, form.served_model_name} - {None, ""}
    if len(names) != 1:
        raise ConfigurationError(
            f"{path} must name one served entity: give served_entity_name, or the same name in served_model_name"
        )
    return Route(str(names.pop()), form.traffic_percentage)


def _rate_limits(forms: Sequence[RateLimitForm]) -> tuple[RateLimit, ...]:
    return tuple(RateLimit(**form.model_dump()) for form in forms)


def _tags(forms: Sequence[TagForm]) -> tuple[tuple[str, str], ...]:
    tags = {form.key: form.value for form in forms}
    if len(tags) != len(forms):
        raise ConfigurationError("tags: a key is given twice; give each key once")
    return tuple(tags.items())


def _ai_gateway(form: AiGatewayForm) -> dict[str, Any]:
    _rate_limits(form.rate_limits or ())
    block = form.model_dump(exclude_none=True)
    check_guardrails(block.get("guardrails") or {})
    return block
