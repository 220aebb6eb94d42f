"""A served entity at a provider: encodes, posts, judges and decodes one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from aiquery_serving.clock import Clock, SystemClock
from aiquery_serving.entities.external.addresses import checked
from aiquery_serving.entities.external.failures import MAX_READ, excerpt, failure
from aiquery_serving.entities.external.transport import Answer, HttpTransport, Transport
from aiquery_serving.errors import (
    ProviderAccessError,
    ProviderError,
    ProviderResponseError,
    SecretError,
)
from aiquery_serving.messages import Json, LimitHint, Response, Usage

if TYPE_CHECKING:
    from aiquery_serving.entities.external.limit_hints import Headers

_OK = 200


class PrivateHeaders(dict[str, str]):
    """Headers that hold a key, and show it to nobody who prints them.

    Raises:
        SecretError: A value cannot be sent as a header.
    """

    def __init__(self, *, public: Mapping[str, str], secret: Mapping[str, str]) -> None:
        for name, value in secret.items():
            if not (value.isprintable() and value.isascii() and _bare(value).strip()):
                raise SecretError(
                    f"The secret for the header '{name}' is empty or holds characters that a header "
                    "cannot carry, such as a line break: store it again without them."
                )
        super().__init__({**public, **secret})
        self.secrets = tuple(_bare(value) for value in secret.values())

    def __repr__(self) -> str:
        return f"PrivateHeaders({', '.join(self)})"

    def scrub(self, text: str) -> str:
        """Return a text without the secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


class Dialect(Protocol):
    """How one provider writes a task's requests and answers. Pure: no I/O, no state."""

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        ...

    def encode(self, body: Mapping[str, Any]) -> Json:
        """Return the provider's request for a REST body.

        Raises:
            InvalidRequestError: The provider has no way to say it.
        """
        ...

    def decode(self, answer: Json, body: Mapping[str, Any], now: float) -> tuple[Json, Usage]:
        """Return the REST answer to `body` and what it used; `now` in seconds since 1970.

        Raises:
            ProviderResponseError: The promised parts are missing.
        """
        ...

    def hint(self, headers: Headers, now: float) -> LimitHint | None:
        """Return what the headers teach about limits; `now` in seconds since 1970."""
        ...


class ExternalEntity:
    """Somebody else's model, one HTTP request per `send` (implements `messages.RequestEntity`).

    Args:
        task: What it is asked: `llm/v1/chat`, `llm/v1/completions` or `llm/v1/embeddings`.
        url: Where requests go.
        dialect: How the provider speaks.
        headers: Makes the headers. Called at the first request, because it opens secrets, and again
            after the provider refused the key, because a new one may have been stored.
        transport: Shared with other entities; None gives this one its own, closed with it.
        clock: Tells the time that HTTP dates are compared with.

    Raises:
        ConfigurationError: The URL may not be used.
    """

    def __init__(
        self,
        *,
        task: str,
        url: str,
        dialect: Dialect,
        headers: Callable[[], PrivateHeaders],
        transport: Transport | None = None,
        clock: Clock | None = None,
    ) -> None:
        checked(url)
        self.task = task
        self._url = url
        self._dialect = dialect
        self._make_headers = headers
        self._headers: PrivateHeaders | None = None
        self._own = HttpTransport() if transport is None else None
        self._transport = transport or self._own or HttpTransport()
        self._clock = clock or SystemClock()

    def __repr__(self) -> str:
        return f"ExternalEntity({self._dialect.who}, {self.task})"

    async def send(self, body: Mapping[str, Any]) -> Response:
        """Answer one REST request body (contract D.2-D.4), in the REST API's response shape.

        Raises:
            InvalidRequestError: The provider has no way to say it.
            SecretError: The key is missing.
            ProviderError: One of its kinds; a 429 carries `retry_after` and `hint`.
        """
        headers = self._headers
        if headers is None:
            headers = self._headers = self._make_headers()
        request = orjson.dumps(self._dialect.encode(body), option=orjson.OPT_SERIALIZE_NUMPY)
        answer = await self._transport.post(self._url, headers=headers, body=request)
        now = self._clock.epoch_ms() / 1000
        if answer.status != _OK:
            raise self._failure(answer, headers, now)
        decoded, usage = self._dialect.decode(self._parse(answer, headers), body, now)
        return Response(body=decoded, usage=usage, hint=self._dialect.hint(answer.headers, now))

    async def close(self) -> None:
        """Give connections back, unless they are shared."""
        if self._own is not None:
            await self._own.close()

    def _failure(self, answer: Answer, headers: PrivateHeaders, now: float) -> ProviderError:
        error = failure(self._dialect.who, answer, now=now, scrub=headers.scrub)
        error.hint = self._dialect.hint(answer.headers, now)
        if isinstance(error, ProviderAccessError):
            self._headers = None
        return error

    def _parse(self, answer: Answer, headers: PrivateHeaders) -> Json:
        try:
            parsed = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            parsed = None
        if isinstance(parsed, dict):
            return parsed
        text = answer.body[:MAX_READ].decode(errors="replace")
        raise ProviderResponseError(
            f"{self._dialect.who} answered 200 without a JSON object: "
            f"{excerpt(text, scrub=headers.scrub) or 'nothing at all'}"
        )


def _bare(secret: str) -> str:
    """Return a secret without the scheme before it: `Bearer x` is secret in `x`."""
    return secret.removeprefix("Bearer ")
