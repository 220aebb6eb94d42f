"""Posts bytes and returns bytes: the one place that knows an HTTP client and its exceptions."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

from wreq import Client, DnsOptions, Response, exceptions, redirect
from wreq.header import HeaderMap
from wreq.tls import CertStore

from aiquery_serving.entities.external.addresses import checked, is_loopback, refuse_forbidden
from aiquery_serving.errors import (
    ConfigurationError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 360.0
MAX_ANSWER_BYTES = 64 * 2**20
#: Idle connections kept per host: as many as may have been in flight at once.
MAX_IDLE = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Looking up `headers` by a name in lower case always works."""

    status: int
    headers: Mapping[str, str]
    body: bytes


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


class HttpTransport:
    """The transport over wreq (Rust: a hyper of its own, BoringSSL).

    Chosen by measuring (`benchmarks/transport.py`): it is the fastest of those that hang up when a
    call is cancelled. Clients are built at the first post and belong to no event loop, so one
    transport outlives the loop it was first used on. Certificates are verified. Proxies named by
    `HTTPS_PROXY` and its kin are used, except for this machine's own addresses.

    Args:
        connect_seconds: Most seconds for a new connection.
        total_seconds: Most seconds from the first byte sent to the last received.
        max_answer_bytes: Largest answer, after decompression.
    """

    def __init__(
        self,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._connect = timedelta(seconds=connect_seconds)
        self._total = timedelta(seconds=total_seconds)
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
        try:
            response = await client.post(url, headers=headers, body=body)
            content = await self._read(response, url)
        except _FOREIGN as error:
            self._translate(error, _where(url))
        return Answer(response.status.as_int(), _Headers(response.headers), content)

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

    def _translate(self, error: Exception, host: str) -> NoReturn:
        """Raise our error for the client's.

        The foreign error is left behind (`from None`): its text holds whole URLs, and keys may live
        there.
        """
        if isinstance(error, exceptions.TimeoutError):
            raise ProviderTimeoutError(
                f"{host} did not answer within {self._total.total_seconds():g} s "
                f"({self._connect.total_seconds():g} s to connect)."
            ) from None
        if isinstance(error, exceptions.BuilderError | RuntimeError | ValueError):
            raise ConfigurationError(
                f"A request to {host} cannot be built: its URL, key or another header holds "
                "characters that HTTP does not allow."
            ) from None
        raise ProviderUnavailableError(f"The connection to {host} failed: {_why(error)}.") from None


#: Everything that wreq raises from a request; its exceptions have no common base.
_FOREIGN = (
    exceptions.TlsError,
    exceptions.ConnectionError,
    exceptions.ProxyConnectionError,
    exceptions.ConnectionResetError,
    exceptions.BodyError,
    exceptions.BuilderError,
    exceptions.DecodingError,
    exceptions.RequestError,
    exceptions.RustPanic,
    exceptions.RedirectError,
    exceptions.StatusError,
    exceptions.UpgradeError,
    exceptions.TimeoutError,
    RuntimeError,
    ValueError,
)
_SYSTEM_REASON = re.compile(r'message: "([^"]+)"')


class _Headers(Mapping[str, str]):
    """The client's headers, decoded when somebody asks."""

    __slots__ = ("_found",)

    def __init__(self, found: HeaderMap) -> None:
        self._found = found

    def get(self, name: str, default: Any = None) -> Any:
        value = self._found.get(name)
        return default if value is None else str(value, "latin-1")

    def __getitem__(self, name: str) -> str:
        value = self._found.get(name)
        if value is None:
            raise KeyError(name)
        return str(value, "latin-1")

    def __iter__(self) -> Iterator[str]:
        return (str(name, "latin-1") for name, _ in self._found)

    def __len__(self) -> int:
        return self._found.keys_len()


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
    except (OSError, *_FOREIGN) as error:
        raise ConfigurationError(f"SSL_CERT_FILE names '{path}', which holds no certificates: {error}.") from error


def _why(error: Exception) -> str:
    """Return the innermost reason; the client's own text is for its developers."""
    text = str(error)
    if found := _SYSTEM_REASON.search(text):
        return found[1]
    if "dns error" in text:
        return "its name cannot be resolved"
    if isinstance(error, exceptions.TlsError) or "certificate" in text.lower():
        return (
            "no TLS connection could be agreed on; is its certificate valid, and its authority known (SSL_CERT_FILE)?"
        )
    return "it was closed before the answer was complete"


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
