"""Who may do what: tokens, groups, and permissions on endpoints."""

from aiquery_serving.access.authority import Access
from aiquery_serving.access.principals import (
    ADMINS,
    CAN_MANAGE,
    CAN_QUERY,
    CAN_VIEW,
    GROUP,
    LEVELS,
    SERVICE_PRINCIPAL,
    USER,
    USERS,
    Grant,
    Principal,
    TokenInfo,
)

__all__ = [
    "ADMINS",
    "CAN_MANAGE",
    "CAN_QUERY",
    "CAN_VIEW",
    "GROUP",
    "LEVELS",
    "SERVICE_PRINCIPAL",
    "USER",
    "USERS",
    "Access",
    "Grant",
    "Principal",
    "TokenInfo",
]
