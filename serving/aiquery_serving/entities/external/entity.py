"""A served entity at a provider: encodes, posts, judges and decodes one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import orjson

from aiquery_serving.clock import Clock, SystemClock
from aiquery_serving.entities.external.addresses import checked
from aiquery_serving.entities.external.failures import MAX_READ, ReportedError, excerpt, failure
from aiquery_serving.entities.external.transport import (
    Answer,
    HttpTransport,
    OpenAnswer,
    Transport,
    opened,
    read_whole,
)
from aiquery_serving.errors import (
    InvalidRequestError,
    ProviderAccessError,
    ProviderError,
    ProviderResponseError,
    SecretError,
)
from aiquery_serving.messages import EMBEDDINGS, Json, LimitHint, Response, Stream, Usage

if TYPE_CHECKING:
    from aiquery_serving.entities.external.limit_hints import Headers

_OK = 200
#: How long an answer that is complete may stay open for its last words, such as its usage.
LAST_WORDS_SECONDS = 5.0


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


@runtime_checkable
class Authorizer(Protocol):
    """Makes the headers of every request anew: signs it, or adds a token that is renewed in time."""

    async def authorize(self, url: str, body: bytes) -> PrivateHeaders:
        """Return the headers of one request. Called on the event loop: what blocks belongs on a thread.

        Raises:
            SecretError: The key is missing or cannot be read.
            ProviderError: No token was given for the key.
        """
        ...

    def refused(self) -> None:
        """Forget what was kept: the provider refused it (401 or 403), and a new key may have been stored."""
        ...


class StreamReader(Protocol):
    """Reads one answer that comes in pieces. Pure: the provider's bytes in, the REST API's chunks out.

    Made anew for every answer. How the bytes are cut into events is the provider's: `sse.Events` cuts
    server-sent events.
    """

    @property
    def done(self) -> bool:
        """Whether the answer is complete: the provider said so (`[DONE]`, `message_stop`, a finish reason).

        An answer that ends before is a `ProviderResponseError`. One that is complete is still read to its
        end, for a few seconds at most: the usage may come last.
        """
        ...

    def feed(self, data: bytes) -> Iterable[Json]:
        """Yield the chunks that these bytes complete: best a generator, so that chunks before an error count.

        Chunks are `chat.completion.chunk` or `text_completion` objects (contract D.5). The first of each
        choice has the role in its `delta`, the last has its `finish_reason`, and the usage comes in the
        last chunk of all, whose `choices` may be empty. What follows the end of the answer is ignored.

        Args:
            data: The next bytes as the network gave them, cut anywhere.

        Raises:
            ReportedError: The provider reports an error within the answer.
            ProviderResponseError: What came cannot be read.
        """
        ...


class Dialect(Protocol):
    """How one provider writes a task's requests and answers. Pure: no I/O, no state."""

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        ...

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:
        """Return the provider's request for a REST body.

        Args:
            body: The REST body. Its own `stream` and `stream_options` mean nothing here.
            stream: The answer shall come in pieces, with its usage.

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

    def reader(self, body: Mapping[str, Any], now: float) -> StreamReader:
        """Return what reads the streamed answer to `body`; `now` in seconds since 1970."""
        ...

    def hint(self, headers: Headers, now: float) -> LimitHint | None:
        """Return what the headers teach about limits; `now` in seconds since 1970."""
        ...


class ExternalEntity:
    """Somebody else's model, one HTTP request per answer (`messages.RequestEntity`, `messages.StreamingEntity`).

    Args:
        task: What it is asked: `llm/v1/chat`, `llm/v1/completions` or `llm/v1/embeddings`.
        url: Where requests go.
        dialect: How the provider speaks.
        headers: Makes the headers. A function is called at the first request, because it opens secrets, and
            again after the provider refused the key, because a new one may have been stored. An
            `Authorizer` is asked at every request.
        stream_url: Where requests for streamed answers go; None: the same place.
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
        headers: Callable[[], PrivateHeaders] | Authorizer,
        stream_url: str | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
    ) -> None:
        checked(url)
        self.task = task
        self._url = url
        self._stream_url = stream_url or url
        checked(self._stream_url)
        self._dialect = dialect
        self._authorizer = headers if isinstance(headers, Authorizer) else _Kept(headers)
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
        request = _dumped(self._dialect.encode(body))
        headers = await self._authorizer.authorize(self._url, request)
        answer = await self._transport.post(self._url, headers=headers, body=request)
        now = self._now()
        if answer.status != _OK:
            raise self._failure(answer, headers, now)
        decoded, usage = self._dialect.decode(self._parse(answer, headers), body, now)
        return Response(body=decoded, usage=usage, hint=self._dialect.hint(answer.headers, now))

    async def stream(self, body: Mapping[str, Any]) -> Stream:
        """Begin to answer one REST request body piece by piece (contract D.5); returns with the first piece.

        Raises:
            InvalidRequestError: The provider has no way to say it, or the task has no pieces.
            SecretError: The key is missing.
            ProviderError: One of its kinds; a 429 carries `retry_after` and `hint`.
        """
        if self.task == EMBEDDINGS:
            raise InvalidRequestError("Embeddings cannot be streamed: leave out 'stream'.")
        url, request = self._stream_url, _dumped(self._dialect.encode(body, stream=True))
        headers = await self._authorizer.authorize(url, request)
        reader = self._dialect.reader(body, self._now())
        answer = await opened(self._transport, url, headers=headers, body=request)
        chunks = self._chunks(answer, reader, headers)
        await anext(chunks)
        return Stream(chunks=chunks, hint=self._dialect.hint(answer.headers, self._now()))

    async def close(self) -> None:
        """Give connections back, unless they are shared."""
        if self._own is not None:
            await self._own.close()

    async def _chunks(
        self, answer: OpenAnswer, reader: StreamReader, headers: PrivateHeaders
    ) -> AsyncGenerator[Json, None]:
        """Yield an empty chunk when the answer has begun, then the chunks of the answer."""
        # A generator that was never asked has nothing to close: the empty chunk is what makes closing hang up.
        begun, head = False, b""
        try:
            if answer.status != _OK:
                raise self._failure(await read_whole(answer), headers, self._now())
            while data := await _next(answer, reader):
                for chunk in reader.feed(data):
                    if not begun:
                        begun = True
                        yield {}
                    yield chunk
                head = b"" if begun else (head + data)[:MAX_READ]
            if not (begun and reader.done):
                raise self._cut_off(head, headers)
        except ReportedError as reported:
            said = Answer(reported.status, answer.headers, reported.body)
            raise self._failure(said, headers, self._now()) from None
        finally:
            await answer.close()

    def _cut_off(self, head: bytes, headers: PrivateHeaders) -> ProviderResponseError:
        said = excerpt(head.decode(errors="replace"), scrub=headers.scrub)
        more = f", after only: {said}" if said else ""
        return ProviderResponseError(f"{self._dialect.who} ended its streamed answer before it was complete{more}.")

    def _now(self) -> float:
        return self._clock.epoch_ms() / 1000

    def _failure(self, answer: Answer, headers: PrivateHeaders, now: float) -> ProviderError:
        error = failure(self._dialect.who, answer, now=now, scrub=headers.scrub)
        error.hint = self._dialect.hint(answer.headers, now)
        if isinstance(error, ProviderAccessError):
            self._authorizer.refused()
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


class _Kept:
    """Headers that are the same for every request, made at the first (an `Authorizer`)."""

    def __init__(self, make: Callable[[], PrivateHeaders]) -> None:
        self._make = make
        self._headers: PrivateHeaders | None = None

    async def authorize(self, _url: str, _body: bytes) -> PrivateHeaders:
        if self._headers is None:
            self._headers = self._make()
        return self._headers

    def refused(self) -> None:
        self._headers = None


async def _next(answer: OpenAnswer, reader: StreamReader) -> bytes:
    """Return the next bytes of an answer, none at its end; what befalls a complete one does not matter."""
    if not reader.done:
        return await answer.read()
    try:
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            return await answer.read()
    except (TimeoutError, ProviderError):
        return b""


def _dumped(request: Json) -> bytes:
    return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)


def _bare(secret: str) -> str:
    """Return a secret without the scheme before it: `Bearer x` is secret in `x`."""
    return secret.removeprefix("Bearer ")
