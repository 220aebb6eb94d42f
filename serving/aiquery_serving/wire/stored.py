"""How a config is kept in the workspace: every field, nothing added, nothing renamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aiquery_serving.endpoint import AutoCapture, EndpointConfig, ExternalModel, FoundationModel, Route, ServedEntity


def dump_config(config: EndpointConfig) -> dict[str, Any]:
    """Return a config as JSON that `load_config` turns back into an equal one."""
    return asdict(config)


def load_config(stored: Mapping[str, Any]) -> EndpointConfig:
    """Return the config that `dump_config` was given.

    Raises:
        ConfigurationError: The stored config breaks a rule, so somebody else wrote it.
    """
    capture = stored.get("auto_capture")  # earlier versions kept none
    return EndpointConfig(
        served_entities=tuple(_entity(entity) for entity in stored["served_entities"]),
        routes=tuple(Route(**route) for route in stored["routes"]),
        config_version=stored["config_version"],
        auto_capture=AutoCapture(**capture) if capture else None,
    )


def _entity(stored: Mapping[str, Any]) -> ServedEntity:
    external, foundation = stored["external_model"], stored.get("foundation_model")  # earlier versions knew none
    models = {
        "external_model": ExternalModel(**external) if external else None,
        "foundation_model": FoundationModel(**foundation) if foundation else None,
    }
    return ServedEntity(**{**stored, **models})
