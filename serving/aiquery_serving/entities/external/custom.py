"""Any other server that speaks like OpenAI, at a URL of the user's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.external.declared import JSON_HEADERS, member, secret
from aiquery_serving.entities.external.entity import ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.openai import TASK_PATHS, OpenAIDialect
from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.transport import Transport

_BLOCK = "custom_provider_config"
_BARE_HOST = re.compile(r"https?://[^/?#]+/?")
_BASE = re.compile(r"[^?#]*/(?:v\d+(?:alpha|beta)?\d*|openai)/?")


def load_custom(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> ExternalEntity:
    """Return the entity of a `custom` model (`custom_provider_config`, contract B.2).

    Raises:
        ConfigurationError: No URL, or not exactly one kind of key.
    """
    given = member(
        model.config,
        "custom_provider_url",
        of=f"{_BLOCK} of '{model.name}'",
        hint=", such as 'https://models.example.org/v1/chat/completions'",
    )
    header, prefix, reference = _key(model)
    return ExternalEntity(
        task=model.task,
        url=full_url(given, TASK_PATHS[model.task]),
        dialect=OpenAIDialect(model.provider, model.name, model.task),
        headers=lambda: PrivateHeaders(public=JSON_HEADERS, secret={header: prefix + resolve(reference)}),
        transport=transport,
    )


def full_url(given: str, path: str) -> str:
    """Return where to post: a URL is used as it is, unless it is plainly only a base.

    A base is a bare host (then `/v1` is added too) or a path that ends with a version or `/openai`.

    Examples:
        >>> full_url("https://models.example.org", "/embeddings")
        'https://models.example.org/v1/embeddings'
        >>> full_url("https://example.org/llm/v1/", "/embeddings")
        'https://example.org/llm/v1/embeddings'
        >>> full_url("https://example.org/predict?version=2", "/embeddings")
        'https://example.org/predict?version=2'
    """
    if _BARE_HOST.fullmatch(given):
        return f"{given.rstrip('/')}/v1{path}"
    if _BASE.fullmatch(given):
        return given.rstrip("/") + path
    return given


def _key(model: ExternalModel) -> tuple[str, str, str]:
    """Return the header of the key, what precedes it, and the reference to the secret."""
    named: Any = model.config.get("api_key_auth")
    bearer: Any = model.config.get("bearer_token_auth")
    if bool(named) == bool(bearer):
        raise ConfigurationError(
            f"{_BLOCK} of '{model.name}' needs exactly one of 'api_key_auth' "
            "({key, value}) and 'bearer_token_auth' ({token})."
        )
    if bearer:
        token = secret(bearer, "token", of=f"{_BLOCK}.bearer_token_auth")
        return "authorization", "Bearer ", token
    block = f"{_BLOCK}.api_key_auth"
    header = str(named.get("key") or "").lower()
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", header):
        raise ConfigurationError(f"{block} needs 'key', the name of the header that holds the key.")
    return header, "", secret(named, "value", of=block)
