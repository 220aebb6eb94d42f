"""Chat messages of the REST API in the form that chat templates take."""

from __future__ import annotations

import pytest

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.llm.conversation import as_conversation, begun

HI = {"role": "user", "content": "hi"}


def called(arguments):
    return {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (HI, HI),
        ({**HI, "name": "ann"}, {**HI, "name": "ann"}),
        ({"role": "developer", "content": "be kind"}, {"role": "system", "content": "be kind"}),
        ({"role": "user", "content": ["a", {"type": "text", "text": "b"}]}, {"role": "user", "content": "ab"}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        (
            {"role": "assistant", "content": [{"type": "reasoning", "summary": []}, {"type": "text", "text": "yes"}]},
            {"role": "assistant", "content": "yes"},
        ),
        ({"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": ""}),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ),
    ],
)
def test_a_message_is_read_as_text(message, read):
    assert as_conversation([message]) == [read]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [('{"a": [1]}', {"a": [1]}), ({"a": 1}, {"a": 1}), ("", {}), (None, {}), ("null", {})],
)
def test_arguments_of_a_call_become_an_object(arguments, read):
    (message,) = as_conversation([called(arguments)])

    assert message["content"] == ""
    assert message["tool_calls"] == [
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": read}},
    ]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "at least one message"),
        ("hi", "at least one message"),
        (HI, "at least one message"),
        ([HI, "hi"], "messages[1] must be an object"),
        ([{"content": "hi"}], "messages[0].role must be one of"),
        ([{"role": "root", "content": "hi"}], "got 'root'"),
        ([{"role": ["user"], "content": "hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content is missing"),
        ([{"role": "user", "content": 5}], "messages[0].content must be a text or a list of parts, got int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content[0] must be {'type': 'text'"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "content[0]"),
        ([{"role": "user", "content": [7]}], "content[0]"),
        ([called("{")], "messages[0].tool_calls[0].function.arguments is not JSON"),
        ([called("[1]")], "must be a JSON object, got list"),
        ([called(5)], "must be a JSON object, got int"),
        ([{"role": "assistant", "tool_calls": {"id": 1}}], "messages[0].tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "tool_calls[0] must be {'type': 'function'"),
    ],
)
def test_what_is_no_message_of_text_is_refused_where_it_stands(messages, why):
    with pytest.raises(InvalidRequestError) as refused:
        as_conversation(messages)

    assert why in str(refused.value)


def test_a_system_prompt_goes_in_front_unless_there_is_one():
    own = [{"role": "system", "content": "mine"}, HI]

    assert begun([HI], "be kind", takes_system=True) == [{"role": "system", "content": "be kind"}, HI]
    assert begun(own, "be kind", takes_system=True) == own
    assert begun([HI], None, takes_system=True) == [HI]


def test_a_system_prompt_goes_into_the_first_words_of_the_user_where_templates_know_none():
    answer = {"role": "assistant", "content": "yes"}

    assert begun([answer, HI], "be kind", takes_system=False) == [answer, {"role": "user", "content": "be kind\n\nhi"}]
    assert begun([answer], "be kind", takes_system=False) == [answer]
