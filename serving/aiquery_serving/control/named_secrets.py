"""Secrets that a declaration names: who declares an endpoint decides where they are sent, so not everybody may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiquery_serving.access import ADMINS, Principal
from aiquery_serving.endpoint import EndpointRecord
from aiquery_serving.errors import PermissionDeniedError
from aiquery_serving.secrets import references


def check_secrets(who: Principal, body: Mapping[str, Any], record: EndpointRecord | None = None) -> None:
    """Let pass a declaration that names no secrets but those its endpoint has already; an admin's may name any.

    Args:
        who: Who declares.
        body: What.
        record: The endpoint, if there is one yet.

    Raises:
        PermissionDeniedError: It names another.
    """
    if who.is_admin:
        return
    others = _named(body) - (_of(record) if record else set())
    if others:
        raise PermissionDeniedError(
            f"'{who.name}' may not use the secret {min(others)}: that is for members of the group '{ADMINS}'."
            " Send a key of your own in the member that ends with '_plaintext': it is kept for this endpoint alone."
        )


def _of(record: EndpointRecord) -> set[str]:
    configs = [config for config in (record.config, record.pending_config) if config]
    entities = [entity for config in configs for entity in config.served_entities]
    models = [entity.external_model.config for entity in entities if entity.external_model]
    return set().union(*map(_named, models), *(_named(entity.environment_vars) for entity in entities))


def _named(part: Any) -> set[str]:
    """Return the references in all texts of a JSON value."""
    if isinstance(part, str):
        return set(references(part))
    values = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    return set().union(*map(_named, values))
