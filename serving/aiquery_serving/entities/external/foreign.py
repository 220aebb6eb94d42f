"""What the HTTP client says, in our words: its exceptions, and its headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from wreq import exceptions
from wreq.header import HeaderMap

from aiquery_serving.errors import (
    AiQueryError,
    ConfigurationError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

#: Everything that wreq raises from a request; its exceptions have no common base.
FOREIGN = (
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


class DecodedHeaders(Mapping[str, str]):
    """The client's headers, decoded when somebody asks."""

    __slots__ = ("_found",)

    def __init__(self, found: HeaderMap) -> None:
        self._found = found

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header by its name in lower case."""
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


def translated(error: Exception, host: str, *, within: timedelta, connecting: timedelta) -> AiQueryError:
    """Return our error for the client's.

    The foreign error is to be left behind (`from None`): its text holds whole URLs, and keys may live there.

    Args:
        error: One of `FOREIGN`.
        host: Whom it was about.
        within: How long an answer may take.
        connecting: How long a connection may take.
    """
    if isinstance(error, exceptions.TimeoutError) or "TimedOut" in str(error):
        return ProviderTimeoutError(
            f"{host} did not answer within {within.total_seconds():g} s ({connecting.total_seconds():g} s to connect)."
        )
    if isinstance(error, exceptions.BuilderError | RuntimeError | ValueError):
        return ConfigurationError(
            f"A request to {host} cannot be built: its URL, key or another header holds "
            "characters that HTTP does not allow."
        )
    return ProviderUnavailableError(f"The connection to {host} failed: {_why(error)}.")


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
