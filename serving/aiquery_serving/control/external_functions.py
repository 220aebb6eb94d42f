"""Requests to other HTTP services through named connections (contract B.1, row 22)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlencode, urlsplit

import orjson
from wreq import Method

from aiquery_serving.access import Access, Principal
from aiquery_serving.connections import Connections, HttpConnection
from aiquery_serving.entities.external import Answer, HttpTransport
from aiquery_serving.entities.external.addresses import checked
from aiquery_serving.entities.external.entity import PrivateHeaders
from aiquery_serving.entities.external.failures import read_complaint
from aiquery_serving.errors import (
    ConfigurationError,
    InvalidRequestError,
    PermissionDeniedError,
    ProviderError,
    ProviderRequestError,
)
from aiquery_serving.messages import Json

if TYPE_CHECKING:
    from aiquery_serving.secrets import Secrets

#: The methods of contract B.1, row 22.
_METHODS: Final = {
    "DELETE": Method.DELETE,
    "GET": Method.GET,
    "PATCH": Method.PATCH,
    "POST": Method.POST,
    "PUT": Method.PUT,
}
#: How long a service may take: the Databricks SDK sends again after 60 s.
TOTAL_SECONDS: Final = 55.0
MAX_ANSWER_BYTES: Final = 16 * 2**20
#: Names the session of a client of the Model Context Protocol.
_SESSION_HEADER: Final = "mcp-session-id"
_BAD, _SERVER = 400, 500
_SUB_DOMAIN: Final = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
#: What the client library writes itself.
_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection"})


@dataclass(frozen=True, slots=True)
class ExternalAnswer:
    """What a service answered: its body as it came, and the session it named, if any."""

    body: bytes
    session: str | None


class ExternalFunctions:
    """Sends requests through the workspace's connections, for their creators and for admins.

    Args:
        connections: The connections.
        access: Who is an admin.
        secrets: Where their keys are.
    """

    def __init__(self, connections: Connections, access: Access, secrets: Secrets) -> None:
        self._connections = connections
        self._access = access
        self._secrets = secrets
        self._transport = HttpTransport(total_seconds=TOTAL_SECONDS, max_answer_bytes=MAX_ANSWER_BYTES)

    def create(
        self,
        who: Principal,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        bearer_token: str | None = None,
    ) -> HttpConnection:
        """Keep a new connection.

        Args:
            who: Who creates it.
            name: Letters, digits, `-` and `_`.
            url: Where its requests go; their paths stand after it.
            headers: Sent with every request; keys among them are references to secrets.
            bearer_token: A reference to a secret, sent as `Authorization: Bearer …`.

        Raises:
            ConfigurationError: The URL cannot be used, or a key stands there in clear.
            EndpointExistsError: The name is taken.
        """
        checked(url)
        if urlsplit(url).query or urlsplit(url).fragment:
            raise ConfigurationError(f"The URL of connection '{name}' ends with its path: leave out '?' and '#'.")
        connection = HttpConnection(
            name=name, creator=who.name, url=url.rstrip("/"), headers=headers or {}, bearer_token=bearer_token
        )
        self._connections.put(connection)
        return connection

    def list(self, who: Principal) -> list[HttpConnection]:
        """Return the connections that somebody may use, in order of their names."""
        return [connection for connection in self._connections.all() if self._may(who, connection)]

    def delete(self, who: Principal, name: str) -> None:
        """Forget a connection.

        Raises:
            EndpointNotFoundError: There is none of that name.
            PermissionDeniedError: Somebody else's.
        """
        self._required(who, name)
        self._connections.delete(name)

    def prepare(self, who: Principal, body: Mapping[str, Any]) -> Prepared:
        """Return the request that a body of contract B.1, row 22, describes. Reads the disk.

        Raises:
            EndpointNotFoundError: There is no such connection.
            InvalidRequestError: The body cannot be read.
            PermissionDeniedError: The connection is somebody else's.
            SecretError: A key of the connection cannot be had.
        """
        connection = self._required(who, _text(body, "connection_name"))
        method = _text(body, "method").upper()
        if method not in _METHODS:
            raise InvalidRequestError(f"'method' must be one of {', '.join(_METHODS)}.")
        content = body.get("json")
        return Prepared(
            connection.name,
            method,
            _url(connection.url, body) + _query(_members(body, "params")),
            self._headers(connection, _members(body, "headers"), has_body=content is not None),
            None if content is None else _text(body, "json").encode(),
        )

    async def send(self, request: Prepared) -> ExternalAnswer:
        """Send a request that was prepared. On an event loop.

        Raises:
            ConfigurationError: The URL leads to a link-local address, or a header cannot be sent.
            ProviderError: The service did not answer, or answered with an error.
        """
        answer = await self._transport.send(
            _METHODS[request.method], request.url, headers=request.headers, body=request.body
        )
        if answer.status >= _BAD:
            raise _refusal(request, answer)
        return ExternalAnswer(answer.body, answer.headers.get(_SESSION_HEADER))

    async def close(self) -> None:
        """Hang up."""
        await self._transport.close()

    def _headers(self, connection: HttpConnection, given: Mapping[str, str], *, has_body: bool) -> PrivateHeaders:
        public = {"content-type": "application/json"} if has_body else {}
        public |= {name.lower(): value for name, value in given.items() if name.lower() not in _OWN_HEADERS}
        fixed = {name.lower(): self._secrets.resolve(value) for name, value in connection.headers.items()}
        if connection.bearer_token is not None:
            fixed["authorization"] = f"Bearer {self._secrets.resolve(connection.bearer_token)}"
        return PrivateHeaders(public={name: text for name, text in public.items() if name not in fixed}, secret=fixed)

    def _required(self, who: Principal, name: str) -> HttpConnection:
        connection = self._connections.get(name)
        if not self._may(who, connection):
            raise PermissionDeniedError(
                f"'{who.name}' may not use connection '{name}': that is for its creator and for admins."
            )
        return connection

    def _may(self, who: Principal, connection: HttpConnection) -> bool:
        return who.name == connection.creator or self._access.principal(who.name).is_admin


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be sent."""

    connection: str
    method: str
    url: str
    headers: PrivateHeaders
    body: bytes | None


def _text(body: Mapping[str, Any], member: str) -> str:
    value = body.get(member)
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"The request needs '{member}': a text.")
    return value


def _members(body: Mapping[str, Any], member: str) -> Mapping[str, str]:
    """Return the object that a member holds: as the text of one, as the SDK sends it, or as it is."""
    given = body.get(member)
    if given is None or given == "":
        return {}
    try:
        found: Any = orjson.loads(given) if isinstance(given, str) else given
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"'{member}' is not the text of a JSON object: {error}.") from None
    if not isinstance(found, dict):
        raise InvalidRequestError(f"'{member}' must be the text of a JSON object.")
    return {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in found.items()}


def _url(base: str, body: Mapping[str, Any]) -> str:
    path = str(body.get("path") or "")
    if {".", ".."} & set(unquote(path).split("/")) or not path.isprintable() or set(path) & set("\\?# "):
        raise InvalidRequestError("'path' must be a plain path: no '.' or '..' parts, '?', '#', '\\' or spaces.")
    root = _below(base, body.get("sub_domain"))
    return f"{root}/{path.lstrip('/')}" if path else root


def _below(base: str, sub_domain: object) -> str:
    if not sub_domain:
        return base
    if not isinstance(sub_domain, str) or not _SUB_DOMAIN.fullmatch(sub_domain):
        raise InvalidRequestError("'sub_domain' must be a name such as 'eu' or 'api.eu'.")
    place = urlsplit(base)
    return place._replace(netloc=f"{sub_domain}.{place.netloc}").geturl()


def _query(params: Mapping[str, str]) -> str:
    return f"?{urlencode(params)}" if params else ""


def _refusal(request: Prepared, answer: Answer) -> ProviderError:
    kind = ProviderError if answer.status >= _SERVER else ProviderRequestError
    message = read_complaint(answer.body, scrub=request.headers.scrub).message or "no reason given"
    return kind(f"Connection '{request.connection}' answered {answer.status}: {message}")


def connection_output(connection: HttpConnection) -> Json:
    """Return a connection as it is shown: keys as the references they are."""
    return {
        "name": connection.name,
        "creator": connection.creator,
        "url": connection.url,
        "headers": dict(connection.headers),
        "bearer_token": connection.bearer_token,
    }
