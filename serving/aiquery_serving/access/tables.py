"""How the workspace keeps tokens, groups and permissions; whoever writes first becomes an admin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Connection

from aiquery_serving.access.principals import ADMINS, ASKING, GROUP, USERS, Grant, TokenInfo, check_name
from aiquery_serving.access.snapshot import HeldToken, Written
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.store import Store

#: What `users` may do nobody may yet, as long as nobody is known.
_ANYTHING = (
    "SELECT EXISTS (SELECT 1 FROM tokens) OR EXISTS (SELECT 1 FROM members)"
    " OR EXISTS (SELECT 1 FROM permissions WHERE kind <> ? OR principal <> ?)"
)
_ADMIN = "SELECT EXISTS (SELECT 1 FROM members WHERE group_name = ?)"
_TOKENS = (
    "SELECT digest, id, kind, principal, comment, created_ms, expires_ms FROM tokens"
    " ORDER BY created_ms DESC, principal, id"
)
_MEMBERS = "SELECT group_name, principal FROM members ORDER BY group_name, principal"
_GRANTS = "SELECT endpoint_id, kind, principal, level FROM permissions ORDER BY endpoint_id, kind, principal"
#: What somebody is elsewhere, if it is not what they are said to be here.
_OTHER_KIND = (
    "SELECT kind FROM tokens WHERE principal = ?1 AND kind <> ?2"
    " UNION SELECT kind FROM permissions WHERE principal = ?1 AND kind NOT IN (?2, ?3)"
)


class Tables:
    """The workspace's tables of access.

    Args:
        store: The workspace's store. Its transactions may enclose several calls.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def revision(self) -> int | None:
        """Return a number that grows with every change, or None when the store is busy just now.

        Never waits for another thread.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        row = self.store.glance("SELECT number FROM access_revision")
        return int(row[0]) if row else None

    @contextmanager
    def writing(self, by: str) -> Iterator[Connection]:
        """Lend the connection for a change; whoever makes the first one becomes an admin.

        Raises:
            ConfigurationError: The change would leave nobody in the group of admins; nothing is changed.
            WorkspaceError: The workspace cannot be written.
        """
        with self.store.write() as connection:
            was_configured = _is_configured(connection)
            yield connection
            if not was_configured and _is_configured(connection):
                check_name("user who gives the first token, group or permission", by)
                add_member(connection, ADMINS, by)
            elif was_configured and not _has_admin(connection):
                raise ConfigurationError(
                    f"Somebody has to stay in the group '{ADMINS}': nobody else could change tokens and groups."
                    " Add another member first."
                )


def everything(connection: Connection) -> Written:
    """Return all that is written down."""
    # The revision first: what changes meanwhile is read again.
    (revision,) = connection.execute("SELECT number FROM access_revision").fetchone()
    return Written(
        revision,
        tuple(HeldToken(bytes(digest), TokenInfo(*info)) for digest, *info in connection.execute(_TOKENS)),
        tuple(connection.execute(_MEMBERS)),
        tuple((endpoint_id, Grant(*grant)) for endpoint_id, *grant in connection.execute(_GRANTS)),
    )


def tokens(connection: Connection) -> list[TokenInfo]:
    """Return what is known of every token, the newest first."""
    return [TokenInfo(*info) for _, *info in connection.execute(_TOKENS)]


def groups(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Return the members of every group, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for group, name in connection.execute(_MEMBERS):
        found[group] = (*found.get(group, ()), name)
    return found


def grants(connection: Connection, endpoint_id: str) -> list[Grant]:
    """Return what was given directly on an endpoint."""
    rows = connection.execute(
        "SELECT kind, principal, level FROM permissions WHERE endpoint_id = ? ORDER BY kind, principal", (endpoint_id,)
    )
    return [Grant(*row) for row in rows]


def add_token(connection: Connection, digest: bytes, info: TokenInfo) -> None:
    """Keep a token.

    Raises:
        ConfigurationError: Its principal is of another kind elsewhere.
    """
    _refuse_other_kind(connection, info.kind, info.principal)
    connection.execute(
        "INSERT INTO tokens (id, digest, kind, principal, comment, created_ms, expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (info.id, digest, info.kind, info.principal, info.comment, info.created_ms, info.expires_ms),
    )


def delete_token(connection: Connection, token_id: str) -> TokenInfo:
    """Forget a token; returns what it was.

    Raises:
        ConfigurationError: There is none of that id.
    """
    found = next((info for info in tokens(connection) if info.id == token_id), None)
    if found is None:
        raise ConfigurationError(f"There is no token '{token_id}'. See `aiquery tokens list` for those there are.")
    connection.execute("DELETE FROM tokens WHERE id = ?", (token_id,))
    return found


def add_member(connection: Connection, group: str, name: str) -> None:
    """Put somebody into a group; nothing happens when they are in it."""
    connection.execute("INSERT OR IGNORE INTO members (group_name, principal) VALUES (?, ?)", (group, name))


def remove_members(connection: Connection, group: str, names: Sequence[str]) -> None:
    """Take members out of a group.

    Raises:
        ConfigurationError: One of them is not in it.
    """
    for name in names:
        done = connection.execute("DELETE FROM members WHERE group_name = ? AND principal = ?", (group, name))
        if not done.rowcount:
            raise ConfigurationError(f"'{name}' is not in the group '{group}'; nobody was taken out of it.")


def put_grants(connection: Connection, endpoint_id: str, given: Iterable[Grant]) -> None:
    """Give permissions on an endpoint, in place of what the same principals had.

    Raises:
        ConfigurationError: A principal is of another kind elsewhere.
    """
    for grant in given:
        if grant.kind in ASKING:
            _refuse_other_kind(connection, grant.kind, grant.principal)
        connection.execute(
            "INSERT INTO permissions (endpoint_id, kind, principal, level) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (endpoint_id, kind, principal) DO UPDATE SET level = excluded.level",
            (endpoint_id, grant.kind, grant.principal, grant.level),
        )


def delete_grant(connection: Connection, endpoint_id: str, kind: str, principal: str) -> None:
    """Take away the permission that somebody was given on an endpoint.

    Raises:
        ConfigurationError: They were given none.
    """
    done = connection.execute(
        "DELETE FROM permissions WHERE endpoint_id = ? AND kind = ? AND principal = ?", (endpoint_id, kind, principal)
    )
    if not done.rowcount:
        raise ConfigurationError(f"{kind.replace('_', ' ').capitalize()} '{principal}' was given no permission on it.")


def delete_grants(connection: Connection, endpoint_id: str) -> None:
    """Take away every permission that was given on an endpoint."""
    connection.execute("DELETE FROM permissions WHERE endpoint_id = ?", (endpoint_id,))


def _is_configured(connection: Connection) -> bool:
    return bool(connection.execute(_ANYTHING, (GROUP, USERS)).fetchone()[0])


def _has_admin(connection: Connection) -> bool:
    return bool(connection.execute(_ADMIN, (ADMINS,)).fetchone()[0])


def _refuse_other_kind(connection: Connection, kind: str, name: str) -> None:
    row = connection.execute(_OTHER_KIND, (name, kind, GROUP)).fetchone()
    if row:
        raise ConfigurationError(
            f"'{name}' is a {row[0].replace('_', ' ')} in this workspace, not a {kind.replace('_', ' ')}."
        )
