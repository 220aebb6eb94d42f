"""Decides who asks and what they may do, and takes down what they are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from sqlite3 import Connection

from aiquery_serving.access import tables
from aiquery_serving.access.principals import (
    ADMINS,
    ASKING,
    CAN_MANAGE,
    CAN_QUERY,
    CAN_VIEW,
    USER,
    USERS,
    Grant,
    Principal,
    TokenInfo,
    check_comment,
    check_name,
    require_one_of,
)
from aiquery_serving.access.snapshot import Snapshot, includes
from aiquery_serving.access.token_text import id_of, is_text_of, new_token
from aiquery_serving.clock import Clock
from aiquery_serving.errors import ConfigurationError, PermissionDeniedError, UnauthenticatedError
from aiquery_serving.store import Store

#: How often a process looks for the changes of others, in seconds.
LOOK_SECONDS = 0.2
#: The last millisecond that a date can be written of.
_LATEST_MS = 253_402_300_799_999

_NOT_KNOWN = (
    "The token is not known here: it was revoked, belongs to another workspace, or is incomplete."
    " An admin makes one with `aiquery tokens create`."
)
_MAY = {CAN_VIEW: "see", CAN_QUERY: "query", CAN_MANAGE: "manage"}


class Access:
    """The tokens, groups and permissions of a workspace.

    Until anybody is given a token, a group or a permission the workspace belongs to whoever opens it, and everybody
    may do everything. Whoever gives the first one (`by`) becomes a member of `admins`, and from then on: creators of
    endpoints and admins manage, others have what they, or a group of theirs, were given.

    From any thread. What is asked per request (`authenticate`, `require`, `level`, `groups_of`) looks things up in
    memory and waits for nobody; changes of other processes show within `LOOK_SECONDS`.

    Args:
        store: The workspace's store.
        clock: Tells the time: when to look for changes, and which tokens have expired.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._tables = tables.Tables(store)
        self._clock = clock
        self._look_at = -math.inf
        with store.read() as connection:
            # Before the first question: who knew nothing would let everybody pass.
            self._held = Snapshot(tables.everything(connection))

    def __repr__(self) -> str:
        return f"Access({self._tables.store!r})"

    @property
    def configured(self) -> bool:
        """Whether anybody was ever given anything."""
        return self._snapshot().configured

    def authenticate(self, token: str) -> Principal:
        """Return who holds a token.

        Raises:
            UnauthenticatedError: Nobody does, or it has expired.
            WorkspaceError: The workspace cannot be read.
        """
        snapshot = self._snapshot()
        held = snapshot.token(id_of(token))
        known = is_text_of(token, held.digest if held else None)
        if held is None or not known:
            raise UnauthenticatedError(_NOT_KNOWN)
        if held.info.expired(self._clock.epoch_ms()):
            raise UnauthenticatedError(_expired(held.info))
        return snapshot.principal(held.info.principal)

    def principal(self, name: str) -> Principal:
        """Return who has a name; a user in no group when nobody is known by it.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        snapshot = self._snapshot()
        if not snapshot.configured:
            return Principal(name, USER, frozenset({ADMINS, USERS}))
        return snapshot.principal(name)

    def groups_of(self, name: str) -> frozenset[str]:
        """Return the groups that somebody is in.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        return self._snapshot().principal(name).groups

    def level(self, endpoint_id: str, creator: str, who: Principal | str) -> str | None:
        """Return the highest level of permission that somebody has on an endpoint, or None.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        return self._snapshot().level(endpoint_id, creator, _name(who))

    def require(self, endpoint: str, endpoint_id: str, creator: str, who: Principal | str, level: str) -> None:
        """Let pass who has at least a level of permission on an endpoint.

        Args:
            endpoint: Its name, for the message.
            endpoint_id: What permissions on it are kept by.
            creator: Who made it.
            who: Who asks.
            level: What is needed: CAN_VIEW, CAN_QUERY or CAN_MANAGE.

        Raises:
            PermissionDeniedError: They have less.
            WorkspaceError: The workspace cannot be read.
        """
        has = self._snapshot().level(endpoint_id, creator, _name(who))
        if not includes(has, level):
            raise PermissionDeniedError(_denied(endpoint, creator, _name(who), level, has))

    def require_admin(self, who: Principal | str, action: str) -> None:
        """Let pass who may do everything; `action` says what for.

        Raises:
            PermissionDeniedError: They are not in the group of admins.
            WorkspaceError: The workspace cannot be read.
        """
        if not self.principal(_name(who)).is_admin:
            raise PermissionDeniedError(
                f"'{_name(who)}' may not {action}: that is for members of the group '{ADMINS}'."
            )

    # Tokens.

    def tokens(self) -> list[TokenInfo]:
        """Return what is known of every token, the newest first; never its text.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._tables.store.read() as connection:
            return tables.tokens(connection)

    def create_token(
        self, name: str, *, by: str, kind: str = USER, expires_ms: int | None = None, comment: str = ""
    ) -> tuple[str, TokenInfo]:
        """Make a token; its text is returned this once and kept nowhere.

        Args:
            name: Whom it speaks for: a user's name, or a service principal's application id.
            by: Who makes it.
            kind: `user` or `service_principal`.
            expires_ms: When it opens nothing any more, in milliseconds since 1970; None for never.
            comment: What it is for.

        Raises:
            ConfigurationError: A name is not allowed, or the token would have expired already.
            PermissionDeniedError: Only admins make tokens.
            WorkspaceError: The workspace cannot be written.
        """
        require_one_of("The kind of a token", kind, ASKING)
        check_name(kind, name)
        check_comment(comment)
        now_ms = self._clock.epoch_ms()
        _check_end(expires_ms, now_ms)
        token_id, text, digest = new_token()
        info = TokenInfo(token_id, kind, name, comment, now_ms, expires_ms)
        with self._as_admin(by, "make tokens") as connection:
            tables.add_token(connection, digest, info)
        return text, info

    def revoke_token(self, token_id: str, *, by: str) -> TokenInfo:
        """Forget a token: who sends it is not known any more. Returns what it was.

        Raises:
            ConfigurationError: There is no token of that id.
            PermissionDeniedError: Only admins revoke tokens.
            WorkspaceError: The workspace cannot be written.
        """
        with self._as_admin(by, "revoke tokens") as connection:
            return tables.delete_token(connection, token_id)

    # Groups.

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the members of every group, by its name; `users`, where everybody is, is left out.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._tables.store.read() as connection:
            return tables.groups(connection)

    def add_members(self, group: str, names: Sequence[str], *, by: str) -> None:
        """Put users and service principals into a group, which is made by this.

        Raises:
            ConfigurationError: A name is not allowed.
            PermissionDeniedError: Only admins change groups.
            WorkspaceError: The workspace cannot be written.
        """
        _check_group(group)
        for name in names:
            check_name("member", name)
        with self._as_admin(by, "change groups") as connection:
            for name in names:
                tables.add_member(connection, group, name)

    def remove_members(self, group: str, names: Sequence[str], *, by: str) -> None:
        """Take members out of a group; one that has none left is gone.

        Raises:
            ConfigurationError: One of them is not in it, or nobody would be left in `admins`. Nothing is changed.
            PermissionDeniedError: Only admins change groups.
            WorkspaceError: The workspace cannot be written.
        """
        _check_group(group)
        with self._as_admin(by, "change groups") as connection:
            tables.remove_members(connection, group, names)

    # Permissions. Whoever calls these has seen to it that `by` manages the endpoint.

    def acl(self, endpoint_id: str) -> list[Grant]:
        """Return what was given directly on an endpoint.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._tables.store.read() as connection:
            return tables.grants(connection, endpoint_id)

    def set_acl(self, endpoint_id: str, grants: Iterable[Grant], *, by: str) -> None:
        """Give these permissions on an endpoint, and take away all others that were given directly.

        Raises:
            ConfigurationError: Somebody is named as a user here and as a service principal elsewhere.
            WorkspaceError: The workspace cannot be written.
        """
        with self._writing(by) as connection:
            tables.delete_grants(connection, endpoint_id)
            tables.put_grants(connection, endpoint_id, grants)

    def merge_acl(self, endpoint_id: str, grants: Iterable[Grant], *, by: str) -> None:
        """Give these permissions on an endpoint, in place of what the same principals had.

        Raises:
            ConfigurationError: Somebody is named as a user here and as a service principal elsewhere.
            WorkspaceError: The workspace cannot be written.
        """
        with self._writing(by) as connection:
            tables.put_grants(connection, endpoint_id, grants)

    def revoke(self, endpoint_id: str, kind: str, principal: str, *, by: str) -> None:
        """Take away what somebody was given directly on an endpoint.

        Raises:
            ConfigurationError: They were given nothing.
            WorkspaceError: The workspace cannot be written.
        """
        with self._writing(by) as connection:
            tables.delete_grant(connection, endpoint_id, kind, principal)

    def forget(self, endpoint_id: str) -> None:
        """Take away every permission on an endpoint that is deleted.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        with self._tables.store.write() as connection:
            tables.delete_grants(connection, endpoint_id)
        self._changed()

    @contextmanager
    def _as_admin(self, by: str, action: str) -> Iterator[Connection]:
        self._look_at = -math.inf
        self.require_admin(by, action)
        with self._writing(by) as connection:
            yield connection

    @contextmanager
    def _writing(self, by: str) -> Iterator[Connection]:
        with self._tables.writing(by) as connection:
            yield connection
        self._changed()

    def _changed(self) -> None:
        """See what this process has written, now or when a transaction around us has ended."""
        self._look_at = -math.inf
        self._read()

    def _snapshot(self) -> Snapshot:
        """Return what is written down by now, or was up to `LOOK_SECONDS` ago."""
        now = self._clock.now()
        if now >= self._look_at and self._look():
            self._look_at = now + LOOK_SECONDS
        return self._held

    def _look(self) -> bool:
        """Follow changes; says whether what is held is what is written down."""
        revision = self._tables.revision()
        return revision is not None and (revision == self._held.revision or self._read())

    def _read(self) -> bool:
        with self._tables.store.read() as connection:
            if connection.in_transaction:
                # What a transaction around us has changed is not true yet, and may never be.
                return False
            self._held = Snapshot(tables.everything(connection))
            return True


def _name(who: Principal | str) -> str:
    return who if isinstance(who, str) else who.name


def _check_group(group: str) -> None:
    check_name("group", group)
    if group == USERS:
        raise ConfigurationError(
            f"Everybody who is known is in the group '{USERS}': nobody is put into it or out of it."
        )


def _check_end(expires_ms: int | None, now_ms: int) -> None:
    if expires_ms is not None and not now_ms < expires_ms <= _LATEST_MS:
        raise ConfigurationError("A token expires in the future, before the year 10000, or never.")


def _expired(info: TokenInfo) -> str:
    end = datetime.fromtimestamp((info.expires_ms or 0) / 1000, UTC)
    return (
        f"The token '{info.id}' of '{info.principal}' expired at {end:%Y-%m-%d %H:%M} UTC."
        " An admin makes another one with `aiquery tokens create`."
    )


def _denied(endpoint: str, creator: str, name: str, level: str, has: str | None) -> str:
    owner = f"its creator '{creator}', anybody else who manages it, " if creator else "anybody who manages it "
    return (
        f"'{name}' may not {_MAY[level]} endpoint '{endpoint}': that takes {level}, and they have"
        f" {has or 'no permission'} on it. It can be granted by {owner}or a member of the group '{ADMINS}'."
    )
