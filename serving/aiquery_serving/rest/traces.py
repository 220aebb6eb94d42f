"""Traces of requests with OpenTelemetry, where its standard variables ask for them; otherwise this costs nothing.

A span per request, which continues the trace that its `traceparent` names, and one in it per served entity that was
asked. Needs the extra `otel`, and the package of the exporter that `OTEL_TRACES_EXPORTER` names.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiquery_serving.usage import Invocation

_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OK: Final = "ok"
_INSTALL: Final = "Install it: pip install 'aiquery[otel]' opentelemetry-exporter-otlp"


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether the environment asks for traces.

    Examples:
        >>> wanted({}), wanted({"OTEL_TRACES_EXPORTER": "console"}), wanted({"OTEL_TRACES_EXPORTER": "none"})
        (False, True, False)
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    named = environment.get(_EXPORTER, "")
    return named != "none" if named else any(environment.get(name) for name in _ENDPOINTS)


class Traces:
    """Writes spans to where the environment says.

    Raises:
        ConfigurationError: OpenTelemetry or the exporter is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

            self._provider, self._middleware = _provider(), OpenTelemetryMiddleware
        except ImportError as error:
            raise ConfigurationError(
                f"The environment asks for OpenTelemetry traces, and '{error.name}' is missing. {_INSTALL}"
            ) from error
        self._tracer = self._provider.get_tracer("aiquery")

    def around(self, app: Any) -> Any:
        """Return an ASGI application that writes a span per request around another."""
        return self._middleware(
            app, tracer_provider=self._provider, exclude_spans=["receive", "send"], excluded_urls="/health,/ready"
        )  # fmt: skip

    def invoked(self, invocation: Invocation) -> None:
        """Write the span of an invocation that has ended, below the request that it was made for."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            f"invoke {invocation.endpoint}",
            kind=SpanKind.CLIENT,
            start_time=invocation.started_ms * 1_000_000,
            attributes=_attributes(invocation),
        )
        if invocation.status != _OK:
            span.set_status(Status(StatusCode.ERROR, invocation.status))
        span.end(int((invocation.started_ms + invocation.latency_ms) * 1_000_000))

    def close(self) -> None:
        """Send what is still to be sent."""
        flush: Callable[[], object] | None = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flush()


def _attributes(invocation: Invocation) -> dict[str, str | int]:
    return {
        "aiquery.endpoint": invocation.endpoint,
        "aiquery.served_entity": invocation.served_entity,
        "aiquery.attempts": invocation.attempts,
        "aiquery.rows": invocation.rows,
        "gen_ai.usage.input_tokens": invocation.prompt_tokens,
        "gen_ai.usage.output_tokens": invocation.completion_tokens,
    }


def _provider() -> Any:
    """Return the provider that the process has already (`opentelemetry-instrument` makes one), or a new one."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    present = trace.get_tracer_provider()
    if isinstance(present, TracerProvider):
        return present
    provider = TracerProvider()
    for name in (os.environ.get(_EXPORTER) or "otlp").split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
    trace.set_tracer_provider(provider)
    return provider


def _exporter(name: str) -> Any:
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found.load()()
    raise ConfigurationError(f"{_EXPORTER} names the exporter '{name}', which is not installed. {_INSTALL}")
