"""Signs requests to Amazon's services (SigV4), through `botocore`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from aiquery_serving.clock import Clock
from aiquery_serving.entities.external.credentials import Kept, library
from aiquery_serving.entities.external.declared import JSON_HEADERS, secret
from aiquery_serving.entities.external.entity import PrivateHeaders
from aiquery_serving.errors import ConfigurationError, SecretError

#: Headers that let somebody in: the signature, and the token of keys that end.
_SECRET = ("authorization", "x-amz-security-token")
#: What the machine's own keys are taken to be good for; `botocore` hands out none that end sooner.
_KEEP_SECONDS = 600.0
_OF = "amazon_bedrock_config"
_FOREVER = float("inf")


class AwsSigner:
    """Signs every request (implements `entity.Authorizer`).

    Args:
        fetch: Returns botocore's credentials and the seconds to keep them. Called on a thread.
        region: Such as `us-east-1`.
        service: Such as `bedrock`.
        clock: Measures how long the credentials are kept.
    """

    def __init__(
        self, fetch: Callable[[], tuple[Any, float]], *, region: str, service: str, clock: Clock | None = None
    ) -> None:
        self._credentials = Kept(fetch, clock)
        self._region, self._service = region, service
        # It writes what it signs, session tokens included, into its debug log.
        logging.getLogger("botocore.auth").setLevel(logging.INFO)
        self._auth = library("botocore.auth", extra="bedrock").SigV4Auth
        self._request = library("botocore.awsrequest", extra="bedrock").AWSRequest

    async def authorize(self, url: str, body: bytes) -> PrivateHeaders:
        """Return the headers of one request.

        Raises:
            SecretError: The keys are missing or cannot be read.
        """
        request = self._request(method="POST", url=url, data=body, headers=JSON_HEADERS)
        self._auth(await self._credentials.get(), self._service, self._region).add_auth(request)
        named = {name.lower(): value for name, value in request.headers.items()}
        signed = {name: named.pop(name) for name in _SECRET if name in named}
        return PrivateHeaders(public=named, secret=signed)

    def refused(self) -> None:
        """Look for the keys again next time."""
        self._credentials.forget()


def aws_credentials(config: Mapping[str, Any], *, resolve: Callable[[str], str]) -> Callable[[], tuple[Any, float]]:
    """Return what finds the keys that a configuration names, and the seconds to keep them.

    With `instance_profile_arn`, the machine's own: botocore's chain of environment, profiles and instance role.
    Our own member `aws_session_token` goes with keys that end.

    Raises:
        ConfigurationError: Neither is named.
    """
    if config.get("aws_access_key_id") or config.get("aws_secret_access_key"):
        return _named(config, resolve)
    if config.get("instance_profile_arn"):
        return _of_the_machine
    if config.get("uc_service_credential_name"):
        raise ConfigurationError(
            f"{_OF}: there is no Unity Catalog here that knows 'uc_service_credential_name'. Give aws_access_key_id "
            "and aws_secret_access_key, or instance_profile_arn for the machine's own credentials."
        )
    raise ConfigurationError(f"{_OF} needs aws_access_key_id and aws_secret_access_key, or instance_profile_arn.")


def _named(config: Mapping[str, Any], resolve: Callable[[str], str]) -> Callable[[], tuple[Any, float]]:
    references = [secret(config, name, of=_OF) for name in ("aws_access_key_id", "aws_secret_access_key")]
    if config.get("aws_session_token"):
        references.append(str(config["aws_session_token"]))
    credentials = library("botocore.credentials", extra="bedrock").Credentials

    def fetch() -> tuple[Any, float]:
        return credentials(*(resolve(reference) for reference in references)), _FOREVER

    return fetch


def _of_the_machine() -> tuple[Any, float]:
    found = library("botocore.session", extra="bedrock").get_session().get_credentials()
    if found is None:
        raise SecretError(
            "This machine has no AWS credentials of its own: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            f"AWS_PROFILE, or give aws_access_key_id and aws_secret_access_key in {_OF}."
        )
    return found.get_frozen_credentials(), _KEEP_SECONDS
