"""Permissions, guardrails and inference tables stand on the one path of every request."""

import asyncio

import pyarrow as pa
import pytest
from stream_worlds import BODY, Speaker, Teller, World, text_of

from aiquery.testing import ManualClock
from aiquery_serving import errors
from aiquery_serving.access import CAN_QUERY, GROUP, Access, Grant
from aiquery_serving.gateway import Gateway
from aiquery_serving.messages import Response, Usage
from aiquery_serving.payload_log import PayloadLog
from aiquery_serving.store import Store

LOGGED = {"inference_table_config": {"enabled": True}}


class Echo:
    """A provider's entity that says what it was told."""

    task = "llm/v1/chat"

    def __init__(self):
        self.asked = []

    async def send(self, body):
        self.asked.append(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": f"You said: {self.asked[-1]}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Response(body={"object": "chat.completion", "choices": [choice]}, usage=Usage(3, 4))

    async def close(self):
        pass


class Guarded(World):
    """A world whose endpoint `chat` belongs to ann and has an AI Gateway block."""

    def __init__(self, ai_gateway=None, *, access=None, **entities):
        super().__init__(**entities)
        self.now = type(self.now)(
            "chat", self.now.config, self.now.entities, (), fallback=False, endpoint_id="e1", creator="ann",
            ai_gateway=ai_gateway,
        )  # fmt: skip
        self.payloads = PayloadLog(None, self.clock)
        self.gateway = Gateway(
            self, clock=self.clock, usage=self.usage.append, draw=lambda: 1.0, access=access, payloads=self.payloads
        )

    def ask(self, text="hello", **more):
        body = {"messages": [{"role": "user", "content": text}]}
        return asyncio.run(self.gateway.invoke("chat", body, **more)).body["choices"][0]["message"]["content"]

    @property
    def rows(self):
        return self.payloads.table("e1").to_pylist()


@pytest.fixture
def access():
    store = Store(None)
    given = Access(store, ManualClock())
    given.create_token("ann", by="root")
    yield given
    store.close()


def keywords(direction, *words):
    return {"guardrails": {direction: {"invalid_keywords": list(words)}}}


def test_who_may_not_query_an_endpoint_is_refused_before_anything_is_sent(access):
    echo = Echo()
    world = Guarded(access=access, a=echo)
    assert world.ask(caller="ann") == "You said: hello"
    for ask in (world.ask, lambda **who: asyncio.run(world.gateway.stream("chat", BODY, **who))):
        with pytest.raises(errors.PermissionDeniedError, match="'bob'"):
            ask(caller="bob")
    assert len(echo.asked) == 1
    access.merge_acl("e1", [Grant(GROUP, "users", CAN_QUERY)], by="ann")
    access.add_members("readers", ["bob"], by="root")
    assert world.ask(caller="bob") == "You said: hello"


def test_rows_of_a_custom_model_are_for_those_who_may_query_it(access):
    world = Guarded(access=access, a=Teller())
    with pytest.raises(errors.PermissionDeniedError, match="'bob'"):
        world.gateway.predict("chat", pa.RecordBatch.from_pydict({"x": [1]}), caller="bob")


def test_a_request_with_a_keyword_is_refused_and_never_sent():
    echo = Echo()
    world = Guarded(keywords("input", "secret sauce"), a=echo)
    with pytest.raises(errors.GuardrailError) as caught:
        world.ask("Tell me of the Secret  Sauce.")
    assert caught.value.finish_reason == "input_guardrail_triggered"
    assert "Sauce" not in str(caught.value)
    assert (echo.asked, world.usage) == ([], [])
    assert world.ask("Tell me of sauces.") == "You said: Tell me of sauces."


def test_an_answer_with_a_keyword_is_refused_and_recorded_as_paid_for():
    world = Guarded(keywords("output", "hello"), a=Echo())
    with pytest.raises(errors.GuardrailError) as caught:
        world.ask("hello")
    assert caught.value.finish_reason == "output_guardrail_triggered"
    (record,) = world.usage
    assert (record.status, record.completion_tokens) == ("GuardrailError", 4)


def test_a_keyword_across_two_pieces_of_an_answer_ends_it():
    world = Guarded(keywords("output", "two three"), a=Speaker())
    with pytest.raises(errors.GuardrailError):
        asyncio.run(world.said())
    (record,) = world.usage
    assert record.status == "GuardrailError"


def test_other_answers_pass_the_guard_whole():
    assert text_of(asyncio.run(Guarded(keywords("output", "four"), a=Speaker()).said())) == "one two three"


def test_requests_and_answers_are_logged_where_the_endpoint_says_so():
    world = Guarded(LOGGED, a=Echo())
    world.ask("hello", caller="ann")
    (row,) = world.rows
    assert (row["status_code"], row["served_entity_name"], row["requester"]) == (200, "a", "ann")
    assert "hello" in row["request"]
    assert "You said" in row["response"]


def test_streamed_answers_and_refusals_are_logged_too():
    world = Guarded(LOGGED | keywords("input", "bad"), a=Speaker())
    asyncio.run(world.said())
    with pytest.raises(errors.GuardrailError):
        world.ask("bad")
    streamed, refused = world.rows
    assert "three" in streamed["response"]
    assert (refused["status_code"], refused["served_entity_name"]) == (400, None)


def test_nothing_is_logged_elsewhere():
    world = Guarded(None, a=Echo())
    world.ask("hello")
    assert world.rows == []
