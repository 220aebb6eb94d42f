"""The routes of the control plane: from a method and a path to one operation (contract B.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import orjson

from aiquery_serving.access import CAN_VIEW
from aiquery_serving.messages import Json
from aiquery_serving.rest import openapi
from aiquery_serving.rest.messages import Reply
from aiquery_serving.rest.operations import CONTROL, Operation
from aiquery_serving.rest.replies import no_route, wrong_method

if TYPE_CHECKING:
    from aiquery_serving.access import Principal
    from aiquery_serving.rest.messages import Request
    from aiquery_serving.rest.serves import Serves

SERVER_DOCUMENT: Final = "/openapi.json"


async def handle(request: Request, who: Principal, serves: Serves) -> Reply | None:
    """Answer a request to the control plane; None when there is no such path.

    Raises:
        AiQueryError: Who asks may not do that, or it cannot be done.
    """
    method, path = request.method, request.path
    if path == SERVER_DOCUMENT:
        return Reply.json(openapi.server_document()) if method == "GET" else wrong_method(method, path, "GET")
    ways = _ways(path)
    if not ways:
        return None
    if method not in ways:
        return wrong_method(method, path, *ways)
    operation, parameters = ways[method]
    if operation.call is None:
        reply: Reply = await _OTHERS[operation.id](request, who, serves, *parameters)
        return reply
    body = (request.json(),) if operation.body else ()
    document = await asyncio.to_thread(operation.call, serves.control, who, *parameters, *body)
    return Reply.json(_addressed(document, request))


def _ways(path: str) -> dict[str, tuple[Operation, list[str]]]:
    """Return the operations of a path by their methods, and the parameters in it."""
    ways: dict[str, tuple[Operation, list[str]]] = {}
    template = ""
    for operation in CONTROL:
        parameters = _parameters(operation.path, path)
        # A literal path hides the templates that it fits too.
        if parameters is not None and template in ("", operation.path):
            template = operation.path
            ways[operation.method] = (operation, parameters)
    return ways


def _parameters(template: str, path: str) -> list[str] | None:
    """Return the parts of a path that a template leaves open; None when the path does not fit it.

    Examples:
        >>> _parameters("/a/{b}/c", "/a/x/c"), _parameters("/a/{b}", "/a/"), _parameters("/a/{b}", "/a/x/c")
        (['x'], None, None)
    """
    wanted, given = template.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    found = []
    for part, value in zip(wanted, given, strict=True):
        if part.startswith("{") and value:
            found.append(value)
        elif part != value:
            return None
    return found


async def _metrics(request: Request, who: Principal, serves: Serves, name: str) -> Reply:
    await asyncio.to_thread(serves.control.require, who, name, CAN_VIEW)
    if serves.metrics is None:
        return no_route(request.method, request.path)
    text = await asyncio.to_thread(serves.metrics.export, name)
    return Reply(200, text, "text/plain; version=0.0.4; charset=utf-8")


async def _open_api(_: Request, who: Principal, serves: Serves, name: str) -> Reply:
    interface = await asyncio.to_thread(serves.control.interface, who, name)
    document = openapi.endpoint_document(interface)
    # The SDK asks for text/plain, and reads JSON.
    return Reply(200, Reply.json(document).body, "text/plain; charset=utf-8")


async def _external(request: Request, who: Principal, serves: Serves) -> Reply:
    external = serves.control.external
    prepared = await asyncio.to_thread(external.prepare, who, request.json())
    answer = await external.send(prepared)
    session = ((b"mcp-session-id", answer.session.encode("latin-1")),) if answer.session else ()
    return Reply(200, answer.body, "text/plain; charset=utf-8", session)


_OTHERS: Final[dict[str, Callable[..., Any]]] = {
    "export_metrics": _metrics,
    "get_open_api": _open_api,
    "http_request": _external,
}


def _addressed(document: Json, request: Request) -> Json:
    """Return an endpoint with the address of its own that a route-optimised one has (contract C.9)."""
    if not document.get("route_optimized"):
        return document
    scheme, host = request.scheme, request.headers.get("host", "")
    url = f"{scheme}://{host}/serving-endpoints/{document['name']}/invocations"
    info = {"endpoint_url": url, "authorization_details": _authorization(document["id"])}
    return {**document, "endpoint_url": url, "data_plane_info": {"query_info": info}}


def _authorization(endpoint_id: str) -> str:
    """Return what the SDK asks a token for, when it wants to query that address."""
    detail = {
        "type": "workspace_permission",
        "object_type": "serving-endpoints",
        "object_path": f"/serving-endpoints/{endpoint_id}",
        "actions": ["query_inference_endpoint"],
    }
    return orjson.dumps([detail]).decode()
