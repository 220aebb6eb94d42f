"""What an endpoint is: frozen values and the rules every declaration must keep (contract C)."""

from aiquery_serving.endpoint.config import MAX_SERVED_ENTITIES, AutoCapture, EndpointConfig, Route, check_update
from aiquery_serving.endpoint.entity import (
    CPU_TYPES,
    ENGINE_CONCURRENCY,
    EXTERNAL_CONCURRENCY,
    EXTERNAL_TASKS,
    GPU_TYPES,
    PROVIDER_BLOCKS,
    WORKLOAD_CONCURRENCY,
    ExternalModel,
    FoundationModel,
    Kind,
    ServedEntity,
    loaded_as,
)
from aiquery_serving.endpoint.rate_limit import RATE_LIMIT_KEYS, RateLimit
from aiquery_serving.endpoint.record import EndpointRecord
from aiquery_serving.endpoint.rules import MAX_NAME_LENGTH, check_endpoint_name

__all__ = [
    "CPU_TYPES",
    "ENGINE_CONCURRENCY",
    "EXTERNAL_CONCURRENCY",
    "EXTERNAL_TASKS",
    "GPU_TYPES",
    "MAX_NAME_LENGTH",
    "MAX_SERVED_ENTITIES",
    "PROVIDER_BLOCKS",
    "RATE_LIMIT_KEYS",
    "WORKLOAD_CONCURRENCY",
    "AutoCapture",
    "EndpointConfig",
    "EndpointRecord",
    "ExternalModel",
    "FoundationModel",
    "Kind",
    "RateLimit",
    "Route",
    "ServedEntity",
    "check_endpoint_name",
    "check_update",
    "loaded_as",
]
