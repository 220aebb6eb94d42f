"""Posts bytes and returns bytes: the one place that knows an HTTP client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from wreq import Client, DnsOptions, Method, Response, redirect
from wreq.header import HeaderMap
from wreq.tls import CertStore

from aiquery_serving.entities.external.addresses import checked, is_loopback, refuse_forbidden
from aiquery_serving.entities.external.foreign import FOREIGN, DecodedHeaders, translated
from aiquery_serving.errors import AiQueryError, ConfigurationError, ProviderResponseError

CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 360.0
#: Most seconds of silence within a streamed answer: models think before they speak.
IDLE_SECONDS = 360.0
MAX_ANSWER_BYTES = 64 * 2**20
#: Bytes that are read of an answer that refuses to stream.
MAX_COMPLAINT_BYTES = 64 * 2**10
#: A streamed answer may take long, as long as it does not pause.
_NO_TOTAL = timedelta(days=1)
#: Idle connections kept per host: as many as may have been in flight at once.
MAX_IDLE = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Looking up `headers` by a name in lower case always works."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class OpenAnswer(Protocol):
    """An answer whose status and headers are here and whose body is still coming."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers. Looking them up by a name in lower case always works."""
        ...

    async def read(self) -> bytes:
        """Return the next bytes as they come, empty at the end of the body.

        Raises:
            ProviderUnavailableError: The connection broke.
            ProviderTimeoutError: Nothing came in time.
            ProviderResponseError: The answer is larger than is sensible.
        """
        ...

    async def close(self) -> None:
        """Hang up, unless the body was read to its end. A second call does nothing."""
        ...


class Transport(Protocol):
    """Sends one request over kept connections. Bring another to use other proxies, TLS or records."""

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post a body and return the whole answer, whatever its status; never follow a redirect.

        Raises:
            ConfigurationError: The URL or a header cannot be used.
            ProviderUnavailableError: No connection, or it broke.
            ProviderTimeoutError: No answer in time.
            ProviderResponseError: The answer is larger than is sensible.
        """
        ...

    async def close(self) -> None:
        """Give the connections back. A later post opens new ones."""
        ...


@runtime_checkable
class StreamingTransport(Transport, Protocol):
    """A transport that can hand out an answer while it comes. With others, streams come all at once."""

    async def open(self, url: str, *, headers: Mapping[str, str], body: bytes) -> OpenAnswer:
        """Post a body and return as soon as the status and headers are here; never follow a redirect.

        Whoever opens an answer closes it. Cancelling hangs up.

        Raises:
            ConfigurationError: The URL or a header cannot be used.
            ProviderUnavailableError: No connection, or it broke.
            ProviderTimeoutError: No answer in time.
        """
        ...


async def opened(transport: Transport, url: str, *, headers: Mapping[str, str], body: bytes) -> OpenAnswer:
    """Open an answer over any transport (as `StreamingTransport.open`)."""
    if isinstance(transport, StreamingTransport):
        return await transport.open(url, headers=headers, body=body)
    return _Posted(await transport.post(url, headers=headers, body=body))


async def read_whole(answer: OpenAnswer) -> Answer:
    """Read what is left of an answer that refuses to stream, but not much of what is no complaint."""
    parts, size = [], 0
    while size < MAX_COMPLAINT_BYTES and (part := await answer.read()):
        parts.append(part)
        size += len(part)
    return Answer(answer.status, answer.headers, b"".join(parts))


class HttpTransport:
    """The transport over wreq (Rust: a hyper of its own, BoringSSL).

    Chosen by measuring (`benchmarks/transport.py`): it is the fastest of those that hang up when a
    call is cancelled. Clients are built at the first post and belong to no event loop, so one
    transport outlives the loop it was first used on. Certificates are verified. Proxies named by
    `HTTPS_PROXY` and its kin are used, except for this machine's own addresses.

    Args:
        connect_seconds: Most seconds for a new connection.
        total_seconds: Most seconds from the first byte sent to the last received of a whole answer.
        idle_seconds: Most seconds that an answer which comes in pieces may pause.
        max_answer_bytes: Largest answer, after decompression.
    """

    def __init__(
        self,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._connect = timedelta(seconds=connect_seconds)
        self._total = timedelta(seconds=total_seconds)
        self._idle = timedelta(seconds=idle_seconds)
        self._max_bytes = max_answer_bytes
        self._clients: dict[bool, Client] = {}
        #: The client of each URL that was judged.
        self._judged: dict[str, Client] = {}

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post a body and return the whole answer, whatever its status; never follow a redirect.

        Raises:
            ConfigurationError: The URL or a header cannot be used.
            ProviderUnavailableError: No connection, or it broke.
            ProviderTimeoutError: No answer in time.
            ProviderResponseError: The answer is larger than is sensible.
        """
        client = self._judged.get(url) or await self._judge(url)
        return await self._answered(lambda: client.post(url, headers=headers, body=body), url)

    async def send(self, method: Method, url: str, *, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Send a request of any method, to any of a host's paths; otherwise as `post`.

        Raises:
            As `post`.
        """
        place = urlsplit(url)
        root = f"{place.scheme}://{place.netloc}/"
        # By host: the verdict is kept, and there is no end to paths.
        client = self._judged.get(root) or await self._judge(root)
        return await self._answered(lambda: client.request(method, url, headers=headers, body=body), url)

    async def open(self, url: str, *, headers: Mapping[str, str], body: bytes) -> OpenAnswer:
        """Post a body and return as soon as the status and headers are here; never follow a redirect.

        Raises:
            ConfigurationError: The URL or a header cannot be used.
            ProviderUnavailableError: No connection, or it broke.
            ProviderTimeoutError: No answer in time.
        """
        client = self._judged.get(url) or await self._judge(url)
        try:
            response = await client.post(url, headers=headers, body=body, timeout=_NO_TOTAL, read_timeout=self._idle)
        except FOREIGN as error:
            raise self._translated(error, url, self._idle) from None
        return _Open(response, lambda error: self._translated(error, url, self._idle), self._max_bytes)

    async def close(self) -> None:
        """Hang up. A later post opens new connections."""
        clients, self._clients, self._judged = list(self._clients.values()), {}, {}
        for client in clients:
            client.close()

    async def _judge(self, url: str) -> Client:
        host = checked(url)
        local = is_loopback(host)
        if not local:
            await _refuse_forbidden_addresses_of(host)
        if local not in self._clients:
            self._clients[local] = self._build(proxies=not local)
        return self._judged.setdefault(url, self._clients[local])

    def _build(self, *, proxies: bool) -> Client:
        return Client(
            user_agent="aiquery",
            redirect=redirect.Policy.none(),
            connect_timeout=self._connect,
            timeout=self._total,
            pool_max_idle_per_host=MAX_IDLE,
            # The machine's own resolver knows /etc/hosts and private networks.
            dns_options=DnsOptions(system_dns=True),
            http1_only=True,
            no_proxy=not proxies,
            tls_verify=_authorities(),
        )

    async def _answered(self, request: Callable[[], Awaitable[Response]], url: str) -> Answer:
        try:
            response = await request()
            content = await self._read(response, url)
        except FOREIGN as error:
            raise self._translated(error, url, self._total) from None
        return Answer(response.status.as_int(), DecodedHeaders(response.headers), content)

    async def _read(self, response: Response, url: str) -> bytes:
        announced = response.content_length
        # A length is known only for bodies that are not compressed: those may turn out huge.
        if announced is not None and announced <= self._max_bytes:
            return bytes(await response.bytes())
        size, parts = announced or 0, []
        if size <= self._max_bytes:
            async for part in response.stream():
                if isinstance(part, HeaderMap):
                    continue  # trailers
                parts.append(bytes(part))
                size += len(part)
                if size > self._max_bytes:
                    break
            else:
                return b"".join(parts)
        await response.close()
        raise ProviderResponseError(
            f"{checked(url)} sent an answer of more than {self._max_bytes} bytes; it was not read."
        )

    def _translated(self, error: Exception, url: str, within: timedelta) -> AiQueryError:
        return translated(error, _where(url), within=within, connecting=self._connect)


class _Open:
    """An answer that wreq is still receiving (an `OpenAnswer`)."""

    __slots__ = ("_left", "_max_bytes", "_parts", "_translated", "headers", "status")

    def __init__(self, response: Response, translated: Callable[[Exception], AiQueryError], max_bytes: int) -> None:
        self.status = response.status.as_int()
        self.headers = DecodedHeaders(response.headers)
        self._parts = response.stream()
        self._translated = translated
        self._left = self._max_bytes = max_bytes

    async def read(self) -> bytes:
        try:
            part = await anext(self._parts, b"")
        except FOREIGN as error:
            raise self._translated(error) from None
        if isinstance(part, HeaderMap):
            return b""  # trailers
        self._left -= len(part)
        if self._left < 0:
            raise ProviderResponseError(f"A streamed answer has more than {self._max_bytes} bytes.")
        return bytes(part)

    async def close(self) -> None:
        # Only the stream hangs up; closing the response after its stream was taken does nothing.
        await self._parts.__aexit__(None, None, None)


class _Posted:
    """An answer that has come whole (an `OpenAnswer`)."""

    def __init__(self, answer: Answer) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._body = answer.body

    async def read(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def close(self) -> None:
        self._body = b""


def _authorities() -> CertStore | bool:
    """Return the authorities of `SSL_CERT_FILE`, where a company's own is named; else the usual ones.

    Raises:
        ConfigurationError: The file cannot be used.
    """
    path = os.environ.get("SSL_CERT_FILE")
    if not path:
        return True
    try:
        return CertStore.from_pem_stack(Path(path).read_bytes())
    except (OSError, *FOREIGN) as error:
        raise ConfigurationError(f"SSL_CERT_FILE names '{path}', which holds no certificates: {error}.") from error


def _where(url: str) -> str:
    """Return host and port, without the user and password that a URL may hold."""
    return urlsplit(url).netloc.rpartition("@")[2]


async def _refuse_forbidden_addresses_of(host: str) -> None:
    """Look a host up once, so that a harmless name cannot lead to a metadata address."""
    # Behind a proxy names may be unknown here: then the proxy is the one that connects.
    with suppress(OSError):
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
        for *_, address in found:
            refuse_forbidden(str(address[0]), named=host)
