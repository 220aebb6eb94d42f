"""The `modelParameters` argument: which parameters a task takes, and what values they have (contract A.7)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS
from aiquery_udfs.errors import (
    InvalidModelParametersError,
    NumericParameterError,
    ParameterEndpointError,
    ParameterSchemaError,
    ParameterTypeError,
    ReservedParameterError,
    UnsupportedParameterError,
)

#: Names that are not a parameter's, and the argument of ai_query that says the same.
_RESERVED = {
    "messages": "request",
    "prompt": "request",
    "input": "request",
    "model": "endpoint",
    "stream": None,
    "response_format": "responseFormat",
}
#: Models that answer 400 to any temperature (contract A.2), whatever prefix a provider gives the name.
_NO_TEMPERATURE = re.compile(r"(?:^|[/.:])(?:databricks-)?(?:o\d(?:-|$)|gpt-5)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """What values a parameter takes: its type as SQL says it, and the range of a number or the choices."""

    expected: str
    accepts: Callable[[Any], bool]
    holds: Callable[[Any], bool] = lambda _: True
    constraint: str = ""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _whole(lowest: int, highest: int | None = None) -> Rule:
    limits = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
    return Rule("INT", _is_int, lambda v: lowest <= v and (highest is None or v <= highest), limits)


def _real(lowest: float, highest: float) -> Rule:
    return Rule("DOUBLE", _is_number, lambda v: lowest <= v <= highest, f"between {lowest} and {highest}")


_TEXT = Rule("STRING", lambda v: isinstance(v, str))
_TRUTH = Rule("BOOLEAN", lambda v: isinstance(v, bool))
_OBJECT = Rule("STRUCT", lambda v: isinstance(v, dict))
_OBJECTS = Rule("ARRAY<STRUCT>", _is_list_of(dict))
_TEXTS = Rule("STRING or ARRAY<STRING>", lambda v: isinstance(v, str) or _is_list_of(str)(v))
_CHOICE = Rule("STRING or STRUCT", lambda v: isinstance(v, str | dict))

_ANYWHERE = {
    "user": _TEXT,
    "extra_params": _OBJECT,
    "client_request_id": _TEXT,
    "usage_context": _OBJECT,
}
_SAMPLING = _ANYWHERE | {
    "max_tokens": _whole(1),
    "temperature": _real(0, 2),
    "top_p": Rule("DOUBLE", _is_number, lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "top_k": _whole(1),
    "stop": _TEXTS,
    "n": _whole(1, 5),
    "seed": Rule("INT", _is_int),
    "frequency_penalty": _real(-2, 2),
    "presence_penalty": _real(-2, 2),
    "logit_bias": _OBJECT,
}
#: Every parameter that a task takes (contract D.2-D.4, and what OpenAI's and Anthropic's models add).
KNOWN: Mapping[str, Mapping[str, Rule]] = {
    CHAT: _SAMPLING
    | {
        "max_completion_tokens": _whole(1),
        "logprobs": _TRUTH,
        "top_logprobs": _whole(0, 20),
        "reasoning_effort": _TEXT,
        "thinking": _OBJECT,
        "verbosity": _TEXT,
        "service_tier": _TEXT,
        "tools": _OBJECTS,
        "tool_choice": _CHOICE,
        "parallel_tool_calls": _TRUTH,
    },
    COMPLETIONS: _SAMPLING
    | {
        "logprobs": _whole(0, 5),
        "suffix": _TEXT,
        "echo": _TRUTH,
        "best_of": _whole(1, 20),
        "use_raw_prompt": _TRUTH,
        "error_behavior": Rule("'truncate' or 'error'", lambda v: v in ("truncate", "error")),
    },
    EMBEDDINGS: _ANYWHERE
    | {
        "instruction": _TEXT,
        "dimensions": _whole(1),
        "input_type": _TEXT,
        "encoding_format": Rule("'float'", lambda v: v == "float"),
    },
}


def parse(text: str | None, *, endpoint: str, task: str | None, is_custom: bool) -> dict[str, Any]:
    """Check `modelParameters` and return those that are set.

    Args:
        text: The STRUCT as JSON; None or empty for an argument that is NULL.
        endpoint: The endpoint's name, for messages.
        task: The endpoint's task.
        is_custom: Whether the endpoint serves a custom model.

    Raises:
        InvalidModelParametersError: One of its sub-conditions.
    """
    given = _decoded(text)
    if given is None:
        return {}
    check = _Check(endpoint, given)
    if is_custom:
        raise check.wrong(
            ParameterEndpointError,
            "modelParameters are not supported for an endpoint of custom models; put what the model "
            "needs into the request's STRUCT.",
        )
    if not isinstance(given, dict):
        raise check.wrong(ParameterTypeError, f"modelParameters must be a STRUCT, but found {_type_name(given)}.")
    known = KNOWN.get(task or "")
    if known is None:
        raise check.wrong(ParameterSchemaError, f"The endpoint's task {task!r} has no known parameters.")
    return {n: check.value(n, v, known) for n, v in given.items() if v is not None}


def _decoded(text: str | None) -> Any:
    """Read the JSON that DuckDB's `to_json` wrote; NaN and infinity make it no JSON at all."""
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError as error:
        raise ParameterTypeError(f"The modelParameters {text} cannot be sent as JSON: {error}.") from None


def implicit_temperature(parameters: Mapping[str, Any], model_names: Iterable[str]) -> dict[str, float]:
    """Return the temperature 0.0 that ai_query adds, or nothing where a model refuses it (contract A.2).

    A temperature that is set goes before it. Nothing is added when any of the models refuses it: which of
    them answers a row is not known here. Nor with `thinking`, which providers couple to their own default.
    """
    refused = "thinking" in parameters or any(_NO_TEMPERATURE.search(name) for name in model_names)
    return {} if refused else {"temperature": 0.0}


@dataclass(frozen=True, slots=True)
class _Check:
    endpoint: str
    given: Any

    def value(self, name: str, value: Any, known: Mapping[str, Rule]) -> Any:
        if name in _RESERVED:
            raise self.wrong(ReservedParameterError, _reserved(name))
        rule = known.get(name)
        if rule is None:
            raise self.wrong(UnsupportedParameterError, _unsupported(name, known))
        if not rule.accepts(value):
            raise self.wrong(
                ParameterTypeError,
                f'The "{name}" parameter must be of type {rule.expected}, but found {_type_name(value)}.',
            )
        if not rule.holds(value):
            raise self.wrong(
                NumericParameterError,
                f'The "{name}" parameter must be {rule.constraint}, but found {value}.',
            )
        return value

    def wrong(self, kind: type[InvalidModelParametersError], detail: str) -> InvalidModelParametersError:
        shown = orjson.dumps(self.given).decode()
        return kind(
            f"The provided model parameters ({shown}) are invalid in the AI_QUERY function for serving "
            f'endpoint "{self.endpoint}". {detail}'
        )


def _reserved(name: str) -> str:
    argument = _RESERVED[name]
    way_out = f"use the argument {argument}" if argument else "ai_query always waits for whole answers"
    return f'The name "{name}" is reserved; {way_out}.'


def _unsupported(name: str, known: Mapping[str, Rule]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f' Did you mean "{close[0]}"?' if close else f" Supported: {', '.join(sorted(known))}."
    return f'The "{name}" parameter is not supported for the serving endpoint.{hint}'


def _type_name(value: Any) -> str:
    if isinstance(value, str):
        return f"STRING {value!r}" if len(value) < 40 else "STRING"  # noqa: PLR2004 - enough to see what it is
    names = {bool: "BOOLEAN", int: "INT", float: "DOUBLE", list: "ARRAY", dict: "STRUCT"}
    return names.get(type(value), "NULL")
