"""What a server serves, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiquery_serving.access import Access
    from aiquery_serving.control import ControlPlane
    from aiquery_serving.gateway import Gateway
    from aiquery_serving.rest.messages import Observer
    from aiquery_serving.rest.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Serves:
    """All that the routes need.

    Attributes:
        control: Manages endpoints, as whoever asks.
        gateway: Answers requests to endpoints.
        access: Knows tokens and permissions.
        local_user: Who asks without a token, for a server that only this machine can reach; None: every
            request needs a token.
        metrics: What the endpoints' metrics are read from.
        observers: Who is told of every request and its answer: logs, metrics.
        body_seconds: How long a client may take to send a body.
        warming: Says whether endpoints in service are still loading in this process.
    """

    control: ControlPlane
    gateway: Gateway
    access: Access
    local_user: str | None
    metrics: Metrics | None = None
    observers: tuple[Observer, ...] = ()
    body_seconds: float = 60.0
    warming: Callable[[], bool] = lambda: False
