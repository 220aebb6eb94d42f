"""Who asks, what they hold, and which names they may have."""

from __future__ import annotations

from dataclasses import dataclass

from aiquery_serving.errors import ConfigurationError

USER, SERVICE_PRINCIPAL, GROUP = "user", "service_principal", "group"
#: Kinds that can ask for something; a group only holds permissions.
ASKING = (USER, SERVICE_PRINCIPAL)
#: Kinds that permissions are given to.
HOLDING = (USER, GROUP, SERVICE_PRINCIPAL)

CAN_VIEW, CAN_QUERY, CAN_MANAGE = "CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"
#: The levels of permission, each of which includes those before it (contract C.8).
LEVELS = (CAN_VIEW, CAN_QUERY, CAN_MANAGE)

#: The group whose members may do everything.
ADMINS = "admins"
#: The group of everybody who is known; nobody is put into it or out of it.
USERS = "users"

_LONGEST = 256


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a user by name, or a service principal by application id.

    Examples:
        >>> Principal("ann@example.com", "user", frozenset({"admins"})).is_admin
        True
    """

    name: str
    kind: str = USER
    groups: frozenset[str] = frozenset()

    @property
    def is_admin(self) -> bool:
        """Whether they may do everything."""
        return ADMINS in self.groups


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """All there is to know of a token but its text; times in milliseconds since 1970."""

    id: str
    kind: str
    principal: str
    comment: str
    created_ms: int
    expires_ms: int | None

    def expired(self, now_ms: int) -> bool:
        """Say whether it opens nothing any more."""
        return self.expires_ms is not None and now_ms >= self.expires_ms


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission on one endpoint that was given directly to a user, a group or a service principal.

    Raises:
        ConfigurationError: There is no such kind or level, or the name is not allowed.
    """

    kind: str
    principal: str
    level: str

    def __post_init__(self) -> None:
        require_one_of("the kind of principal", self.kind, HOLDING)
        require_one_of("permission_level", self.level, LEVELS)
        check_name(self.kind, self.principal)


def require_one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    """Refuse what is not one of a few words.

    Raises:
        ConfigurationError: The message lists them.
    """
    if given not in known:
        raise ConfigurationError(f"{what} is one of {', '.join(known)}; got '{given}'.")


def check_name(what: str, name: str) -> None:
    """Refuse a name that is empty, too long, or that a terminal or a log would not show as it is.

    Raises:
        ConfigurationError: The message says how a name has to be.
    """
    if not 0 < len(name) <= _LONGEST or not name.isprintable() or name != name.strip():
        raise ConfigurationError(
            f"The name of a {what.replace('_', ' ')} has 1 to {_LONGEST} visible characters and no space around them;"
            f" got {name[:_LONGEST]!r}."
        )


def check_comment(comment: str) -> None:
    """Refuse a comment that would not fit a line.

    Raises:
        ConfigurationError: It is too long, or holds control characters.
    """
    if len(comment) > _LONGEST or not comment.isprintable():
        raise ConfigurationError(f"The comment of a token is one line of at most {_LONGEST} visible characters.")
