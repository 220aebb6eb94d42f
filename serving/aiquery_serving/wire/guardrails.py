"""What a guardrails block must say so that somebody can keep it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from aiquery_serving.errors import ConfigurationError

_PATH = "ai_gateway.guardrails"


def check_guardrails(block: Mapping[str, Any]) -> None:
    """Refuse guardrails that nothing would keep.

    Args:
        block: The `guardrails` of an AI Gateway block: those of `input` and of `output`.

    Raises:
        ConfigurationError: Nobody is named who judges safety or topics, a keyword is empty, or the library that
            finds personal data is missing.
    """
    for direction in ("input", "output"):
        rail, path = block.get(direction) or {}, f"{_PATH}.{direction}"
        _check_judges(rail, path)
        if not all(word.strip() for word in rail.get("invalid_keywords") or ()):
            raise ConfigurationError(f"{path}.invalid_keywords has an empty keyword, which is in every text: remove it")
        if (rail.get("pii") or {}).get("behavior") in ("BLOCK", "MASK") and find_spec("presidio_analyzer") is None:
            raise ConfigurationError(
                f"{path}.pii needs presidio-analyzer, which is not installed: pip install 'aiquery[guardrails]'"
            )


def _check_judges(rail: Mapping[str, Any], path: str) -> None:
    if rail.get("safety") and not rail.get("safety_endpoint"):
        raise ConfigurationError(
            f"{path}.safety needs a model that judges: name a chat endpoint of this workspace in"
            f" {path}.safety_endpoint, one that serves Llama Guard or any capable chat model"
        )
    if rail.get("valid_topics") and not (rail.get("topics_endpoint") or rail.get("safety_endpoint")):
        raise ConfigurationError(
            f"{path}.valid_topics needs a model that judges: name a chat endpoint of this workspace in"
            f" {path}.topics_endpoint"
        )
