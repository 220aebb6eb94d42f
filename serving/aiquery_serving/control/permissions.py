"""Permissions on an endpoint in the REST API's JSON (contract B.3, C.8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiquery_serving.access import ADMINS, CAN_MANAGE, CAN_QUERY, CAN_VIEW, GROUP, USER, Grant, Principal
from aiquery_serving.messages import Json

LEVELS: Final = (
    {"permission_level": CAN_MANAGE, "description": "Can manage the endpoint: change, delete and share it"},
    {"permission_level": CAN_QUERY, "description": "Can query the endpoint, and see it"},
    {"permission_level": CAN_VIEW, "description": "Can see the endpoint, its config and its logs"},
)

_ROOT = "/serving-endpoints/"
_NAMES = {USER: "user_name", GROUP: "group_name"}


def permissions_output(endpoint_id: str, creator: Principal | None, grants: Iterable[Grant]) -> Json:
    """Return who may do what with an endpoint: its creator, who was given something, and the admins."""
    held: dict[tuple[str, str], list[Json]] = {}
    if creator is not None:
        held[creator.kind, creator.name] = [_direct(CAN_MANAGE)]
    for grant in grants:
        held.setdefault((grant.kind, grant.principal), [_direct(grant.level)])
    inherited = {"permission_level": CAN_MANAGE, "inherited": True, "inherited_from_object": [_ROOT]}
    held.setdefault((GROUP, ADMINS), []).append(inherited)
    return {
        "object_id": f"{_ROOT}{endpoint_id}",
        "object_type": "serving-endpoint",
        "access_control_list": [_item(kind, name, levels) for (kind, name), levels in held.items()],
    }


def _item(kind: str, name: str, levels: list[Json]) -> Json:
    return {
        _NAMES.get(kind, "service_principal_name"): name,
        **({} if kind == GROUP else {"display_name": name}),
        "all_permissions": levels,
    }


def _direct(level: str) -> Json:
    return {"permission_level": level, "inherited": False}
