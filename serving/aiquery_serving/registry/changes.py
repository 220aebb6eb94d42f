"""Changes of an endpoint that need nothing to be loaded: from one record to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiquery_serving.endpoint import EndpointConfig, EndpointRecord, Kind
from aiquery_serving.errors import ConfigurationError, UpdateConflictError
from aiquery_serving.payload_log import check_inference_table_change
from aiquery_serving.registry.lifecycle import IN_PROGRESS
from aiquery_serving.wire import TagChange


def with_tags(record: EndpointRecord, change: TagChange) -> EndpointRecord:
    """Return the endpoint with tags added and taken away."""
    tags = {**dict(record.tags), **dict(change.add)}
    return replace(record, tags=tuple((key, value) for key, value in tags.items() if key not in change.delete))


def with_ai_gateway(record: EndpointRecord, block: Mapping[str, Any] | None) -> EndpointRecord:
    """Return the endpoint with another AI Gateway block, or without one.

    Raises:
        ConfigurationError: An inference table that is enabled gets another name.
    """
    check_inference_table_change(record.name, record.ai_gateway, block)
    return replace(record, ai_gateway=block)


def with_telemetry(record: EndpointRecord, declared: Mapping[str, Any] | None, *, new_id: str) -> EndpointRecord:
    """Return the endpoint with a telemetry config, or without one.

    Raises:
        UpdateConflictError: An update of the endpoint is in progress.
        ConfigurationError: It serves nothing, or external models.
    """
    refuse_conflict(record)
    if (why := _untold(record.config)) is not None:
        raise ConfigurationError(
            f"Telemetry configuration is not supported for endpoint type '{why}'. Endpoint '{record.name}' has to"
            " serve a model of your own."
        )
    config = None if declared is None else telemetry(declared, record.telemetry_config, new_id=new_id)
    return replace(record, telemetry_config=config)


def first_telemetry(
    declared: Mapping[str, Any] | None, config: EndpointConfig | None, *, new_id: str
) -> Mapping[str, Any] | None:
    """Return the telemetry config of a new endpoint; one that cannot have any gets none."""
    return None if declared is None or _untold(config) else telemetry(declared, None, new_id=new_id)


def telemetry(declared: Mapping[str, Any], old: Mapping[str, Any] | None, *, new_id: str) -> Mapping[str, Any] | None:
    """Return the telemetry config that is kept (contract B.2): names of tables become a profile of their own.

    Args:
        declared: What was asked for; without a profile and names of tables it changes nothing.
        old: What was kept before.
        new_id: The id of a new profile.
    """
    kept = {name: value for name, value in declared.items() if name != "table_names"}
    tables: Mapping[str, str] | None = declared.get("table_names")
    if tables is None:
        return kept if "telemetry_profile_id" in kept else old
    kept["telemetry_profile_id"] = new_id
    if "logs_table" in tables:
        sampled = kept.get("inference_table_config", {})
        kept["inference_table_config"] = {**sampled, "name": f"{tables['logs_table']}_payload"}
    return kept


def with_old_capture(config: EndpointConfig, before: EndpointConfig | None, endpoint: str) -> EndpointConfig:
    """Return a config whose deprecated inference table is the one before, unless it says otherwise."""
    capture = config.auto_capture or (before.auto_capture if before else None)
    if capture and not capture.table_name_prefix:
        capture = replace(capture, table_name_prefix=endpoint)
    return replace(config, auto_capture=capture)


def refuse_conflict(record: EndpointRecord) -> None:
    """Refuse a second update while one is in progress.

    Raises:
        UpdateConflictError: One is.
    """
    if record.config_update == IN_PROGRESS:
        raise conflict(record.name, "is being updated already")


def conflict(name: str, what: str) -> UpdateConflictError:
    """Return the error of an update that comes at the wrong time."""
    return UpdateConflictError(
        f"Endpoint '{name}' {what}. Wait until its config_update is no longer IN_PROGRESS, then update it again."
    )


def _untold(config: EndpointConfig | None) -> str | None:
    """Return the type of an endpoint that reports nothing."""
    if config is None:
        return "NO_CONFIG"
    return "EXTERNAL_MODELS" if config.kind is Kind.EXTERNAL else None
