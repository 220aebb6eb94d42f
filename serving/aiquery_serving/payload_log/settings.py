"""Which endpoints log their payloads, and what may be changed about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiquery_serving.endpoint import AutoCapture
from aiquery_serving.errors import ConfigurationError

_NAMES = ("catalog_name", "schema_name", "table_name_prefix")


def is_logged(ai_gateway: Mapping[str, Any] | None, auto_capture: AutoCapture | None = None) -> bool:
    """Say whether an endpoint logs its payloads, in the new way or the deprecated one."""
    table = (ai_gateway or {}).get("inference_table_config") or {}
    return bool(table.get("enabled")) or (auto_capture is not None and auto_capture.enabled)


def check_inference_table_change(endpoint: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
    """Refuse another name for an inference table that is enabled and stays so.

    Args:
        endpoint: The endpoint's name, which is the prefix of its table unless another is given.
        old: The AI Gateway block as it is.
        new: The AI Gateway block as it is to be.

    Raises:
        ConfigurationError: Catalog, schema or prefix changes; the message says how it can.
    """
    if not (is_logged(old) and is_logged(new)):
        return
    for member, (before, after) in _changed(_names(endpoint, old), _names(endpoint, new)).items():
        raise ConfigurationError(
            f"ai_gateway.inference_table_config.{member} cannot change from {before!r} to {after!r} while the table is "
            "enabled: disable it first, with a second update before this one"
        )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {member: (old[member], new[member]) for member in _NAMES if old[member] != new[member]}


def _names(endpoint: str, block: Mapping[str, Any] | None) -> dict[str, Any]:
    table = (block or {})["inference_table_config"]
    return {member: table.get(member) for member in _NAMES} | {
        "table_name_prefix": table.get("table_name_prefix") or endpoint
    }
