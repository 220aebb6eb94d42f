"""What `ai_query` says when it cannot give a value: Databricks' error conditions (contract A.9).

    AiFunctionError
    ├── HttpParseCastError             AI_FUNCTION_HTTP_PARSE_CAST_ERROR                    2203G
    ├── HttpParseColumnsError          AI_FUNCTION_HTTP_PARSE_COLUMNS_ERROR                 2203G
    ├── HttpRequestError               AI_FUNCTION_HTTP_REQUEST_ERROR                       08000
    ├── InvalidHttpResponseError       AI_FUNCTION_INVALID_HTTP_RESPONSE                    08000
    ├── JsonParseError                 AI_FUNCTION_JSON_PARSE_ERROR                         22000
    ├── ModelSchemaParseError          AI_FUNCTION_MODEL_SCHEMA_PARSE_ERROR                 2203G
    ├── PlanTimeError                  AI_FUNCTION_UNSUPPORTED_ERROR                        56038
    ├── PreviewError                   AI_FUNCTION_UNSUPPORTED_ERROR                        56038
    ├── RemoteHttpFailedError          REMOTE_FUNCTION_HTTP_FAILED_ERROR                    57012
    ├── UnsupportedRequestError        AI_FUNCTION_UNSUPPORTED_REQUEST                      0A000
    ├── UnsupportedReturnTypeError     AI_FUNCTION_UNSUPPORTED_RETURN_TYPE                  0A000
    ├── InvalidResponseFormatError     AI_FUNCTION_INVALID_RESPONSE_FORMAT_TYPE             0A000
    ├── InvalidArgumentError           AI_INVALID_ARGUMENT_VALUE_ERROR                      22032
    ├── StructuredOutputError          AI_QUERY_ENDPOINT_NOT_SUPPORT_STRUCTURED_OUTPUT      0A000
    ├── UnsupportedResponseFormatError AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT              0A000
    │   ├── ResponseFormatDdlError     …DDL_STRING                                          0A000
    │   └── ResponseFormatJsonError    …JSON_STRING                                         0A000
    └── InvalidModelParametersError    AI_FUNCTION_INVALID_MODEL_PARAMETERS                 22023
        ├── ReservedParameterError     …FOUND_RESERVED_PARAMETER_NAME                       22023
        ├── NumericParameterError      …INVALID_NUMERIC_PARAMETER                           22023
        ├── ParameterTypeError         …INVALID_PARAMETER_DATA_TYPE                         22023
        ├── ParameterSchemaError       …MODEL_SCHEMA_PARSE_ERROR                            22023
        ├── ParameterEndpointError     …UNSUPPORTED_ENDPOINT_TYPE                           22023
        └── UnsupportedParameterError  …UNSUPPORTED_MODEL_PARAMETER                         22023

A dotted ending continues the condition of the class above it. A test compares this drawing with the classes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from aiquery_serving.errors import (
    AiQueryError,
    CancelledCallError,
    EndpointFailedError,
    EndpointNotFoundError,
    ProviderResponseError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLIENT_ERRORS = range(400, 500)


class AiFunctionError(AiQueryError):
    """An error condition of an AI function.

    Its text has Databricks' shape, `[CONDITION] message SQLSTATE: xxxxx`; `message` is the bare sentence.
    """

    error_code = "INVALID_PARAMETER_VALUE"
    http_status = 400
    #: The error class, with the sub-condition after a dot where there is one.
    condition: ClassVar[str] = "AI_FUNCTION_UNSUPPORTED_ERROR"
    sqlstate: ClassVar[str] = "56038"

    @property
    def message(self) -> str:
        """What happened, without condition and SQLSTATE."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        if self.message.startswith(f"[{self.condition}]"):
            return self.message  # Polars makes an error anew of its own text
        return f"[{self.condition}] {self.message} SQLSTATE: {self.sqlstate}"


class _AnswerError(AiFunctionError):
    """The answer, not the question, is at fault."""

    error_code = "INTERNAL_ERROR"
    http_status = 502


class HttpParseCastError(_AnswerError):
    """An answer does not fit the returnType."""

    condition = "AI_FUNCTION_HTTP_PARSE_CAST_ERROR"
    sqlstate = "2203G"


class HttpParseColumnsError(_AnswerError):
    """The model gives several columns where the returnType has one value."""

    condition = "AI_FUNCTION_HTTP_PARSE_COLUMNS_ERROR"
    sqlstate = "2203G"


class HttpRequestError(_AnswerError):
    """The endpoint failed, retries included."""

    condition = "AI_FUNCTION_HTTP_REQUEST_ERROR"
    sqlstate = "08000"


class InvalidHttpResponseError(_AnswerError):
    """The answer lacks the parts that its task promises."""

    condition = "AI_FUNCTION_INVALID_HTTP_RESPONSE"
    sqlstate = "08000"


class JsonParseError(_AnswerError):
    """The answer is not JSON."""

    condition = "AI_FUNCTION_JSON_PARSE_ERROR"
    sqlstate = "22000"


class ModelSchemaParseError(AiFunctionError):
    """The model's signature does not say what type it returns."""

    condition = "AI_FUNCTION_MODEL_SCHEMA_PARSE_ERROR"
    sqlstate = "2203G"


class RemoteHttpFailedError(AiFunctionError):
    """The endpoint refused the request (4xx)."""

    condition = "REMOTE_FUNCTION_HTTP_FAILED_ERROR"
    sqlstate = "57012"


class UnsupportedRequestError(AiFunctionError):
    """The request has a type that the endpoint does not take."""

    condition = "AI_FUNCTION_UNSUPPORTED_REQUEST"
    sqlstate = "0A000"


class UnsupportedReturnTypeError(AiFunctionError):
    """The returnType is not SQL type text that ai_query can give."""

    condition = "AI_FUNCTION_UNSUPPORTED_RETURN_TYPE"
    sqlstate = "0A000"


class InvalidResponseFormatError(AiFunctionError):
    """The responseFormat is neither DDL nor JSON that can be read."""

    condition = "AI_FUNCTION_INVALID_RESPONSE_FORMAT_TYPE"
    sqlstate = "0A000"


class InvalidArgumentError(AiFunctionError):
    """An argument has a value that it cannot have.

    Args:
        argument: The argument's name, as ai_query spells it.
        value: What was given.
        supported: What could have been given.
    """

    condition = "AI_INVALID_ARGUMENT_VALUE_ERROR"
    sqlstate = "22032"

    def __init__(self, argument: str, value: str, supported: Sequence[str]) -> None:
        super().__init__(argument, value, supported)

    @property
    def message(self) -> str:
        """Which argument, and what it supports."""
        argument, value, supported = self.args
        choice = ", ".join(supported)
        return f"The value {value!r} is not supported by the argument {argument}. Supported values: {choice}."


class PlanTimeError(AiFunctionError):
    """The engine asked for an answer while it planned a statement, when nothing may be sent."""

    condition = "AI_FUNCTION_UNSUPPORTED_ERROR"
    sqlstate = "56038"


class PreviewError(AiFunctionError):
    """A relation that is only shown would ask for many rows."""

    condition = "AI_FUNCTION_UNSUPPORTED_ERROR"
    sqlstate = "56038"


class StructuredOutputError(AiFunctionError):
    """The endpoint's task has no structured output."""

    condition = "AI_QUERY_ENDPOINT_NOT_SUPPORT_STRUCTURED_OUTPUT"
    sqlstate = "0A000"


class UnsupportedResponseFormatError(AiFunctionError):
    """The responseFormat can be read but not used."""

    condition = "AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT"
    sqlstate = "0A000"


class ResponseFormatDdlError(UnsupportedResponseFormatError):
    """The DDL is not one top-level STRUCT field."""

    condition = "AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.DDL_STRING"


class ResponseFormatJsonError(UnsupportedResponseFormatError):
    """The JSON has no `type` that is supported."""

    condition = "AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.JSON_STRING"


class InvalidModelParametersError(AiFunctionError):
    """The modelParameters cannot be sent."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS"
    sqlstate = "22023"


class ReservedParameterError(InvalidModelParametersError):
    """The name belongs to another argument of ai_query."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS.FOUND_RESERVED_PARAMETER_NAME"


class NumericParameterError(InvalidModelParametersError):
    """The number is out of range."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS.INVALID_NUMERIC_PARAMETER"


class ParameterTypeError(InvalidModelParametersError):
    """The value has the wrong type."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS.INVALID_PARAMETER_DATA_TYPE"


class ParameterSchemaError(InvalidModelParametersError):
    """Nobody knows which parameters the endpoint's task takes."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS.MODEL_SCHEMA_PARSE_ERROR"


class ParameterEndpointError(InvalidModelParametersError):
    """Custom models take no modelParameters."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS.UNSUPPORTED_ENDPOINT_TYPE"


class UnsupportedParameterError(InvalidModelParametersError):
    """The endpoint's task has no such parameter."""

    condition = "AI_FUNCTION_INVALID_MODEL_PARAMETERS.UNSUPPORTED_MODEL_PARAMETER"


def from_gateway(error: AiQueryError, function: str = "AI_QUERY") -> AiFunctionError:
    """Say in ai_query's words what the core said in the REST API's.

    A 4xx becomes REMOTE_FUNCTION_HTTP_FAILED_ERROR, whose text holds the REST error body, as current
    runtimes show it. Everything else becomes AI_FUNCTION_HTTP_REQUEST_ERROR, also after retries:
    REMOTE_FUNCTION_HTTP_RETRY_TIMEOUT was only ever seen on another function, and has no SQLSTATE.

    Args:
        error: What the gateway raised; an `AiFunctionError` is returned as it is.
        function: The function in whose name the message speaks.

    Returns:
        An error with the wire code, status, `retryable` and `retry_after` of the one it translates.
    """
    if isinstance(error, AiFunctionError):
        return error
    translated = _translate(error, function)
    # The core declares these per class; a translation speaks for many classes, so it carries them itself.
    vars(translated).update(
        error_code=error.error_code,
        http_status=error.http_status,
        retryable=error.retryable,
        retry_after=error.retry_after,
    )
    translated.__cause__ = error
    return translated


def _translate(error: AiQueryError, function: str) -> AiFunctionError:
    if isinstance(error, ProviderResponseError):
        if isinstance(error.__cause__, json.JSONDecodeError):
            return JsonParseError(f"The answer to {function} is not JSON: {error}")
        return InvalidHttpResponseError(f"The answer to {function} cannot be used: {error}")
    if error.http_status in _CLIENT_ERRORS and not isinstance(error, CancelledCallError):
        return RemoteHttpFailedError(_refusal(error))
    return HttpRequestError(f"The HTTP request of {function} failed: {error}")


def _refusal(error: AiQueryError) -> str:
    body = json.dumps(
        {"error_code": error.error_code, "message": str(error)},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    text = (
        f"The remote HTTP request failed with code {error.http_status}, and error message "
        f"'HTTP request failed with status: {body}'"
    )
    return text + _way_out(error)


def _way_out(error: AiQueryError) -> str:
    if isinstance(error, EndpointNotFoundError):
        return " Create the endpoint, or check the spelling of its name in ai_query."
    if isinstance(error, EndpointFailedError):
        return " Update the endpoint's config with a model that loads."
    return ""
