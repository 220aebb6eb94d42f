"""The error conditions of ai_query: their tree, their text, and how the core's errors become them."""

import json
import pickle
import re

import pytest

from aiquery_serving import errors as core
from aiquery_udfs import errors

DRAWN = re.compile(r"[├└]── (\w+)\s+(…?)(\w+)\s+(\w+)$")


def tree(kind=errors.AiFunctionError):
    for child in kind.__subclasses__():
        if not child.__name__.startswith("_"):
            yield child
        yield from tree(child)


def test_the_drawing_in_the_docstring_is_the_tree_of_the_classes():
    drawn, parents = {}, {0: "AiFunctionError"}
    for line in errors.__doc__.splitlines():
        if found := DRAWN.search(line):
            name, continued, condition, sqlstate = found.groups()
            depth = 1 + line.index("──") // 4 - 1
            parents[depth] = name
            whole = getattr(errors, parents[depth - 1]).condition + "." + condition
            drawn[name] = (parents[depth - 1], whole if continued else condition, sqlstate)

    real = {}
    for kind in tree():
        parent = next(base for base in kind.__mro__[1:] if not base.__name__.startswith("_"))
        real[kind.__name__] = (parent.__name__, kind.condition, kind.sqlstate)
    assert drawn == real


def test_an_error_reads_condition_message_and_sqlstate():
    error = errors.ReservedParameterError("The name is taken.")

    assert str(error) == (
        "[AI_FUNCTION_INVALID_MODEL_PARAMETERS.FOUND_RESERVED_PARAMETER_NAME] The name is taken. SQLSTATE: 22023"
    )
    assert error.message == "The name is taken."


def test_an_invalid_argument_lists_what_is_supported():
    error = errors.InvalidArgumentError("failOnError", "maybe", ("true", "false"))

    assert str(error) == (
        "[AI_INVALID_ARGUMENT_VALUE_ERROR] The value 'maybe' is not supported by the argument "
        "failOnError. Supported values: true, false. SQLSTATE: 22032"
    )


@pytest.mark.parametrize(
    "error",
    [errors.JsonParseError("broken"), errors.InvalidArgumentError("a", "b", ("c",))],
)
def test_an_error_survives_pickling(error):
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_unknown_endpoint_reads_like_the_404_of_databricks():
    error = errors.from_gateway(core.EndpointNotFoundError("Endpoint with name 'x' does not exist."))

    assert isinstance(error, errors.RemoteHttpFailedError)
    assert str(error).startswith(
        "[REMOTE_FUNCTION_HTTP_FAILED_ERROR] The remote HTTP request failed with code 404, and error "
        "message 'HTTP request failed with status: "
        '{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"Endpoint with name \'x\' does not exist."}\''
    )
    assert str(error).endswith("SQLSTATE: 57012")


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (core.EndpointNotFoundError("e"), errors.RemoteHttpFailedError),
        (core.ModelError("e"), errors.RemoteHttpFailedError),
        (core.InvalidRequestError("e"), errors.RemoteHttpFailedError),
        (core.ProviderAccessError("e"), errors.RemoteHttpFailedError),
        (core.TooManyRequestsError("e", retry_after=3.0), errors.RemoteHttpFailedError),
        (core.ProviderUnavailableError("e"), errors.HttpRequestError),
        (core.ProviderTimeoutError("e"), errors.HttpRequestError),
        (core.EndpointNotReadyError("e"), errors.HttpRequestError),
        (core.CancelledCallError("e"), errors.HttpRequestError),
        (core.ProviderResponseError("e"), errors.InvalidHttpResponseError),
    ],
)
def test_a_translation_keeps_what_the_core_said_of_the_error(source, kind):
    error = errors.from_gateway(source)

    assert type(error) is kind
    assert error.__cause__ is source
    assert (error.error_code, error.http_status, error.retryable, error.retry_after) == (
        source.error_code,
        source.http_status,
        source.retryable,
        source.retry_after,
    )


def test_an_answer_that_is_not_json_has_its_own_condition():
    source = core.ProviderResponseError("cut off")
    source.__cause__ = json.JSONDecodeError("x", "{", 1)

    assert isinstance(errors.from_gateway(source), errors.JsonParseError)


def test_an_error_of_ai_query_is_not_translated_again():
    error = errors.JsonParseError("broken")

    assert errors.from_gateway(error) is error


def test_every_error_of_the_core_has_a_translation():
    def all_of(kind):
        return [kind, *(deep for child in kind.__subclasses__() for deep in all_of(child))]

    for kind in all_of(core.AiQueryError):
        if kind.__module__ == core.__name__:
            late = {"retry_after": 1.0}
            more = {
                core.TooManyRequestsError: late,
                core.ThroughputError: late,
                core.GuardrailError: {"finish_reason": "f"},
            }
            source = kind("e", **more.get(kind, {}))
            assert "SQLSTATE: " in str(errors.from_gateway(source))
