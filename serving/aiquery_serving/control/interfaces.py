"""What an endpoint takes and answers: its task, or the MLflow signatures of its models."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiquery_serving.endpoint import EndpointRecord, ServedEntity

if TYPE_CHECKING:
    from aiquery_serving.model_sources import ModelSources


_log = logging.getLogger("aiquery.control")


@dataclass(frozen=True, slots=True)
class Interface:
    """How an endpoint is queried.

    Attributes:
        endpoint: Its name.
        task: What its external or foundation models do (`llm/v1/chat`, …); None for custom models.
        signatures: The MLflow `ModelSignature` of each served entity; None where there is none to be read.
    """

    endpoint: str
    task: str | None
    signatures: dict[str, Any]


class Interfaces:
    """Reads interfaces off the files of custom models, which need not be loaded for that.

    Args:
        models: Where models come from.
    """

    def __init__(self, models: ModelSources) -> None:
        self._models = models

    def of(self, record: EndpointRecord) -> Interface:
        """Return the interface of an endpoint; one that serves nothing yet has no signatures."""
        config = record.config or record.pending_config
        entities = config.served_entities if config else ()
        return Interface(
            record.name, config.task if config else None, {entity.name: self._signature(entity) for entity in entities}
        )

    def _signature(self, entity: ServedEntity) -> Any:
        if entity.entity_name is None or entity.task is not None:
            return None  # the task says it all
        try:
            folder = self._models.path(entity.entity_name, entity.entity_version or "")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow warns while it imports itself
                from mlflow.models import Model
            return Model.load(str(folder)).signature
        except Exception as error:  # noqa: BLE001 - whatever MLflow makes of files that others wrote
            # A model that the registry has lost may serve on all the same.
            _log.info("The signature of served entity '%s' cannot be read: %s", entity.name, error)
            return None
