"""OpenAPI documents: of the whole server, and of one endpoint with the signatures of its models."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Json
from aiquery_serving.rest.model_schemas import answer_schema, request_schema
from aiquery_serving.rest.openapi_schemas import ANSWERS, TEXT, read_schemas, ref
from aiquery_serving.rest.operations import CONTROL, PLAIN, QUERIES, Operation

if TYPE_CHECKING:
    from aiquery_serving.control import Interface

_JSON, _EVENTS = "application/json", "text/event-stream"
#: The schemas of a request and of its answer.
_TASKS: Final = {
    CHAT: ("ChatRequest", "ChatCompletion"),
    COMPLETIONS: ("CompletionsRequest", "Completion"),
    EMBEDDINGS: ("EmbeddingsRequest", "Embeddings"),
}
_STREAMING: Final = (CHAT, COMPLETIONS)


@cache
def server_document() -> Json:
    """Return the document of the server's routes."""
    paths: dict[str, Json] = {}
    for operation in (*CONTROL, *QUERIES):
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return _document("aiquery", "Databricks Model Serving's REST API, on this machine.", paths, read_schemas())


def endpoint_document(interface: Interface) -> Json:
    """Return the document of one endpoint: how it, and each of its served models, is queried."""
    operations = {name: _query(interface, name, [signature]) for name, signature in interface.signatures.items()}
    paths: dict[str, Json] = {}
    if operations:
        paths["/invocations"] = {"post": _query(interface, "", list(interface.signatures.values()))}
        paths |= {f"/served-models/{name}/invocations": {"post": found} for name, found in operations.items()}
    document = _document(interface.endpoint, "How this endpoint is queried.", paths, {})
    return {**document, "servers": [{"url": f"/serving-endpoints/{interface.endpoint}"}]}


def _query(interface: Interface, served_model: str, signatures: list[Any]) -> Json:
    what = f"the served model {served_model}" if served_model else "the endpoint, by its traffic split"
    if interface.task is None:
        asked, answered = _any([request_schema(s) for s in signatures]), _any([answer_schema(s) for s in signatures])
    else:
        asked, answered = (ref(name) for name in _TASKS[interface.task])
    return {
        "operationId": f"query_{served_model}" if served_model else "query",
        "summary": f"Query {what}.",
        "requestBody": {"required": True, "content": {_JSON: {"schema": asked}}},
        "responses": _responses({_JSON: answered} | _events(streams=interface.task in _STREAMING)),
    }


def _any(schemas: list[Json]) -> Json:
    """Return the schema of what fits one of several, each named once."""
    different = [schema for place, schema in enumerate(schemas) if schema not in schemas[:place]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _operation(operation: Operation) -> Json:
    content = {PLAIN: TEXT} if operation.answer == PLAIN else {_JSON: ref(operation.answer)}
    described: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [_parameter(name) for name in re.findall(r"{(\w+)}", operation.path)],
        "responses": _responses(content | _events(streams=operation in QUERIES)),
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": ref(operation.body)}}}
    return described


def _parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {**TEXT, "minLength": 1, "pattern": "^[^/]+$"}}


def _events(*, streams: bool) -> dict[str, Json]:
    return {_EVENTS: {"description": "Chunks, where the request's `stream` is true."}} if streams else {}


def _responses(content: dict[str, Json]) -> Json:
    wrong = {"description": "What is wrong.", "content": {_JSON: {"schema": ref("Error")}}}
    right = {"description": "Done.", "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    return {"200": right, "default": wrong}


def _document(title: str, description: str, paths: Json, schemas: dict[str, Json]) -> Json:
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version("aiquery")},
        "paths": paths,
        "components": {"schemas": _used(paths, {**ANSWERS, **schemas}), "securitySchemes": _SECURITY},
        "security": [{"bearer": []}, {"basic": []}],
    }


def _used(paths: Json, schemas: dict[str, Json]) -> dict[str, Json]:
    """Return the schemas that a document refers to."""
    used: dict[str, Json] = {}
    ahead = _references(paths)
    while ahead:
        name = ahead.pop()
        if name not in used:
            used[name] = schemas[name]
            ahead |= _references(schemas[name])
    return dict(sorted(used.items()))


def _references(part: Any) -> set[str]:
    if isinstance(part, dict):
        here = {part["$ref"].rpartition("/")[2]} if isinstance(part.get("$ref"), str) else set()
        return here.union(*(_references(value) for value in part.values()))
    return set().union(*(_references(value) for value in part)) if isinstance(part, list) else set()


_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The user is `token`, the password a token."},
}
