"""From what is declared of a served entity to what answers its requests, whichever kind it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from aiquery_serving.chunk_sizes import ChunkSizes, provisioned
from aiquery_serving.endpoint import FoundationModel, ServedEntity
from aiquery_serving.entities.external import HttpTransport, load_external
from aiquery_serving.entities.pyfunc import load_pyfunc
from aiquery_serving.entities.workers import load_in_process, own_environment, replicas_of, usable_cores
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.llm.model_files import ModelFiles, find
from aiquery_serving.llm.settings import EngineSettings
from aiquery_serving.messages import Entity
from aiquery_serving.model_sources import ModelSources
from aiquery_serving.secrets import Secrets
from aiquery_serving.throughput import provision

#: After how long without a request a model that scales to zero gives its process or its memory up, in seconds.
IDLE_SECONDS = 1800.0

Say = Callable[[str], None]


class EntityLoader:
    """Makes served entities of a workspace ready. From any thread; blocks it.

    Args:
        sources: Where models come from.
        secrets: What references in served entities stand for.
        transport: What requests to external models go over.
        chunk_sizes: The steps in which throughput is provisioned.
        isolated: Run every custom model in processes of its own.
        home: The folder below which models' own environments are kept; the user's cache unless given.
    """

    def __init__(
        self,
        sources: ModelSources,
        secrets: Secrets,
        transport: HttpTransport,
        chunk_sizes: ChunkSizes,
        *,
        isolated: bool,
        home: Path | None = None,
    ) -> None:
        self._sources = sources
        self._secrets = secrets
        self._transport = transport
        self._chunk_sizes = chunk_sizes
        self._isolated = isolated
        self._home = home

    def resolve(self, entity: ServedEntity) -> ServedEntity:
        """Return a served entity with what its model's files say of it.

        Raises:
            ConfigurationError: There is no such model, it cannot be served, a setting of its engine is not legal, or
                throughput cannot be provisioned for it like that.
        """
        if entity.entity_name is None:
            return entity
        files = self._described(entity.entity_name, entity.entity_version or "")
        if files is None:
            own_environment(entity.name, entity.environment_vars)
            return provisioned(entity, self._chunk_sizes, {})
        EngineSettings.parse(entity.environment_vars, entity.workload_type)
        return provisioned(replace(entity, foundation_model=_model(files)), self._chunk_sizes, files.config)

    def foundation(self, name: str, version: str) -> FoundationModel | None:
        """Return what a model is, with the step in which its throughput is provisioned; None for a custom one.

        Raises:
            ConfigurationError: There is no such model, or it cannot be served.
        """
        files = self._described(name, version)
        return None if files is None else self._chunk_sizes.found(name, version, _model(files), files.config)

    def _described(self, name: str, version: str) -> ModelFiles | None:
        folder = self._sources.path(name, version, weights=False)
        files = find(folder, weights=False)
        if files is None:
            _check_custom(folder)
        return files

    def load(self, entity: ServedEntity, say: Say) -> Entity:
        """Make a served entity ready; `say` writes down what it says while it serves.

        Raises:
            AiQueryError: It cannot be made ready; the message says why.
        """
        if entity.external_model is not None:
            return load_external(entity.external_model, resolve=self._secrets.resolve, transport=self._transport)
        path = self._sources.path(entity.entity_name or "", entity.entity_version or "")
        environment = {name: self._secrets.resolve(value) for name, value in entity.environment_vars.items()}
        if entity.foundation_model is not None:
            return _foundation(path, entity, environment, say)
        return self._custom(path, entity, environment, say)

    def _custom(self, path: Path, entity: ServedEntity, environment: Mapping[str, str], say: Say) -> Entity:
        if not self._isolated and not own_environment(entity.name, environment):
            return load_pyfunc(path, name=entity.name, environment=environment)
        return load_in_process(
            path,
            name=entity.name,
            environment=environment,
            on_line=lambda level, line: say(line) if level >= logging.INFO else None,
            replicas=replicas_of(entity, cores=usable_cores()),
            idle_seconds=IDLE_SECONDS,
            home=self._home,
        )


def _model(files: ModelFiles) -> FoundationModel:
    return FoundationModel(task=files.task, model_type=files.model_type)


def _foundation(path: Path, entity: ServedEntity, environment: Mapping[str, str], say: Say) -> Entity:
    from aiquery_serving.entities.foundation import load_foundation

    files = find(path, task=entity.task)
    if files is None:
        raise ConfigurationError(f"The files of '{entity.entity_name}' in {path} are no foundation model any more.")
    reserved = provision(entity)
    sleeps = entity.scale_to_zero_enabled if reserved is None else reserved.minimum == 0
    return load_foundation(
        files,
        name=entity.name,
        settings=EngineSettings.parse(environment, entity.workload_type),
        idle_seconds=IDLE_SECONDS if sleeps else None,
        on_demand=sleeps,
        say=say,
    )


def _check_custom(folder: Path) -> None:
    if not (folder / "MLmodel").is_file():
        raise ConfigurationError(
            f"The folder {folder} holds no model: neither MLflow's MLmodel nor Hugging Face's config.json."
        )
