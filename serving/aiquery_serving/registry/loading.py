"""Loads served entities one by one, and writes down how that went, without the secrets they were given."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import EndpointConfig, ServedEntity
from aiquery_serving.errors import AiQueryError, SecretError, WorkspaceError
from aiquery_serving.messages import Entity
from aiquery_serving.registry.lifecycle import LoadFailure
from aiquery_serving.secrets import Secrets
from aiquery_serving.served_log import BUILD, SERVE, ServedLog

_REFERENCE = re.compile(r"\{\{[^{}]*\}\}")
#: Shorter ones would be found in every other word.
_SHORTEST_SECRET = 4

#: Writes a line of a served entity down.
Say: TypeAlias = Callable[[str], None]


class Loader:
    """Makes served entities ready to answer.

    Args:
        load: Makes one ready; may raise anything. It gets a function, too, that writes down what the entity says
            while it serves.
        secrets: What must not be written down.
        served_log: Where it is written down.
        clock: The time.
    """

    def __init__(
        self, load: Callable[[ServedEntity, Say], Entity], secrets: Secrets, served_log: ServedLog, clock: Clock
    ) -> None:
        self._load = load
        self._secrets = secrets
        self._log = served_log
        self._clock = clock

    def load(self, endpoint_id: str, entity: ServedEntity) -> Entity | LoadFailure:
        """Return a served entity that is ready, or why it is not."""
        began = self._clock.now()
        version = f" version {entity.entity_version}" if entity.entity_version else ""
        self._tell(endpoint_id, entity, f"Loading {entity.entity_name}{version}.")
        try:
            loaded = self._load(entity, partial(self._said, endpoint_id, entity))
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
            return self._failed(endpoint_id, entity, error)
        self._tell(endpoint_id, entity, f"Loaded in {self._clock.now() - began:.1f} s.")
        return loaded

    def tell_serving(self, endpoint_id: str, config: EndpointConfig) -> None:
        """Write down that a config has begun to serve."""
        for entity in config.served_entities:
            with suppress(WorkspaceError):
                self._log.write(endpoint_id, entity.name, SERVE, f"Serves in config version {config.config_version}.")

    def _said(self, endpoint_id: str, entity: ServedEntity, line: str) -> None:
        with suppress(WorkspaceError):
            self._log.write(endpoint_id, entity.name, SERVE, self._scrubbed(entity, line))

    def _failed(self, endpoint_id: str, entity: ServedEntity, error: Exception) -> LoadFailure:
        reason = self._scrubbed(entity, _reason(error))
        trace = self._scrubbed(entity, "".join(traceback.format_exception(error)))
        self._tell(endpoint_id, entity, f"Not loaded: {reason}\n{trace}")
        return LoadFailure(entity.name, reason)

    def _tell(self, endpoint_id: str, entity: ServedEntity, text: str) -> None:
        if entity.external_model is None:
            # An external model has nothing to build, and loads where nothing may wait for the disk.
            with suppress(WorkspaceError):
                self._log.write(endpoint_id, entity.name, BUILD, text)

    def _scrubbed(self, entity: ServedEntity, text: str) -> str:
        config = entity.external_model.config if entity.external_model else {}
        for place in (*_references(entity.environment_vars), *_references(config)):
            with suppress(SecretError, WorkspaceError):
                secret = self._secrets.resolve(place)
                text = text.replace(secret, "***") if len(secret) >= _SHORTEST_SECRET else text
        return text


def _references(settings: Mapping[str, Any]) -> Iterator[str]:
    for value in settings.values():
        if isinstance(value, Mapping):
            yield from _references(value)
        elif isinstance(value, str):
            yield from _REFERENCE.findall(value)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AiQueryError) else f"{type(error).__name__}: {error}"
