"""Models that a declaration names by folder or on a hub: whose files the server reads and runs is for admins to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aiquery_serving.access import ADMINS, Principal
from aiquery_serving.endpoint import EndpointRecord
from aiquery_serving.errors import PermissionDeniedError
from aiquery_serving.hub import is_name
from aiquery_serving.model_sources import is_folder

_ADAPTER = "AIQUERY_ADAPTER"
_MEMBERS = ("entity_name", "model_name", _ADAPTER)


def check_models(who: Principal, body: Mapping[str, Any], record: EndpointRecord | None = None) -> None:
    """Let pass a declaration of registered models and those its endpoint has already; an admin's may name any.

    Args:
        who: Who declares.
        body: What.
        record: The endpoint, if there is one yet.

    Raises:
        PermissionDeniedError: It names another folder, or another model on a hub.
    """
    if who.is_admin:
        return
    others = {*_named(body)} - (_of(record) if record else set())
    if others:
        raise PermissionDeniedError(
            f"'{who.name}' may not serve {min(others)!r}: folders and models on a hub are for members of the group"
            f" '{ADMINS}' to serve. Ask one to name it (aiquery models alias), or register it with MLflow."
        )


def _of(record: EndpointRecord) -> set[str]:
    configs = [config for config in (record.config, record.pending_config) if config]
    entities = [entity for config in configs for entity in config.served_entities]
    adapters = (entity.environment_vars.get(_ADAPTER, "") for entity in entities)
    return {*(entity.entity_name or "" for entity in entities), *adapters}


def _named(part: Any) -> Iterator[str]:
    """Yield the folders and the names on a hub in a JSON value."""
    if isinstance(part, list | tuple):
        for value in part:
            yield from _named(value)
    if isinstance(part, Mapping):
        for member, value in part.items():
            if member in _MEMBERS and isinstance(value, str) and (member == _ADAPTER or _outside(value)):
                yield value
            yield from _named(value)


def _outside(name: str) -> bool:
    return is_folder(name) or is_name(name)
