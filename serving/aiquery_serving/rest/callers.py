"""Who asks: the principal behind the headers of a request."""

from __future__ import annotations

import binascii
import ipaddress
from base64 import b64decode
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from aiquery_serving.errors import PermissionDeniedError, UnauthenticatedError

if TYPE_CHECKING:
    from aiquery_serving.access import Principal
    from aiquery_serving.rest.serves import Serves

#: The user name that goes with a token as the password, for clients that know Basic alone.
_TOKEN_USER = "token"  # noqa: S105 a user name
#: What proxies add to a request.
_FORWARDED = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})


def caller(headers: Mapping[bytes, bytes], serves: Serves) -> Principal:
    """Return who sends a request.

    A local server takes every request for its one user's until somebody is given a token, a group or a
    permission; clients that insist on sending a token may send any. From then on it asks for real ones: other
    people of this machine reach its loopback too.

    Args:
        headers: Names in lower case.
        serves: Knows the tokens, and the local user if there is one.

    Raises:
        UnauthenticatedError: There is no token, or nobody is known by it.
        PermissionDeniedError: A web page of somebody else asks in the local user's name.
    """
    sent = headers.get(b"authorization")
    if serves.local_user is not None and not serves.access.configured:
        _refuse_forwarded(headers)
        _refuse_foreign_pages(headers)
        return serves.access.principal(serves.local_user)
    if sent is None:
        raise UnauthenticatedError("No token was sent: send the header 'Authorization: Bearer <token>'.")
    return serves.access.authenticate(token(sent))


def token(authorization: bytes) -> str:
    """Return the token in a header: after `Bearer`, or as the password of the Basic user `token`.

    Raises:
        UnauthenticatedError: It holds none.

    Examples:
        >>> token(b"Bearer abc"), token(b"Basic dG9rZW46YWJj")
        ('abc', 'abc')
    """
    scheme, _, value = authorization.decode("latin-1").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic" and (found := _password(value)):
        return found
    raise UnauthenticatedError(
        "The Authorization header holds no token: send 'Bearer <token>', or Basic with user 'token' and the token "
        "as the password."
    )


def _password(value: str) -> str:
    try:
        user, _, password = b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return password if user == _TOKEN_USER else ""


def _refuse_forwarded(headers: Mapping[bytes, bytes]) -> None:
    # A proxy on this machine speaks for anybody: what it says of them is all that tells it apart from a local client.
    if not _FORWARDED.isdisjoint(headers):
        raise UnauthenticatedError(
            "A proxy passed this request on, and nobody was given a token yet: make tokens with `aiquery tokens "
            "create`, and start the server with --tokens-only."
        )


def _refuse_foreign_pages(headers: Mapping[bytes, bytes]) -> None:
    # A browser sends requests of any page to this machine. It names the page's origin; and a name that
    # somebody made to resolve to this machine stands in the Host.
    host, origin = headers.get(b"host", b""), headers.get(b"origin")
    if (origin is not None and origin.partition(b"://")[2] != host) or not _is_local(host):
        raise PermissionDeniedError(
            "A web page may not ask in the name of this machine's user: call the server as http://127.0.0.1 or "
            "http://localhost, or with a token."
        )


@lru_cache(maxsize=64)
def _is_local(host: bytes) -> bool:
    """Say whether a Host header is an address or `localhost`, which nobody else can make resolve to here.

    Examples:
        >>> [_is_local(host) for host in (b"127.0.0.1:8080", b"[::1]", b"localhost", b"", b"evil.example")]
        [True, True, True, True, False]
    """
    name = host.decode("latin-1").lower()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
