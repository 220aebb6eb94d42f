"""What an answer is held to: a JSON schema, or the call of a tool (contract A.6, D.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from aiquery_serving.entities.foundation.fields import wrong
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json

_MOST_TOOLS: Final = 32
_ENVELOPE: Final = '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The tools of a request.

    Attributes:
        offered: What the chat template is given; None for none.
        names: Of the functions that may be called.
        schema: What the answer must fulfil where a call is asked for, as JSON text.
    """

    offered: list[Json] | None = None
    names: frozenset[str] = frozenset()
    schema: str | None = None


def format_schema(asked: Json) -> str | None:
    """Return the JSON schema that `response_format` asks for, as JSON text; None for any text.

    Examples:
        >>> format_schema({"response_format": {"type": "json_object"}})
        '{"type":"object"}'

    Raises:
        InvalidRequestError: It is none that exists.
    """
    match asked.get("response_format"):
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return _text({"type": "object"})
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return _text(schema)
        case {"type": "json_schema"} as value:
            raise wrong("response_format", value, _ENVELOPE)
        case value:
            raise wrong("response_format", value, f'{{"type": "text"}}, {{"type": "json_object"}} or {_ENVELOPE}')


def tools_of(asked: Json) -> Tools:
    """Return the tools that the model may call, or must.

    Raises:
        InvalidRequestError: They, or `tool_choice`, are wrong.
    """
    tools = _functions(asked)
    match asked.get("tool_choice", "auto"):
        case "none":
            return Tools()
        case "auto":
            schema = None
        case "required":
            schema = call_schema(tools)
        case {"function": {"name": str(name)}}:
            schema = call_schema([tool for tool in tools if tool["function"]["name"] == name])
        case value:
            raise wrong("tool_choice", value, 'auto, none, required or {"type": "function", "function": {"name": …}}')
    names = frozenset(tool["function"]["name"] for tool in tools)
    return Tools(offered=tools or None, names=names, schema=schema)


def call_schema(tools: Sequence[Json]) -> str:
    """Return the JSON schema of a call of one of some tools: its name and its arguments, as JSON text.

    Raises:
        InvalidRequestError: There are none.
    """
    if not tools:
        raise InvalidRequestError("The request's 'tool_choice' asks for a function that is not among its 'tools'.")
    functions = [tool["function"] for tool in tools]
    parameters = {str(place): _parameters(function, f"#/$defs/{place}") for place, function in enumerate(functions)}
    calls = [_call(function["name"], f"#/$defs/{place}") for place, function in enumerate(functions)]
    return _text({"$defs": parameters, "anyOf": calls})


def _call(name: str, arguments: str) -> Json:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"name": {"const": name}, "arguments": {"$ref": arguments}},
        "required": ["name", "arguments"],
    }


def _parameters(function: Json, home: str) -> Json:
    declared = function.get("parameters") or {"properties": {}}
    if declared.get("properties") == {}:  # it has none, and would be given whatever comes to the model's mind
        declared = {"type": "object", "additionalProperties": False, **declared}
    try:
        moved: Json = _moved(declared, home)
    except RecursionError as error:
        raise InvalidRequestError(f"The parameters of the tool '{function['name']}' are nested too deeply.") from error
    return moved


def _moved(schema: Any, home: str) -> Any:
    """Return a schema whose references to its own parts hold where it is a part itself."""
    if isinstance(schema, list):
        return [_moved(item, home) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: f"{home}{value[1:]}" if name == "$ref" and str(value).startswith("#") else _moved(value, home)
        for name, value in schema.items()
    }


def _functions(asked: Json) -> list[Json]:
    tools = asked.get("tools", [])
    if not isinstance(tools, list) or len(tools) > _MOST_TOOLS:
        raise wrong("tools", tools, f"a list of up to {_MOST_TOOLS} functions")
    for tool in tools:
        match tool:
            case {"function": {"name": str(name), "parameters": dict() | None}} if name:
                continue
            case {"function": {"name": str(name)} as function} if name and "parameters" not in function:
                continue
        raise wrong("tools", tool, '{"type": "function", "function": {"name": …, "parameters": {…}}} in every place')
    return tools


def _text(schema: Json) -> str:
    try:
        return orjson.dumps(schema).decode()
    except TypeError as error:
        raise InvalidRequestError(f"A JSON schema of the request is none: {error}.") from error
