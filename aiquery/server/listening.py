"""Where a server listens: its socket, who can reach it, and the certificate that it shows."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL
from typing import TYPE_CHECKING, Any, Final

from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from aiquery.server.settings import Settings

#: Connections that wait to be accepted.
BACKLOG: Final = 2048


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigurationError: The host is not this machine's, or its port is taken or not ours to take.
    """
    family, _, _, _, address = _addresses(settings)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # After a restart, connections of the last server that are not quite over do not matter.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_refused(settings, error)) from error
    listener.setblocking(False)
    return listener


def is_loopback(settings: Settings) -> bool:
    """Say whether only this machine can reach where a server listens.

    Raises:
        ConfigurationError: The host is not known.
    """
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in _addresses(settings))


def url(settings: Settings, listener: socket.socket) -> str:
    """Return the URL of a server as its own machine calls it."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"{settings.scheme}://{socket.gethostname()}:{port}"
    name = settings.host if not _is_address(settings.host) else f"[{host}]" if address.version == 6 else host  # noqa: PLR2004
    return f"{settings.scheme}://{name}:{port}"


def check_certificate(settings: Settings) -> None:
    """Let pass a certificate and a key that can be read and belong together.

    Raises:
        ConfigurationError: They cannot be used; the message says why.
    """
    if settings.certfile is None:
        return
    for path in filter(None, (settings.certfile, settings.keyfile)):
        try:
            with open(path, "rb"):  # noqa: PTH123 a look, no reading
                pass
        except OSError as error:
            raise ConfigurationError(f"'{path}' cannot be read: {error.strerror}.") from error
    try:
        secured(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)).load_cert_chain(
            settings.certfile, settings.keyfile, _no_password
        )  # fmt: skip
    except ssl.SSLError as error:
        raise ConfigurationError(_unusable(settings, error)) from error


def secured(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a TLS context speak 1.2 and newer alone."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _addresses(settings: Settings) -> list[Any]:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"No address is known of the host '{settings.host}': write one of this machine's own, for example"
            " 127.0.0.1, or 0.0.0.0 for all of them."
        ) from error
    # Most clients of `localhost` ask the older protocol first.
    return sorted(found, key=lambda each: each[0] != socket.AF_INET)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(settings: Settings, error: OSError) -> str:
    where = f"Port {settings.port} of {settings.host}"
    if error.errno == EADDRINUSE:
        return f"{where} is taken: end who listens there, or choose another with --port (0: any that is free)."
    if error.errno == EACCES:
        return f"{where} is not yours to take: choose one from 1024 on with --port."
    if error.errno == EADDRNOTAVAIL:
        return f"'{settings.host}' is not an address of this machine: choose one with --host."
    return f"{where} cannot be listened at: {error.strerror}."


def _no_password() -> str:
    raise ConfigurationError("The TLS key is encrypted: give one that is not (openssl pkey -in KEY -out PLAIN_KEY).")


def _unusable(settings: Settings, error: ssl.SSLError) -> str:
    key = settings.keyfile or settings.certfile
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"The key in '{key}' does not belong to the certificate in '{settings.certfile}'."
    return f"'{settings.certfile}' and '{key}' do not hold a certificate and its key in PEM ({error.reason or error})."
