"""How a server listens, whom it lets in, and what it puts up with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiquery_serving.errors import ConfigurationError

_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is started with.

    Attributes:
        host: The address or name of this machine that it listens at.
        port: 0 for any that is free.
        workers: How many processes answer.
        certfile: A certificate with its chain, in PEM: the server then speaks TLS 1.2 and newer.
        keyfile: The certificate's key, in PEM; not needed where the certificate's file holds it.
        tokens_only: Whether requests need a token even where only this machine can send them.
        header_seconds: How long a client may take to send the headers of a request.
        body_seconds: How long it may take to send the body.
        idle_seconds: How long a connection stays open between two requests.
        closing_seconds: How long requests that are being answered may still take when the server is to stop.
        max_connections: How many connections one process serves at once.
        access_log: Whether every request is a line in the log `aiquery.access`.

    Raises:
        ConfigurationError: One of them cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    certfile: str | None = None
    keyfile: str | None = None
    tokens_only: bool = False
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: int = 75
    closing_seconds: int = 30
    max_connections: int = 8192
    access_log: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _LAST_PORT:
            raise ConfigurationError(f"A port is a number from 0 (any that is free) to {_LAST_PORT}, not {self.port}.")
        if self.workers < 1 or self.max_connections < 1:
            raise ConfigurationError("A server has at least one worker, and serves at least one connection.")
        if min(self.header_seconds, self.body_seconds, self.idle_seconds) <= 0 or self.closing_seconds < 0:
            raise ConfigurationError("The times that a server waits are longer than 0 seconds.")
        if self.keyfile is not None and self.certfile is None:
            raise ConfigurationError("A key alone is not enough for TLS: give its certificate, too (--certfile).")

    @property
    def scheme(self) -> str:
        """`https` where it speaks TLS, else `http`."""
        return "https" if self.certfile else "http"
