"""Tokens of Microsoft Entra for an application (OAuth 2.0 client credentials), through `msal`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiquery_serving.entities.external.credentials import checked_sign_in, library, patience
from aiquery_serving.entities.external.declared import member, secret
from aiquery_serving.entities.external.failures import excerpt
from aiquery_serving.errors import ProviderAccessError, ProviderUnavailableError

DEFAULT_AUTHORITY = "https://login.microsoftonline.com"
SCOPE = "https://cognitiveservices.azure.com/.default"
_OF = "openai_config"


def entra_token(config: Mapping[str, Any], *, resolve: Callable[[str], str]) -> Callable[[], tuple[str, float]]:
    """Return what fetches an application's token and the seconds it is good for.

    Our own member `microsoft_entra_authority` names the sign-in service of another cloud.

    Args:
        config: An `openai_config` with the members `microsoft_entra_*`.
        resolve: Opens a secret.

    Raises:
        ConfigurationError: A member is missing, `msal` is, or the service may not be asked.
    """
    msal = library("msal", extra="azure")
    tenant, client = (
        member(config, name, of=_OF, hint=" for openai_api_type 'azuread'")
        for name in ("microsoft_entra_tenant_id", "microsoft_entra_client_id")
    )
    reference = secret(config, "microsoft_entra_client_secret", of=_OF)
    base = str(config.get("microsoft_entra_authority") or DEFAULT_AUTHORITY).rstrip("/")
    authority = checked_sign_in(f"{base}/{tenant}")

    def fetch() -> tuple[str, float]:
        key = resolve(reference)
        answer = _ask(msal, client, key, authority)
        if "access_token" in answer:
            return str(answer["access_token"]), float(answer.get("expires_in") or 0)
        reason = str(answer.get("error_description") or answer.get("error"))
        raise ProviderAccessError(
            f"Microsoft Entra gives the application '{client}' no token: "
            f"{excerpt(reason, scrub=lambda text: text.replace(key, '***'))}"
        )

    return fetch


def _ask(msal: Any, client: str, secret: str, authority: str) -> dict[str, Any]:
    requests = library("requests", extra="azure")
    with requests.Session() as session:
        try:
            application = msal.ConfidentialClientApplication(
                client,
                client_credential=secret,
                authority=authority,
                instance_discovery=False,
                http_client=_Patient(session),
            )
            found: dict[str, Any] = application.acquire_token_for_client([SCOPE])
        except requests.RequestException as error:
            raise ProviderUnavailableError(
                f"Microsoft Entra cannot be reached at {authority}: {type(error).__name__}."
            ) from None
        except ValueError as error:
            raise ProviderAccessError(f"{authority} is no tenant of Microsoft Entra: {excerpt(str(error))}") from None
    return found


class _Patient:
    """A session that gives up in time; `msal` itself never does."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, url: str, **options: Any) -> Any:
        return self._session.get(url, **options, **patience())

    def post(self, url: str, **options: Any) -> Any:
        return self._session.post(url, **options, **patience())
