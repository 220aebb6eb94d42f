"""The settings block of an external model: what each provider needs, and no secret in clear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from aiquery_serving.endpoint import PROVIDER_BLOCKS
from aiquery_serving.errors import ConfigurationError

#: Takes "<served entity>/<member>" and a secret, keeps it, and returns `{{secrets/scope/key}}`.
Stash: TypeAlias = Callable[[str, str], str]

_PLAINTEXT = "_plaintext"
_NAME = r"[A-Za-z0-9_.@-]{1,128}"
_REFERENCE = re.compile(rf"\{{\{{\s*secrets/{_NAME}/{_NAME}\s*\}}\}}")
#: By shape and not by list, so that a member we do not know, or a misspelt one, is kept safe too.
_SECRET_MEMBER = re.compile(r".*(_key|_key_id|_token|_secret|password)|value|token")

_OPENAI_MEMBERS = {
    "openai": ("openai_api_key",),
    "azure": (
        "openai_api_key",
        "openai_api_base",
        "openai_api_version",
        "openai_deployment_name",
    ),
    "azuread": (
        "microsoft_entra_tenant_id",
        "microsoft_entra_client_id",
        "microsoft_entra_client_secret",
        "openai_api_base",
        "openai_api_version",
        "openai_deployment_name",
    ),
}
_BEDROCK_PROVIDERS = ("anthropic", "cohere", "ai21labs", "amazon")
_BEDROCK_KEYS = ("aws_access_key_id", "aws_secret_access_key")
_BEDROCK_ROLES = ("instance_profile_arn", "uc_service_credential_name")
_CUSTOM_AUTH = {"api_key_auth": ("key", "value"), "bearer_token_auth": ("token",)}
_MEMBERS = {
    "anthropic": ("anthropic_api_key",),
    "cohere": ("cohere_api_key",),
    "google-cloud-vertex-ai": ("project_id", "region", "private_key"),
    "ai21labs": ("ai21labs_api_key",),
    "palm": ("palm_api_key",),
    "databricks-model-serving": ("databricks_workspace_url", "databricks_api_token"),
}


def provider_config(
    provider: str, members: Mapping[str, Any], *, owner: str, path: str, stash: Stash
) -> dict[str, Any]:
    """Return a provider's settings with a reference in the place of every secret.

    Args:
        provider: A provider of contract B.2.
        members: The members of `external_model` other than provider, name and task.
        owner: The served entity, for the names of stashed secrets.
        path: Where the external model stands in the request, for messages.
        stash: Keeps a secret that was sent in clear.

    Raises:
        ConfigurationError: The block is missing, is another provider's, or lacks a member.
    """
    block = _matching_block(provider, members, path)
    path = f"{path}.{PROVIDER_BLOCKS[provider]}"
    config = _without_secrets(block, owner=owner, path=path, stash=stash)
    _check_members(provider, config, path)
    return config


def _matching_block(provider: str, members: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    wanted = PROVIDER_BLOCKS[provider]
    for block in PROVIDER_BLOCKS.values():
        if block != wanted and members.get(block) is not None:
            raise ConfigurationError(f"{path}.{block} does not belong to provider {provider}: give {wanted} alone")
    found = members.get(wanted)
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"{path}.{wanted} must be an object with the settings of provider {provider}")
    return found


def _without_secrets(block: Mapping[str, Any], *, owner: str, path: str, stash: Stash) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for member, value in block.items():
        name = member.removesuffix(_PLAINTEXT)
        if value is None or value == "":
            continue
        if name in kept:
            raise ConfigurationError(f"{path}: give {name} or {name}{_PLAINTEXT}, not both")
        if name != member or _SECRET_MEMBER.fullmatch(name):
            kept[name] = _reference(value, name=f"{owner}/{name}", path=f"{path}.{name}", stash=stash)
        elif isinstance(value, Mapping):
            kept[name] = _without_secrets(value, owner=owner, path=f"{path}.{name}", stash=stash)
        else:
            kept[name] = value
    return kept


def _reference(value: object, *, name: str, path: str, stash: Stash) -> str:
    """Return a reference to a secret; the messages never quote what was sent."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{path} must be text, a reference or a secret: put it in quotes")
    if _REFERENCE.fullmatch(value):
        return value
    if value.startswith("{{"):
        raise ConfigurationError(f"{path} is no reference to a secret: write {{{{secrets/scope/key}}}}")
    return stash(name, value)


def _check_members(provider: str, config: Mapping[str, Any], path: str) -> None:
    if provider == "openai":
        kind = _choice(config, "openai_api_type", _OPENAI_MEMBERS, path, default="openai")
        _need(config, _OPENAI_MEMBERS[kind], path)
    elif provider == "amazon-bedrock":
        _check_bedrock(config, path)
    elif provider == "custom":
        _check_custom(config, path)
    else:
        _need(config, _MEMBERS[provider], path)


def _check_bedrock(config: Mapping[str, Any], path: str) -> None:
    _need(config, ("aws_region", "bedrock_provider"), path)
    _choice(config, "bedrock_provider", _BEDROCK_PROVIDERS, path)
    if not any(role in config for role in _BEDROCK_ROLES):
        _need(config, _BEDROCK_KEYS, path)


def _check_custom(config: Mapping[str, Any], path: str) -> None:
    _need(config, ("custom_provider_url",), path)
    given = [auth for auth in _CUSTOM_AUTH if auth in config]
    if len(given) != 1:
        raise ConfigurationError(
            f"{path} needs one of {' and '.join(_CUSTOM_AUTH)}: any bearer token will do for a "
            "server that asks for none"
        )
    auth = config[given[0]]
    if not isinstance(auth, Mapping):
        raise ConfigurationError(f"{path}.{given[0]} must be an object")
    _need(auth, _CUSTOM_AUTH[given[0]], f"{path}.{given[0]}")


def _choice(config: Mapping[str, Any], member: str, choices: Iterable[str], path: str, default: str = "") -> str:
    value = str(config.get(member, default)).lower()
    if value not in choices:
        raise ConfigurationError(f"{path}.{member} must be one of {', '.join(choices)}")
    return value


def _need(config: Mapping[str, Any], members: Iterable[str], path: str) -> None:
    for member in members:
        if member in config:
            continue
        secret = _SECRET_MEMBER.fullmatch(member)
        either = f"{member} or {member}{_PLAINTEXT}" if secret else member
        raise ConfigurationError(f"{path} needs {either}")
