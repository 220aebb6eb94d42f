"""What makes an answer the same answer: the content address under which the ledger keeps it.

An answer is settled by the endpoint, the model behind the route that the request takes, and the request. How
traffic is split, how many calls may be in flight, and which key pays, do not change what a model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson
import xxhash

from aiquery_serving.endpoint import ServedEntity
from aiquery_serving.secrets import is_reference

#: Members of a provider's block that choose an account, not an answer.
_ACCOUNTS = ("openai_organization",)


def fingerprint(served: ServedEntity) -> bytes:
    """Return 16 bytes that are the same for served entities which answer alike.

    Examples:
        >>> one = ServedEntity(name="a", entity_name="demo.spam", entity_version="1", workload_size="Small")
        >>> other = ServedEntity(name="b", entity_name="demo.spam", entity_version="1", workload_size="Large")
        >>> fingerprint(one) == fingerprint(other)
        True
    """
    model = asdict(served.external_model) if served.external_model else None
    if model is not None:
        model["config"] = _settings(model["config"])
    declared = [served.entity_name, served.entity_version, model]
    if served.foundation_model:
        # Its settings shape its answers: a system prompt, an adapter.
        declared.append(dict(served.environment_vars))
    return xxhash.xxh3_128_digest(orjson.dumps(declared, option=orjson.OPT_SORT_KEYS))


def content_address(served: bytes, request: bytes) -> bytes:
    """Return the ledger's key of a request, given the fingerprint of its served entity and its own identity."""
    return xxhash.xxh3_128_digest(served + request)


def _settings(block: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is a secret or names who pays."""
    return {
        name: _settings(value) if isinstance(value, Mapping) else value
        for name, value in block.items()
        if name not in _ACCOUNTS and not (isinstance(value, str) and is_reference(value))
    }
