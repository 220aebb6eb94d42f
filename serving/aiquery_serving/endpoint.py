"""What an endpoint is: frozen values and the rules every declaration must keep (contract C)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_SERVED_ENTITIES = 15
MAX_NAME_LENGTH = 63
#: Requests in flight that each workload size promises (contract C.4).
WORKLOAD_CONCURRENCY = {"small": 4, "medium": 16, "large": 64}
#: In flight at an external entity that declares no concurrency of its own.
EXTERNAL_CONCURRENCY = 256
CPU_TYPES = ("CPU", "CPU_MEDIUM", "CPU_LARGE")
GPU_TYPES = (
    "GPU_SMALL",
    "GPU_MEDIUM",
    "GPU_LARGE",
    "GPU_XLARGE",
    "GPU_XLARGE_8",
    "MULTIGPU_MEDIUM",
)
EXTERNAL_TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings")
#: The member of an external model that holds each provider's settings (contract B.2).
PROVIDER_BLOCKS = {
    "openai": "openai_config",
    "anthropic": "anthropic_config",
    "cohere": "cohere_config",
    "amazon-bedrock": "amazon_bedrock_config",
    "google-cloud-vertex-ai": "google_cloud_vertex_ai_config",
    "ai21labs": "ai21labs_config",
    "palm": "palm_config",
    "databricks-model-serving": "databricks_model_serving_config",
    "custom": "custom_provider_config",
}
RATE_LIMIT_KEYS = ("endpoint", "user", "user_group", "service_principal")

_NAME = re.compile(r"[A-Za-z0-9_-]+")
#: Endpoint names that would hide a path of the REST API (contract B.1).
_RESERVED_NAMES = ("pt", "get-model-optimization-info")


class Kind(StrEnum):
    """The kind of model behind an endpoint; one endpoint serves one kind."""

    CUSTOM = "custom"
    FOUNDATION = "foundation"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalModel:
    """Somebody else's API. `config` is the provider's block; its secrets are references only.

    Raises:
        ConfigurationError: The provider or task is unknown, the name is empty, or the block
            still holds a secret in clear.
    """

    provider: str
    name: str
    task: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.name, "external_model.name is empty: give the provider's model, e.g. gpt-5")
        _require_one_of("external_model.provider", self.provider, PROVIDER_BLOCKS)
        _require_one_of("external_model.task", self.task, EXTERNAL_TASKS)
        for member in self.config:
            _require(
                not member.endswith("_plaintext"),
                f"{member} must not be kept: store the secret and refer to it as {{{{secrets/scope/key}}}}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEntity:
    """One model behind an endpoint.

    Throughput is in tokens per second, concurrency in requests in flight. `repr` leaves the
    environment out, because people put keys there.

    Raises:
        ConfigurationError: The name or a size is not legal, or an external model declares
            what only a model of our own has (contract B.2, C.4).
    """

    name: str
    entity_name: str | None = None
    entity_version: str | None = None
    external_model: ExternalModel | None = None
    workload_size: str | None = None
    workload_type: str = "CPU"
    scale_to_zero_enabled: bool = False
    min_provisioned_concurrency: int | None = None
    max_provisioned_concurrency: int | None = None
    min_provisioned_throughput: int | None = None
    max_provisioned_throughput: int | None = None
    provisioned_model_units: int | None = None
    burst_scaling_enabled: bool = True
    environment_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    instance_profile_arn: str | None = None

    def __post_init__(self) -> None:
        _check_name("served entity", self.name)
        if self.external_model:
            _check_external(self)
        _check_bounds(self, "provisioned_concurrency")
        _check_size(self)
        _check_bounds(self, "provisioned_throughput")
        _check_units(self)

    @property
    def kind(self) -> Kind:
        """Whose model this is."""
        return Kind.EXTERNAL if self.external_model else Kind.CUSTOM

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight at once."""
        if self.max_provisioned_concurrency:
            return self.max_provisioned_concurrency
        if self.external_model:
            return EXTERNAL_CONCURRENCY
        return WORKLOAD_CONCURRENCY[(self.workload_size or "small").lower()]


@dataclass(frozen=True, slots=True)
class Route:
    """A share of an endpoint's traffic, in whole per cent; 0 is legal (fallback only).

    Raises:
        ConfigurationError: The share is not between 0 and 100.
    """

    served_entity_name: str
    traffic_percentage: int

    def __post_init__(self) -> None:
        _require(
            0 <= self.traffic_percentage <= 100,  # noqa: PLR2004 - per cent
            f"route to {self.served_entity_name!r}: traffic_percentage must be between 0 and 100, "
            f"got {self.traffic_percentage}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """`calls` and/or `tokens` per renewal period, counted for a `key`.

    Raises:
        ConfigurationError: Nothing is limited, a number is below 1, or key, principal and
            renewal period do not fit together (contract C.6).
    """

    calls: int | None = None
    tokens: int | None = None
    key: str = "endpoint"
    principal: str | None = None
    renewal_period: str = "minute"

    def __post_init__(self) -> None:
        _require_one_of("rate limit: key", self.key, RATE_LIMIT_KEYS)
        _require_one_of("rate limit: renewal_period", self.renewal_period, ("minute",))
        amounts = {"calls": self.calls, "tokens": self.tokens}
        _require(
            any(amount is not None for amount in amounts.values()),
            "rate limit: nothing is limited; give calls, tokens or both",
        )
        for name, amount in amounts.items():
            _require(amount is None or amount > 0, f"rate limit: {name} must be at least 1, got {amount}")
        _check_principal(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """What an endpoint serves and how its traffic is split.

    Raises:
        ConfigurationError: A rule of contract C.1-C.4 is broken.
    """

    served_entities: tuple[ServedEntity, ...]
    routes: tuple[Route, ...]
    config_version: int = 1

    def __post_init__(self) -> None:
        _check_entities(self.served_entities)
        _check_routes(self.routes, [entity.name for entity in self.served_entities])

    @property
    def kind(self) -> Kind:
        """The kind that all served entities share."""
        return self.served_entities[0].kind

    @property
    def task(self) -> str | None:
        """The task of an external endpoint; None for custom models."""
        external = self.served_entities[0].external_model
        return external.task if external else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecord:
    """Everything the REST API tells about one endpoint. Times are in milliseconds since 1970.

    `states` and `pending_states` map a served entity's name to its deployment state and the
    message that explains it; `id` is 32 hexadecimal digits.
    """

    name: str
    id: str
    creator: str
    created_ms: int
    updated_ms: int
    ready: bool
    config_update: str
    config: EndpointConfig | None = None
    pending_config: EndpointConfig | None = None
    pending_since_ms: int | None = None
    states: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    pending_states: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tags: tuple[tuple[str, str], ...] = ()
    description: str = ""
    route_optimized: bool = False
    ai_gateway: Mapping[str, Any] | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    email_notifications: Mapping[str, Any] | None = None
    permission_level: str = "CAN_MANAGE"


def check_endpoint_name(name: str) -> None:
    """Refuse a name that no endpoint may have.

    Raises:
        ConfigurationError: The name is empty, too long, has other characters than letters,
            digits, hyphens and underscores, or would hide a path of the REST API.
    """
    _check_name("endpoint", name)
    _require(
        len(name) <= MAX_NAME_LENGTH,
        f"endpoint name {name[:MAX_NAME_LENGTH]!r}... has {len(name)} characters: use at most {MAX_NAME_LENGTH}",
    )
    _require(
        name not in _RESERVED_NAMES,
        f"endpoint name {name!r} is taken by a path of the REST API: choose another",
    )


def check_update(old: EndpointConfig, new: EndpointConfig) -> None:
    """Refuse an update that turns an external endpoint into one of our own, or back.

    Task and provider of an external endpoint may change (contract C.5).

    Raises:
        ConfigurationError: One config is external and the other is not.
    """
    _require(
        (old.kind is Kind.EXTERNAL) == (new.kind is Kind.EXTERNAL),
        f"an endpoint of {old.kind} models cannot become one of {new.kind} models: create another endpoint",
    )


def _require(fact: object, otherwise: str) -> None:
    if not fact:
        raise ConfigurationError(otherwise)


def _require_one_of(what: str, value: str, choices: Iterable[str]) -> None:
    known = tuple(choices)
    _require(value in known, f"{what} must be one of {', '.join(known)}; got {value!r}")


def _check_name(what: str, name: str) -> None:
    _require(
        _NAME.fullmatch(name),
        f"{what} name {name[:MAX_NAME_LENGTH]!r} is not legal: use letters, digits, '-' and '_'",
    )


def _check_external(entity: ServedEntity) -> None:
    foreign = {
        "entity_name": entity.entity_name,
        "entity_version": entity.entity_version,
        "workload_size": entity.workload_size,
        "workload_type": entity.workload_type != "CPU",
        "scale_to_zero_enabled": entity.scale_to_zero_enabled,
        "min_provisioned_throughput": entity.min_provisioned_throughput is not None,
        "max_provisioned_throughput": entity.max_provisioned_throughput is not None,
        "provisioned_model_units": entity.provisioned_model_units is not None,
    }
    for member, given in foreign.items():
        _require(
            not given,
            f"served entity {entity.name!r} is an external model and cannot have {member}: leave out one of the two",
        )


def _check_size(entity: ServedEntity) -> None:
    who = f"served entity {entity.name!r}"
    _require_one_of(f"{who}: workload_type", entity.workload_type, CPU_TYPES + GPU_TYPES)
    if entity.workload_size is None:
        return
    _require(
        entity.workload_size.lower() in WORKLOAD_CONCURRENCY,
        f"{who}: workload_size must be one of Small, Medium, Large; got {entity.workload_size!r}",
    )
    _require(
        entity.max_provisioned_concurrency is None,
        f"{who} has both workload_size and provisioned concurrency: leave out one of the two",
    )


def _check_bounds(entity: ServedEntity, size: str) -> None:
    who = f"served entity {entity.name!r}"
    low: int | None = getattr(entity, f"min_{size}")
    high: int | None = getattr(entity, f"max_{size}")
    if high is None:
        _require(low is None, f"{who}: min_{size} also needs max_{size}")
        return
    _require(high > 0, f"{who}: max_{size} must be at least 1, got {high}")
    _require(
        0 <= (low or 0) <= high,
        f"{who}: min_{size} must be between 0 and max_{size} ({high}), got {low}",
    )


def _check_units(entity: ServedEntity) -> None:
    who, units = f"served entity {entity.name!r}", entity.provisioned_model_units
    if units is None:
        return
    _require(units > 0, f"{who}: provisioned_model_units must be at least 1, got {units}")
    _require(
        entity.max_provisioned_throughput is None,
        f"{who} has both provisioned_model_units and provisioned throughput: leave out one of them",
    )


def _check_principal(limit: RateLimit) -> None:
    if limit.key in ("user_group", "service_principal"):
        _require(
            limit.principal,
            f"rate limit: key {limit.key} needs a principal, the name of whom it counts",
        )
    if limit.key == "endpoint":
        _require(
            not limit.principal,
            f"rate limit: key endpoint counts everybody; for {limit.principal!r} alone use key "
            "user, user_group or service_principal",
        )


def _check_entities(entities: tuple[ServedEntity, ...]) -> None:
    _require(entities, "served_entities is empty: declare at least one served entity")
    _require(
        len(entities) <= MAX_SERVED_ENTITIES,
        f"an endpoint serves at most {MAX_SERVED_ENTITIES} entities, got {len(entities)}: use a second endpoint",
    )
    _check_unique("served entities are named", [entity.name for entity in entities])
    _require(
        len({entity.kind for entity in entities}) == 1,
        "custom and external models cannot share an endpoint: create one endpoint for each kind",
    )
    tasks = sorted({entity.external_model.task for entity in entities if entity.external_model})
    _require(
        len(tasks) <= 1,
        f"external models of one endpoint must have one task, got {' and '.join(tasks)}: "
        "create one endpoint for each task",
    )


def _check_routes(routes: tuple[Route, ...], entities: list[str]) -> None:
    routed = [route.served_entity_name for route in routes]
    for name in routed:
        _require(
            name in entities,
            f"a route leads to {name!r}, which is no served entity: name one of {', '.join(entities)}",
        )
    _check_unique("routes lead to", routed)
    for name in entities:
        _require(name in routed, f"served entity {name!r} has no route: add one, with 0 to rest it")
    total = sum(route.traffic_percentage for route in routes)
    _require(
        total == 100,  # noqa: PLR2004 - per cent
        f"traffic_percentage must add up to 100 over all routes, got {total}",
    )


def _check_unique(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        _require(count == 1, f"{count} {what} {name!r}: there may be one of each name")
