"""Cohere's own words, the same at Cohere and at those who host its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiquery_serving.messages import Allowance, Json, LimitHint, Usage

if TYPE_CHECKING:
    from aiquery_serving.entities.external.limit_hints import Headers

#: What texts are embedded for, when the request does not say: to be found.
DEFAULT_INPUT_TYPE = "search_document"
#: Why an answer ended; everything else is its natural end.
FINISH = {"MAX_TOKENS": "length", "TOOL_CALL": "tool_calls", "ERROR_TOXIC": "content_filter"}
#: Reasons that are failures.
GAVE_UP = frozenset({"ERROR", "TIMEOUT"})


def embed_request(asked: Json, texts: Sequence[str]) -> Json:
    """Return what an embed request says beside the model, under Cohere's names."""
    size = asked.pop("dimensions", None)
    for name in ("model", "user", "encoding_format"):
        asked.pop(name, None)
    sent = {"input_type": DEFAULT_INPUT_TYPE, **asked, "texts": texts, "embedding_types": ["float"]}
    return sent if size is None else {**sent, "output_dimension": size}


def vectors_of(answer: Json) -> Any:
    """Return the vectors of an embed answer, which may name their type."""
    found = answer.get("embeddings")
    return found.get("float") if isinstance(found, dict) else found


def used(usage: Any) -> Usage:
    """Return what an answer's `usage` or `meta` counts: what is billed, as it is what budgets are about."""
    units = usage.get("billed_units") or usage.get("tokens") if isinstance(usage, dict) else None
    if not isinstance(units, dict):
        return Usage()
    return Usage(
        prompt_tokens=int(units.get("input_tokens") or 0),
        completion_tokens=int(units.get("output_tokens") or 0),
    )


def trial_hint(headers: Headers) -> LimitHint | None:
    """Read the calls that a trial key has left in this minute; other keys are told nothing."""
    found = [headers.get(f"x-trial-endpoint-call-{what}") for what in ("limit", "remaining")]
    limit, remaining = [int(text) if text and text.isdecimal() else None for text in found]
    return None if remaining is None else LimitHint(requests=Allowance(limit=limit, remaining=remaining))
