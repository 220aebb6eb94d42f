"""Everything that is known about one endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiquery_serving.endpoint.config import EndpointConfig
from aiquery_serving.endpoint.rate_limit import RateLimit


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
    telemetry_config: Mapping[str, Any] | None = None
    budget_policy_id: str | None = None
