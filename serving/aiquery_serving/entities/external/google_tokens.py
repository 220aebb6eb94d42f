"""Access tokens of a Google service account, through `google-auth`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from aiquery_serving.entities.external.credentials import checked_sign_in, library, patience
from aiquery_serving.entities.external.declared import secret
from aiquery_serving.entities.external.failures import excerpt
from aiquery_serving.errors import ProviderAccessError, ProviderUnavailableError, SecretError
from aiquery_serving.messages import Json

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - where tokens are got, not one
_OF = "google_cloud_vertex_ai_config"


def google_token(config: Mapping[str, Any], *, resolve: Callable[[str], str]) -> Callable[[], tuple[str, float]]:
    """Return what fetches a service account's token and the seconds it is good for.

    `private_key` is the service account's key file (JSON). A bare PEM key will do with our own member
    `client_email`, the account's address.

    Args:
        config: A `google_cloud_vertex_ai_config`.
        resolve: Opens a secret.

    Raises:
        ConfigurationError: The key is not named, or `google-auth` is missing.
    """
    reference = secret(config, "private_key", of=_OF)
    accounts = library("google.oauth2.service_account", extra="vertex")
    library("google.auth.transport.requests", extra="vertex")

    def fetch() -> tuple[str, float]:
        info = key_file(resolve(reference), config.get("client_email"))
        try:
            credentials = accounts.Credentials.from_service_account_info(info, scopes=[SCOPE])
        except ValueError:
            # The library's own text may quote the key.
            raise SecretError(f"The private_key of {_OF} is no key of a service account.") from None
        _refresh(credentials)
        ends = credentials.expiry.replace(tzinfo=UTC)
        return str(credentials.token), (ends - datetime.now(UTC)).total_seconds()

    return fetch


def key_file(key: str, email: Any) -> Json:
    """Return the key file of a service account, or one made of a bare PEM key.

    Raises:
        SecretError: It is neither.
        ConfigurationError: Its tokens may not be got where it says.
    """
    if key.lstrip().startswith("-----BEGIN") and email:
        return {"private_key": key, "client_email": str(email), "token_uri": TOKEN_URL}
    try:
        info = orjson.loads(key)
    except orjson.JSONDecodeError:
        info = None
    if not isinstance(info, dict):
        raise SecretError(
            f"The private_key of {_OF} must be the service account's key file (JSON), or its PEM key with "
            "'client_email' beside it."
        )
    return {**info, "token_uri": checked_sign_in(str(info.get("token_uri") or TOKEN_URL))}


def _refresh(credentials: Any) -> None:
    requests = library("requests", extra="vertex")
    transport = library("google.auth.transport.requests", extra="vertex")
    errors = library("google.auth.exceptions", extra="vertex")
    with requests.Session() as session:
        request = transport.Request(session)
        try:
            credentials.refresh(lambda *args, **options: request(*args, **options | patience()))
        except errors.RefreshError as error:
            if error.retryable:
                raise ProviderUnavailableError(f"Google's sign-in failed: {excerpt(str(error.args[0]))}") from None
            raise ProviderAccessError(
                f"Google gives the service account no token: {excerpt(str(error.args[0]))}"
            ) from None
        except errors.TransportError as error:
            raise ProviderUnavailableError(f"Google's sign-in cannot be reached: {type(error).__name__}.") from None
