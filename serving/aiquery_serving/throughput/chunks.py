"""How much throughput a served entity reserves, in tokens per second and in whole chunks (contract E)."""

from __future__ import annotations

from typing import NamedTuple

from aiquery_serving.endpoint import ServedEntity
from aiquery_serving.errors import ConfigurationError

#: Model units that make one chunk. Units are Databricks' own, and scale with what a model does per second; contract E
#: tells of one figure only, of 50 units that are one reservation of a model's throughput.
UNITS_PER_CHUNK = 50


class Provision(NamedTuple):
    """The tokens per second that are reserved for a served entity: never fewer, and up to how many.

    They change by `chunk`. With `burst`, what was left unused for a while may be used on top in a spike.
    """

    minimum: int
    maximum: int
    chunk: int
    burst: bool = True


def provision(served: ServedEntity) -> Provision | None:
    """Return what a served entity reserves; None if that is nothing.

    Model units are fixed, and need not make whole chunks. Otherwise no minimum means 0, as scaling to zero does.

    Examples:
        >>> from aiquery_serving.endpoint import FoundationModel
        >>> llama = FoundationModel(task="llm/v1/chat", model_type="llama", throughput_chunk_size=980)
        >>> provision(ServedEntity(name="a", foundation_model=llama, max_provisioned_throughput=1960))
        Provision(minimum=0, maximum=1960, chunk=980, burst=True)
        >>> provision(ServedEntity(name="a", foundation_model=llama, provisioned_model_units=100))
        Provision(minimum=1960, maximum=1960, chunk=980, burst=True)
    """
    model = served.foundation_model
    if not served.is_provisioned or model is None or model.throughput_chunk_size is None:
        return None
    chunk, burst = model.throughput_chunk_size, served.burst_scaling_enabled
    if served.provisioned_model_units:
        fixed = max(1, served.provisioned_model_units * chunk // UNITS_PER_CHUNK)
        return Provision(fixed, fixed, chunk, burst)
    least = 0 if served.scale_to_zero_enabled else served.min_provisioned_throughput or 0
    return Provision(least, served.max_provisioned_throughput or 0, chunk, burst)


def check_bounds(minimum: int | None, maximum: int, chunk: int, *, who: str = "") -> None:
    """Refuse bounds that are no whole chunks: 0 <= minimum <= maximum, and a maximum above 0.

    Args:
        minimum: Tokens per second; None for 0.
        maximum: Tokens per second.
        chunk: Tokens per second of one chunk, at least 1.
        who: What the bounds are of, to begin the error with.

    Raises:
        ConfigurationError: They are not; it names the multiples next to what was given.

    Examples:
        >>> check_bounds(1000, 1960, 980)
        Traceback (most recent call last):
        aiquery_serving.errors.ConfigurationError: min_provisioned_throughput must be a multiple of 980 tokens per \
second, this model's throughput chunk size, got 1000: give 980 or 1960
    """
    least = minimum or 0
    _check_multiple(f"{who}max_provisioned_throughput", maximum, chunk, lowest=chunk)
    _check_multiple(f"{who}min_provisioned_throughput", least, chunk, lowest=0)
    if least > maximum:
        raise ConfigurationError(
            f"{who}min_provisioned_throughput must be between 0 and max_provisioned_throughput ({maximum}), got {least}"
        )


def _check_multiple(member: str, given: int, chunk: int, *, lowest: int) -> None:
    if given >= lowest and given % chunk == 0:
        return
    below = given // chunk * chunk
    near = [str(multiple) for multiple in (below, below + chunk) if multiple >= lowest] or [str(lowest)]
    raise ConfigurationError(
        f"{member} must be a multiple of {chunk} tokens per second, this model's throughput chunk size, got {given}: "
        f"give {' or '.join(near)}"
    )
