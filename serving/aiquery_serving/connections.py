"""Named HTTP connections, as the workspace keeps them: where each leads, and what is sent with every request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from aiquery_serving.errors import ConfigurationError, EndpointExistsError, EndpointNotFoundError
from aiquery_serving.store import Store

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
#: A reference, after a scheme if there is one: `Bearer {{secrets/scope/key}}`.
_REFERENCE = re.compile(r"(?:[A-Za-z][A-Za-z0-9-]*\s+)?\{\{\s*secrets/[^{}]+\}\}")
#: Headers that hold a key, going by their names.
_SECRET_HEADER = re.compile(r".*(authorization|cookie|api-?key|token|secret|password).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConnection:
    """Where requests go, and what goes with them; keys are references to secrets.

    Raises:
        ConfigurationError: The name is not legal, or a key stands there in clear.
    """

    name: str
    creator: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    bearer_token: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"The connection name {self.name[:64]!r} is not legal: use letters, digits, '-' and '_', 255 at most."
            )
        kept = {name: value for name, value in self.headers.items() if _SECRET_HEADER.fullmatch(name)}
        if self.bearer_token is not None:
            kept["Authorization"] = self.bearer_token
        for name, value in kept.items():
            if not _REFERENCE.fullmatch(value):
                raise ConfigurationError(
                    f"Connection '{self.name}': the value of the header '{name}' is a key. Store it as a secret, and"
                    " refer to it as {{secrets/scope/key}}."
                )


class Connections:
    """The workspace's table of connections. From any thread.

    Args:
        store: The workspace's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, connection: HttpConnection) -> None:
        """Keep a new connection.

        Raises:
            EndpointExistsError: The name is taken.
            WorkspaceError: The workspace cannot be written.
        """
        document = asdict(connection)
        row = (document.pop("name"), document.pop("creator"), orjson.dumps(document).decode())
        with self._store.write() as database:
            done = database.execute("INSERT OR IGNORE INTO connections (name, creator, document) VALUES (?, ?, ?)", row)
            if not done.rowcount:
                raise EndpointExistsError(f"Connection '{connection.name}' already exists. Choose another name.")

    def get(self, name: str) -> HttpConnection:
        """Return a connection.

        Raises:
            EndpointNotFoundError: There is none of that name.
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as database:
            row = database.execute("SELECT name, creator, document FROM connections WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise EndpointNotFoundError(
                f"Connection '{name}' does not exist. See `aiquery connections list` for those there are."
            )
        return _read(row)

    def all(self) -> list[HttpConnection]:
        """Return every connection, in order of the names.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as database:
            rows = database.execute("SELECT name, creator, document FROM connections ORDER BY name").fetchall()
        return [_read(row) for row in rows]

    def delete(self, name: str) -> None:
        """Forget a connection; nothing happens when there is none of that name.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        with self._store.write() as database:
            database.execute("DELETE FROM connections WHERE name = ?", (name,))


def _read(row: tuple[Any, ...]) -> HttpConnection:
    name, creator, document = row
    return HttpConnection(name=name, creator=creator, **orjson.loads(document))
