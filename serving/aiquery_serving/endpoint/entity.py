"""One model behind an endpoint: whose it is and how big (contract B.2, C.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from aiquery_serving.endpoint.rules import check_name, require, require_one_of

#: Requests in flight that each workload size promises (contract C.4).
WORKLOAD_CONCURRENCY = {"small": 4, "medium": 16, "large": 64}
#: In flight at an external entity that declares no concurrency of its own.
EXTERNAL_CONCURRENCY = 256
#: In flight at a model whose engine puts requests together: enough for the next batch to wait behind this one.
ENGINE_CONCURRENCY = 256
CPU_TYPES = ("CPU", "CPU_MEDIUM", "CPU_LARGE")
GPU_TYPES = (
    "GPU_SMALL",
    "GPU_MEDIUM",
    "GPU_LARGE",
    "GPU_XLARGE",
    "GPU_XLARGE_8",
    "MULTIGPU_MEDIUM",
)
EXTERNAL_TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings")
#: The member of an external model that holds each provider's settings (contract B.2).
PROVIDER_BLOCKS = {
    "openai": "openai_config",
    "anthropic": "anthropic_config",
    "cohere": "cohere_config",
    "amazon-bedrock": "amazon_bedrock_config",
    "google-cloud-vertex-ai": "google_cloud_vertex_ai_config",
    "ai21labs": "ai21labs_config",
    "palm": "palm_config",
    "databricks-model-serving": "databricks_model_serving_config",
    "custom": "custom_provider_config",
}


class Kind(StrEnum):
    """The kind of model behind an endpoint; one endpoint serves one kind."""

    CUSTOM = "custom"
    FOUNDATION = "foundation"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalModel:
    """Somebody else's API. `config` is the provider's block; its secrets are references only.

    Raises:
        ConfigurationError: The provider or task is unknown, the name is empty, or the block
            still holds a secret in clear.
    """

    provider: str
    name: str
    task: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.name, "external_model.name is empty: give the provider's model, e.g. gpt-5")
        require_one_of("external_model.provider", self.provider, PROVIDER_BLOCKS)
        require_one_of("external_model.task", self.task, EXTERNAL_TASKS)
        for member in self.config:
            require(
                not member.endswith("_plaintext"),
                f"{member} must not be kept: store the secret and refer to it as {{{{secrets/scope/key}}}}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundationModel:
    """What the files of a language or embedding model of ours say about it.

    `model_type` is the architecture's name, such as `llama`; `throughput_chunk_size` the tokens per second by which
    its throughput is reserved, where it is (contract E).

    Raises:
        ConfigurationError: The task is unknown.
    """

    task: str
    model_type: str = ""
    throughput_chunk_size: int | None = None

    def __post_init__(self) -> None:
        require_one_of("the task of a foundation model", self.task, EXTERNAL_TASKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEntity:
    """One model behind an endpoint. `foundation_model` is found in the model's files, never declared.

    Throughput is in tokens per second, concurrency in requests in flight. `repr` leaves the
    environment out, because people put keys there.

    Raises:
        ConfigurationError: The name or a size is not legal, or an external model declares
            what only a model of our own has (contract B.2, C.4).
    """

    name: str
    entity_name: str | None = None
    entity_version: str | None = None
    external_model: ExternalModel | None = None
    foundation_model: FoundationModel | None = None
    workload_size: str | None = None
    workload_type: str = "CPU"
    scale_to_zero_enabled: bool = False
    min_provisioned_concurrency: int | None = None
    max_provisioned_concurrency: int | None = None
    min_provisioned_throughput: int | None = None
    max_provisioned_throughput: int | None = None
    provisioned_model_units: int | None = None
    burst_scaling_enabled: bool = True
    environment_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    instance_profile_arn: str | None = None

    def __post_init__(self) -> None:
        check_name("served entity", self.name)
        if self.external_model:
            _check_external(self)
        _check_bounds(self, "provisioned_concurrency")
        _check_size(self)
        _check_bounds(self, "provisioned_throughput")
        _check_units(self)

    @property
    def kind(self) -> Kind:
        """Whose model this is."""
        if self.external_model:
            return Kind.EXTERNAL
        return Kind.FOUNDATION if self.foundation_model else Kind.CUSTOM

    @property
    def task(self) -> str | None:
        """What an external or a foundation model does; None for custom models."""
        model = self.external_model or self.foundation_model
        return model.task if model else None

    @property
    def is_provisioned(self) -> bool:
        """Whether throughput is reserved for it, in tokens per second or in model units."""
        return bool(self.max_provisioned_throughput or self.provisioned_model_units)

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight at once."""
        if self.max_provisioned_concurrency:
            return self.max_provisioned_concurrency
        if self.external_model:
            return EXTERNAL_CONCURRENCY
        if self.foundation_model:
            return ENGINE_CONCURRENCY
        return WORKLOAD_CONCURRENCY[(self.workload_size or "small").lower()]


def loaded_as(entity: ServedEntity) -> ServedEntity:
    """Leave out what is declared of a served entity and changes while it runs: how much throughput is reserved for it.

    Whether it may sleep stays in: a least throughput of 0, or none, lets it.
    """
    sleeps = entity.max_provisioned_throughput is not None and not entity.min_provisioned_throughput
    model = entity.foundation_model
    return replace(
        entity,
        foundation_model=model and replace(model, throughput_chunk_size=None),
        min_provisioned_throughput=0 if sleeps else None,
        max_provisioned_throughput=1 if sleeps else None,
        provisioned_model_units=None,
        burst_scaling_enabled=True,
    )


def _check_external(entity: ServedEntity) -> None:
    foreign = {
        "entity_name": entity.entity_name,
        "entity_version": entity.entity_version,
        "workload_size": entity.workload_size,
        "workload_type": entity.workload_type != "CPU",
        "scale_to_zero_enabled": entity.scale_to_zero_enabled,
        "min_provisioned_throughput": entity.min_provisioned_throughput is not None,
        "max_provisioned_throughput": entity.max_provisioned_throughput is not None,
        "provisioned_model_units": entity.provisioned_model_units is not None,
    }
    for member, given in foreign.items():
        require(
            not given,
            f"served entity {entity.name!r} is an external model and cannot have {member}: leave out one of the two",
        )


def _check_size(entity: ServedEntity) -> None:
    who = f"served entity {entity.name!r}"
    require_one_of(f"{who}: workload_type", entity.workload_type, CPU_TYPES + GPU_TYPES)
    if entity.workload_size is None:
        return
    require(
        entity.workload_size.lower() in WORKLOAD_CONCURRENCY,
        f"{who}: workload_size must be one of Small, Medium, Large; got {entity.workload_size!r}",
    )
    require(
        entity.max_provisioned_concurrency is None,
        f"{who} has both workload_size and provisioned concurrency: leave out one of the two",
    )


def _check_bounds(entity: ServedEntity, size: str) -> None:
    who = f"served entity {entity.name!r}"
    low: int | None = getattr(entity, f"min_{size}")
    high: int | None = getattr(entity, f"max_{size}")
    if high is None:
        require(low is None, f"{who}: min_{size} also needs max_{size}")
        return
    require(high > 0, f"{who}: max_{size} must be at least 1, got {high}")
    require(
        0 <= (low or 0) <= high,
        f"{who}: min_{size} must be between 0 and max_{size} ({high}), got {low}",
    )


def _check_units(entity: ServedEntity) -> None:
    who, units = f"served entity {entity.name!r}", entity.provisioned_model_units
    if units is None:
        return
    require(units > 0, f"{who}: provisioned_model_units must be at least 1, got {units}")
    require(
        entity.max_provisioned_throughput is None,
        f"{who} has both provisioned_model_units and provisioned throughput: leave out one of them",
    )
