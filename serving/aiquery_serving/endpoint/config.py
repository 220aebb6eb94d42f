"""What an endpoint serves and how its traffic is split (contract C.1-C.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aiquery_serving.endpoint.entity import Kind, ServedEntity
from aiquery_serving.endpoint.rules import check_unique, require

MAX_SERVED_ENTITIES = 15


@dataclass(frozen=True, slots=True)
class Route:
    """A share of an endpoint's traffic, in whole per cent; 0 is legal (fallback only).

    Raises:
        ConfigurationError: The share is not between 0 and 100.
    """

    served_entity_name: str
    traffic_percentage: int

    def __post_init__(self) -> None:
        require(
            0 <= self.traffic_percentage <= 100,  # noqa: PLR2004 - per cent
            f"route to {self.served_entity_name!r}: traffic_percentage must be between 0 and 100, "
            f"got {self.traffic_percentage}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoCapture:
    """The deprecated way to declare an inference table; the AI Gateway block is the newer one."""

    catalog_name: str | None = None
    schema_name: str | None = None
    table_name_prefix: str | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """What an endpoint serves and how its traffic is split.

    Raises:
        ConfigurationError: A rule of contract C.1-C.4 is broken.
    """

    served_entities: tuple[ServedEntity, ...]
    routes: tuple[Route, ...]
    config_version: int = 1
    auto_capture: AutoCapture | None = None

    def __post_init__(self) -> None:
        _check_entities(self.served_entities)
        _check_routes(self.routes, [entity.name for entity in self.served_entities])

    @property
    def kind(self) -> Kind:
        """The kind that all served entities share."""
        return self.served_entities[0].kind

    @property
    def task(self) -> str | None:
        """What the endpoint does, as its external or foundation models say; None for custom models."""
        return self.served_entities[0].task


def check_update(old: EndpointConfig, new: EndpointConfig) -> None:
    """Refuse an update that turns an external endpoint into one of our own, or back.

    Task and provider of an external endpoint may change (contract C.5).

    Raises:
        ConfigurationError: One config is external and the other is not, or its inference table is renamed or
            turned on again.
    """
    require(
        (old.kind is Kind.EXTERNAL) == (new.kind is Kind.EXTERNAL),
        f"an endpoint of {old.kind} models cannot become one of {new.kind} models: create another endpoint",
    )
    if old.auto_capture and new.auto_capture:
        _check_capture(old.auto_capture, new.auto_capture)


def _check_capture(old: AutoCapture, new: AutoCapture) -> None:
    require(
        replace(new, enabled=old.enabled) == old,
        "auto_capture_config: catalog, schema and table name prefix stay as they were first declared",
    )
    require(
        old.enabled or not new.enabled,
        "auto_capture_config cannot be enabled again: use inference_table_config of the AI Gateway block",
    )


def _check_entities(entities: tuple[ServedEntity, ...]) -> None:
    require(entities, "served_entities is empty: declare at least one served entity")
    require(
        len(entities) <= MAX_SERVED_ENTITIES,
        f"an endpoint serves at most {MAX_SERVED_ENTITIES} entities, got {len(entities)}: use a second endpoint",
    )
    check_unique("served entities are named", [entity.name for entity in entities])
    require(
        len({entity.kind for entity in entities}) == 1,
        f"{' and '.join(sorted({entity.kind for entity in entities}))} models cannot share an endpoint: "
        "create one endpoint for each kind",
    )
    tasks = sorted({entity.task for entity in entities if entity.task})
    require(
        len(tasks) <= 1,
        f"the models of one endpoint must have one task, got {' and '.join(tasks)}: create one endpoint for each task",
    )


def _check_routes(routes: tuple[Route, ...], entities: list[str]) -> None:
    routed = [route.served_entity_name for route in routes]
    for name in routed:
        require(
            name in entities,
            f"a route leads to {name!r}, which is no served entity: name one of {', '.join(entities)}",
        )
    check_unique("routes lead to", routed)
    for name in entities:
        require(name in routed, f"served entity {name!r} has no route: add one, with 0 to rest it")
    total = sum(route.traffic_percentage for route in routes)
    require(
        total == 100,  # noqa: PLR2004 - per cent
        f"traffic_percentage must add up to 100 over all routes, got {total}",
    )
