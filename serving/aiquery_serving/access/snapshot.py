"""What was written down about access at one moment, and what follows from it: pure look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aiquery_serving.access.principals import (
    CAN_MANAGE,
    GROUP,
    LEVELS,
    USER,
    USERS,
    Grant,
    Principal,
    TokenInfo,
)

_RANKS = {level: rank for rank, level in enumerate(LEVELS)}


class HeldToken(NamedTuple):
    """A token, and the digest that its text has to have."""

    digest: bytes
    info: TokenInfo


@dataclass(frozen=True, slots=True)
class Written:
    """The rows of a workspace that say who may do what."""

    revision: int = -1
    tokens: tuple[HeldToken, ...] = ()
    #: Group and member.
    members: tuple[tuple[str, str], ...] = ()
    #: Endpoint id and grant.
    grants: tuple[tuple[str, Grant], ...] = ()


class Snapshot:
    """Answers who is known, in which groups they are, and what they may do with an endpoint.

    Examples:
        >>> grant = Grant("group", "analysts", "CAN_QUERY")
        >>> snapshot = Snapshot(Written(1, (), (("analysts", "ann"),), (("1f", grant),)))
        >>> snapshot.level("1f", "bob", "ann"), snapshot.level("1f", "bob", "cid")
        ('CAN_QUERY', None)
    """

    def __init__(self, written: Written) -> None:
        self.revision = written.revision
        #: Whether anybody was ever given anything; until then everybody may do everything.
        self.configured = bool(written.tokens or written.members) or any(map(_is_to_somebody, written.grants))
        self._tokens = {held.info.id: held for held in written.tokens}
        self._grants: dict[str, dict[tuple[bool, str], int]] = {}
        for endpoint_id, grant in written.grants:
            holder = (grant.kind == GROUP, grant.principal)
            self._grants.setdefault(endpoint_id, {})[holder] = _RANKS[grant.level]
        self._principals = _known(written)

    def token(self, token_id: str | None) -> HeldToken | None:
        """Return the token of an id."""
        return self._tokens.get(token_id or "")

    def principal(self, name: str) -> Principal:
        """Return who has a name; a user in no group when nobody is known by it."""
        return self._principals.get(name) or Principal(name)

    def level(self, endpoint_id: str, creator: str, name: str) -> str | None:
        """Return the highest level that somebody has on an endpoint, or None."""
        who = self.principal(name)
        if not self.configured or who.is_admin or (name and name == creator):
            return CAN_MANAGE
        given = self._grants.get(endpoint_id)
        if not given:
            return None
        holders = ((False, name), *((True, group) for group in who.groups))
        rank = max((given[holder] for holder in holders if holder in given), default=None)
        return None if rank is None else LEVELS[rank]


def _is_to_somebody(given: tuple[str, Grant]) -> bool:
    """Say whether a grant is to more than `users`, where nobody is until they are given something else."""
    return (given[1].kind, given[1].principal) != (GROUP, USERS)


def includes(level: str | None, needed: str) -> bool:
    """Say whether a level is enough.

    Examples:
        >>> includes("CAN_MANAGE", "CAN_QUERY"), includes("CAN_VIEW", "CAN_QUERY"), includes(None, "CAN_VIEW")
        (True, False, False)
    """
    return level is not None and _RANKS[level] >= _RANKS[needed]


def _known(written: Written) -> dict[str, Principal]:
    """Return everybody who has a token, is in a group, or was given something."""
    groups: dict[str, set[str]] = {name: {USERS} for _, name in written.members}
    for group, name in written.members:
        groups[name].add(group)
    kinds = {grant.principal: grant.kind for _, grant in written.grants if grant.kind != GROUP}
    kinds |= {held.info.principal: held.info.kind for held in written.tokens}
    return {
        name: Principal(name, kinds.get(name, USER), frozenset(groups.get(name, {USERS}))) for name in {*groups, *kinds}
    }
