"""Answers that come piece by piece from providers: what they say, how they end, and how they fail."""

import asyncio
import json
from contextlib import aclosing, suppress

import anthropic
import openai as openai_sdk
import pytest
from external_models import HELLO, JSON_SCHEMA, REFERENCE, TOOL, Recorded, anthropic_model, custom_model, openai_model
from external_models import resolve as usual
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import LoopbackServer, Reply
from provider_streams import anthropic_events, openai_events
from providers import (
    KEY,
    AnthropicServer,
    OpenAIServer,
    breaks,
    cut_off,
    drop,
    html,
    out_of_quota,
    slow,
    status,
    too_many,
    truncate,
)

from aiquery_serving import errors
from aiquery_serving.entities.external import Answer, HttpTransport, entity, load_external
from aiquery_serving.entities.external.anthropic import AnthropicDialect
from aiquery_serving.entities.external.entity import ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.failures import ReportedError
from aiquery_serving.entities.external.openai import OpenAIDialect
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, StreamingEntity

TEXT = "Guten Morgen, schöne Größe 🚀 and  more"
KINDS = [OpenAIServer, AnthropicServer]


@pytest.fixture(params=KINDS)
def server(request):
    with request.param(answer=lambda _prompt: TEXT) as server:
        yield server


@pytest.fixture
def claude():
    with AnthropicServer() as server:
        yield server


def model_of(server, **more):
    return anthropic_model(server, **more) if isinstance(server, AnthropicServer) else openai_model(server, **more)


def stream(model, body=HELLO, *, transport=None, resolve=usual):
    """Ask for a stream and return all its chunks."""

    async def collect():
        asked = load_external(model, resolve=resolve, transport=transport)
        try:
            return [chunk async for chunk in (await asked.stream(body)).chunks]
        finally:
            await asked.close()

    return asyncio.run(collect())


def whole(model, body=HELLO):
    async def send():
        asked = load_external(model, resolve=usual)
        try:
            return (await asked.send(body)).body
        finally:
            await asked.close()

    return asyncio.run(send())


def put_together(chunks):
    """Make the whole answer of its chunks, as the OpenAI SDK's users do."""
    answer = {"message": {"role": None, "content": ""}, "calls": {}, "finish_reason": None, "usage": None}
    for chunk in chunks:
        answer["usage"] = chunk.get("usage") or answer["usage"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            answer["message"]["role"] = delta.get("role") or answer["message"]["role"]
            answer["message"]["content"] += delta.get("content") or ""
            answer["finish_reason"] = choice["finish_reason"] or answer["finish_reason"]
            for call in delta.get("tool_calls") or []:
                kept = answer["calls"].setdefault(call["index"], {"id": call.get("id"), "name": "", "arguments": ""})
                kept["name"] += call["function"].get("name") or ""
                kept["arguments"] += call["function"].get("arguments") or ""
    return answer


# What is said


def test_a_streamed_answer_is_the_whole_answer_in_pieces(server):
    chunks = stream(model_of(server))
    told, answer = whole(model_of(server)), put_together(chunks)
    assert len(chunks) >= len(TEXT.split())
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert answer["message"] == {"role": "assistant", "content": TEXT}
    assert answer["finish_reason"] == told["choices"][0]["finish_reason"] == "stop"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], told["usage"])


@pytest.mark.parametrize("packet", [1, 2, 3, 7, 1000, 100_000])
def test_where_the_network_cuts_makes_no_difference(server, packet):
    server.packet = packet
    assert put_together(stream(model_of(server)))["message"]["content"] == TEXT


def test_pieces_come_as_soon_as_they_are_said(server):
    server.pause = 0.02

    async def read():
        asked = load_external(model_of(server), resolve=usual)
        async with aclosing((await asked.stream(HELLO)).chunks) as chunks:
            async for chunk in chunks:
                if chunk["choices"][0]["delta"].get("content"):
                    assert server.traffic.in_flight == 1
                    break
        await asked.close()

    asyncio.run(read())


def test_the_provider_is_asked_for_a_stream_with_its_usage(server):
    stream(model_of(server), {**HELLO, "stream": True, "stream_options": {"include_usage": False}, "temperature": 1})
    [sent] = server.requests
    assert sent["stream"] is True
    assert sent.get("stream_options") == ({"include_usage": True} if isinstance(server, OpenAIServer) else None)


def test_a_whole_answer_is_asked_for_whole_whatever_the_body_says(server):
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}, "extra_params": {"stream": True}}
    assert whole(model_of(server), body)["object"] == "chat.completion"
    assert server.requests[0].keys().isdisjoint({"stream", "stream_options"})


def test_tools_are_called_in_pieces(server):
    tool = {"type": "function", "function": {**TOOL["function"], "name": "look_up"}}
    chunks = stream(model_of(server), {**HELLO, "tools": [tool]})
    answer = put_together(chunks)
    assert answer["finish_reason"] == "tool_calls"
    assert answer["calls"][0]["name"] == "look_up"
    assert json.loads(answer["calls"][0]["arguments"]) == {"city": "good morning"}
    assert answer["calls"][0]["id"]


def test_every_choice_keeps_its_index(openai):
    chunks = stream(openai_model(openai), {**HELLO, "n": 3})
    said = dict.fromkeys(range(3), "")
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        said[choice["index"]] += choice["delta"].get("content") or ""
    assert set(said.values()) == {"echo: good morning"}
    assert chunks[-1]["usage"]["completion_tokens"] == 9


def test_completions_stream_the_text_of_every_prompt(openai):
    chunks = stream(openai_model(openai, task=COMPLETIONS), {"prompt": ["a b", "c"], "n": 2})
    said = dict.fromkeys(range(4), "")
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        said[choice["index"]] += choice["text"]
    assert list(said.values()) == ["echo: a b"] * 2 + ["echo: c"] * 2
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1]["usage"]["total_tokens"] == 3 + 10


def test_chunks_of_an_openai_model_come_as_they_are(openai):
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": {"prompt_tokens": 1}}
    answer["choices"] = [{"index": 0, "message": {"content": "a b"}, "finish_reason": "stop"}]
    events = openai_events(answer, {"stream_options": {"include_usage": True}})
    strange = b'data: {"object":"x","choices":[{"index":0,"delta":{"reasoning":"hm"},"new":1}],"service_tier":"a"}\n\n'
    chunks = read(OpenAIDialect("openai", "m", CHAT), [strange, *events])
    assert chunks == [json.loads(event[6:]) for event in [strange, *events[:-1]]]


def test_thinking_is_left_out(claude):
    body = {**HELLO, "extra_params": {"thinking": {"type": "enabled", "budget_tokens": 1024}}}
    chunks = stream(anthropic_model(claude), body)
    assert put_together(chunks)["message"]["content"] == "echo: good morning"
    assert "let me see" not in json.dumps(chunks)


@pytest.mark.parametrize("name", ["claude-3-haiku-20240307", "claude-sonnet-4-5"])
def test_an_answer_to_a_schema_is_text_whether_it_came_through_a_tool_or_not(claude, name):
    chunks = stream(anthropic_model(claude, name=name), {**HELLO, "response_format": JSON_SCHEMA})
    answer = put_together(chunks)
    assert json.loads(answer["message"]["content"]) == {"city": "good morning"}
    assert (answer["finish_reason"], answer["calls"]) == ("stop", {})


def test_limits_are_learned_from_the_headers_of_a_stream():
    with OpenAIServer(limit=(10, 60.0), headers=True) as server:

        async def ask():
            asked = load_external(openai_model(server), resolve=usual)
            assert isinstance(asked, StreamingEntity)
            async with aclosing((found := await asked.stream(HELLO)).chunks):
                pass
            await asked.close()
            return found.hint

        assert asyncio.run(ask()).requests.remaining == 9


# How Anthropic's events are read


def read(dialect, events, body=HELLO):
    reader = dialect.reader(body, 0.0)
    chunks = [chunk for event in events for chunk in reader.feed(event)]
    assert reader.done
    return chunks


def message(*blocks, reason="end_turn"):
    usage = {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4}
    return {"id": "m", "model": "claude", "content": list(blocks), "stop_reason": reason, "usage": usage}


def claude_chunks(*blocks, reason="end_turn", schema=False):
    body = {**HELLO, "response_format": JSON_SCHEMA} if schema else HELLO
    return read(AnthropicDialect("claude-3"), anthropic_events(message(*blocks, reason=reason)), body)


TEXT_BLOCK = {"type": "text", "text": "I say"}
USE = {"type": "tool_use", "id": "t1", "name": "find", "input": {"city": "Ulm"}}
ANSWER = {"type": "tool_use", "id": "t2", "name": "answer", "input": {"city": "Bonn"}}
NO_ARGUMENTS = {"type": "tool_use", "id": "t3", "name": "now", "input": {}}


@pytest.mark.parametrize(
    ("blocks", "reason", "schema", "content", "calls", "finish"),
    [
        ([TEXT_BLOCK], "end_turn", False, "I say", [], "stop"),
        ([TEXT_BLOCK], "max_tokens", False, "I say", [], "length"),
        ([TEXT_BLOCK, USE], "tool_use", False, "I say", [("find", '{"city":"Ulm"}')], "tool_calls"),
        ([USE, NO_ARGUMENTS], "tool_use", False, "", [("find", '{"city":"Ulm"}'), ("now", "{}")], "tool_calls"),
        ([ANSWER], "tool_use", True, '{"city":"Bonn"}', [], "stop"),
        ([TEXT_BLOCK, ANSWER, ANSWER], "tool_use", True, '{"city":"Bonn"}', [], "stop"),
        ([TEXT_BLOCK], "refusal", True, "I say", [], "content_filter"),
        ([ANSWER], "tool_use", False, "", [("answer", '{"city":"Bonn"}')], "tool_calls"),
        ([{**ANSWER, "input": {}}], "tool_use", True, "{}", [], "stop"),
        ([{"type": "server_tool_use", "id": "s", "name": "search", "thinking": "", "signature": ""}, TEXT_BLOCK],
         "end_turn", False, "I say", [], "stop"),
        ([], "refusal", False, "", [], "content_filter"),
    ],
)  # fmt: skip
def test_blocks_become_text_and_calls(  # noqa: PLR0917
    blocks, reason, schema, content, calls, finish
):
    answer = put_together(claude_chunks(*blocks, reason=reason, schema=schema))
    assert answer["message"]["content"] == content
    assert [(call["name"], call["arguments"]) for call in answer["calls"].values()] == calls
    assert answer["finish_reason"] == finish
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


def test_streamed_and_whole_messages_say_the_same():
    for blocks, schema in [([TEXT_BLOCK], False), ([TEXT_BLOCK, USE], False), ([ANSWER], True)]:
        body = {**HELLO, "response_format": JSON_SCHEMA} if schema else HELLO
        decoded, _ = AnthropicDialect("claude-3").decode(message(*blocks, reason="tool_use"), body, 0.0)
        answer = put_together(claude_chunks(*blocks, reason="tool_use", schema=schema))
        [choice] = decoded["choices"]
        assert answer["message"]["content"] == (choice["message"]["content"] or "")
        assert answer["finish_reason"] == choice["finish_reason"]
        assert len(answer["calls"]) == len(choice["message"].get("tool_calls", []))


def test_arguments_that_come_at_once_are_text_too():
    events = [
        {"type": "message_start", "message": {"id": "m"}},
        {"type": "content_block_start", "index": 0, "content_block": USE},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ]
    sent = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    answer = put_together(read(AnthropicDialect("claude"), sent))
    assert answer["calls"][0]["arguments"] == '{"city":"Ulm"}'


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: f"data: {text}\n\n".encode()))
@pytest.mark.parametrize("dialect", [OpenAIDialect("openai", "m", CHAT), AnthropicDialect("claude")])
def test_no_bytes_make_a_reader_fail_in_another_way(dialect, data):
    with suppress(errors.ProviderResponseError, ReportedError):
        list(dialect.reader(HELLO, 0.0).feed(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "text", "tool_use", "text_delta"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "delta", "index", "choices", "finish_reason", "usage", "text", "input", "id", "error"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=8,
)
EVENT_KINDS = ["message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop", "error"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(EVENT_KINDS), JSON, JSON, JSON, JSON), max_size=5))
@pytest.mark.parametrize("dialect", [OpenAIDialect("openai", "m", CHAT), AnthropicDialect("claude")])
def test_no_events_make_a_reader_fail_in_another_way(dialect, events):
    reader = dialect.reader(HELLO, 0.0)
    with suppress(errors.ProviderResponseError, ReportedError):
        for kind, block, delta, choices, usage in events:
            event = {"type": kind, "message": block, "content_block": block, "delta": delta, "usage": usage}
            event |= {"choices": choices} if isinstance(choices, list) else {"error": choices}
            list(reader.feed(b"data: " + json.dumps(event).encode() + b"\n\n"))


# How streams fail


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(400), errors.ProviderRequestError),
        (status(401), errors.ProviderAccessError),
        (status(413), errors.RequestTooLargeError),
        (too_many(), errors.ProviderRateLimitError),
        (out_of_quota, errors.ProviderQuotaError),
        (status(500), errors.ProviderUnavailableError),
        (drop, errors.ProviderUnavailableError),
        (html, errors.ProviderResponseError),
        (breaks(529, after=0), errors.ProviderUnavailableError),
        (breaks(429, after=0), errors.ProviderRateLimitError),
        (breaks(400, after=0), errors.ProviderRequestError),
    ],
)
def test_what_fails_before_the_first_piece_is_raised_at_once(server, fault, kind):
    server.script.append(fault)

    async def ask():
        asked = load_external(model_of(server), resolve=usual)
        with pytest.raises(kind) as caught:
            await asked.stream(HELLO)
        chunks = [chunk async for chunk in (await asked.stream(HELLO)).chunks]
        await asked.close()
        return caught.value, chunks

    error, chunks = asyncio.run(ask())
    assert type(error) is kind
    assert model_of(server).name in str(error) or fault is drop
    assert put_together(chunks)["message"]["content"] == TEXT


def test_a_429_says_when_to_come_back(server):
    server.retry_after = "seconds"
    server.script.append(too_many(2.0))
    with pytest.raises(errors.ProviderRateLimitError) as caught:
        stream(model_of(server))
    assert caught.value.retry_after == 2.0


def failing(model, transport=None):
    """Return the chunks that came and the error that ended them."""

    chunks = []

    async def collect():
        asked = load_external(model, resolve=usual, transport=transport)
        try:
            async for chunk in (await asked.stream(HELLO)).chunks:
                chunks.append(chunk)  # noqa: PERF401 - the chunks before the error count
        finally:
            await asked.close()

    with pytest.raises(errors.ProviderError) as caught:
        asyncio.run(collect())
    return chunks, caught.value


@pytest.mark.parametrize(
    ("fault", "kind", "match"),
    [
        (breaks(529, "too busy"), errors.ProviderUnavailableError, r"too busy|failed"),
        (breaks(429), errors.ProviderRateLimitError, "slow down"),
        (breaks(400), errors.ProviderRequestError, "refuses the request"),
        (truncate, errors.ProviderResponseError, "before it was complete"),
        (cut_off, errors.ProviderUnavailableError, "closed before the answer was complete"),
    ],
)
def test_a_stream_that_fails_on_the_way_ends_in_an_error_after_what_it_said(server, fault, kind, match):
    server.script.append(fault)
    chunks, error = failing(model_of(server))
    assert 1 <= len(chunks) < len(TEXT.split())
    assert type(error) is kind
    assert error.args[0]
    with pytest.raises(kind, match=match):
        raise error


@pytest.mark.parametrize("lost", range(1, 6))
def test_an_answer_without_its_end_is_never_taken_for_complete(server, lost):
    def without_the_last(_server, _body, reply):
        return Reply(**{**fields(reply), "packets": reply.packets[: -lost - 2]})

    server.script.append(without_the_last)
    _, error = failing(model_of(server))
    assert type(error) is errors.ProviderResponseError


def fields(reply):
    return {name: getattr(reply, name) for name in reply.__slots__}


def packets(*parts, **more):
    headers = {"content-type": "text/event-stream"}
    return LoopbackServer(lambda _request: Reply(packets=parts, headers=headers, **more))


CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def custom(server):
    return custom_model(server.origin, bearer_token_auth={"token": REFERENCE})


@pytest.mark.parametrize("end", [[DONE], [LAST], [LAST, DONE], [LAST, b"data: [DO"], [LAST, DONE, b"nonsense", CHUNK]])
def test_a_finish_reason_or_done_is_an_end(end):
    with packets(CHUNK, *end) as server:
        chunks = stream(custom(server))
    assert put_together(chunks)["message"]["content"] == "Hi"


def test_two_answers_are_complete_when_both_have_ended():
    with packets(CHUNK, LAST) as server, pytest.raises(errors.ProviderResponseError, match="before it was complete"):
        stream(custom(server), {**HELLO, "n": 2})


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([DONE], "without choices"),
        ([b"data: hello\n\n"], "no chunk"),
        ([b'data: {"choices": "x"}\n\n'], "no chunk"),
        ([b'data: {"choices": [1]}\n\n'], "no chunk"),
        ([], "before it was complete"),
        ([b'{"id": "a whole answer"}'], "after only: .*a whole answer"),
        ([b": keep-alive\n\n"], "before it was complete"),
        ([CHUNK, b"data: [1]\n\n", DONE], "no chunk"),
    ],
)
def test_what_is_no_stream_of_chunks_is_an_error(parts, match):
    with packets(*parts) as server, pytest.raises(errors.ProviderResponseError, match=match):
        stream(custom(server))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"error": {"message": "m", "type": "insufficient_quota"}}, errors.ProviderQuotaError),
        ({"error": {"message": "m", "code": 429}}, errors.ProviderRateLimitError),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, errors.ProviderRateLimitError),
        ({"error": {"message": "m", "type": "invalid_request_error"}}, errors.ProviderRequestError),
        ({"error": {"message": "m", "type": "server_error"}}, errors.ProviderUnavailableError),
        ({"error": {"message": "m", "code": True}}, errors.ProviderUnavailableError),
        ({"error": "m"}, errors.ProviderUnavailableError),
    ],
)
def test_an_error_within_an_answer_is_judged_as_one_instead_of_it(said, kind):
    with packets(CHUNK, b"data: " + json.dumps(said).encode() + b"\n\n") as server:
        chunks, error = failing(custom(server))
    assert len(chunks) == 1
    assert type(error) is kind
    assert "custom model 'team-model'" in str(error)
    assert str(error).endswith(": m")


def test_an_error_within_an_answer_never_shows_the_key(server):
    server.script.append(breaks(401, f"the key {KEY} is bad"))
    _, error = failing(model_of(server))
    assert type(error) is errors.ProviderAccessError or "401" not in str(error)
    assert KEY not in str(error)


def test_what_came_instead_of_a_stream_never_shows_the_key():
    with packets(f"you sent {KEY}".encode()) as server, pytest.raises(errors.ProviderResponseError) as caught:
        stream(custom(server))
    assert "you sent ***" in str(caught.value)


def test_embeddings_have_no_pieces(openai):
    with pytest.raises(errors.InvalidRequestError, match="cannot be streamed"):
        stream(openai_model(openai, task=EMBEDDINGS), {"input": "a"})
    assert openai.requests == []


def test_a_count_that_is_no_number_is_the_providers_to_refuse():
    refusal = packets(b'{"error": "n is no number"}', status=400)
    with refusal as server, pytest.raises(errors.ProviderRequestError, match="n is no number"):
        stream(custom(server), {**HELLO, "n": "many"})


# Connections and time


async def until(holds):
    """Wait for what another thread is about to do."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the other thread has no event of this loop
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_closing_a_stream_hangs_up(server, pieces):
    server.pause = 0.05

    async def listen():
        asked = load_external(model_of(server), resolve=usual)
        found = await asked.stream(HELLO)
        for _ in range(pieces):
            await anext(found.chunks)
        assert server.traffic.in_flight == 1
        await found.chunks.aclose()
        await until(lambda: server.traffic.abandoned == 1)
        await asked.close()

    asyncio.run(listen())


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_reader_hangs_up(server, begun):
    server.delay = 0.0 if begun else 30.0
    server.pause = 30.0

    async def listen():
        asked = load_external(model_of(server), resolve=usual)

        async def all_of_it():
            return [chunk async for chunk in (await asked.stream(HELLO)).chunks]

        listening = asyncio.ensure_future(all_of_it())
        await until(lambda: server.traffic.in_flight == 1)
        await asyncio.sleep(0.05 * begun)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        await until(lambda: server.traffic.abandoned == 1)
        await asked.close()

    asyncio.run(listen())


def test_an_error_on_the_way_hangs_up():
    with packets(b"data: nonsense\n\n", *[CHUNK] * 50, pause=0.05) as server:
        with pytest.raises(errors.ProviderResponseError):
            stream(custom(server))
        asyncio.run(until(lambda: server.traffic.abandoned == 1))


def test_connections_are_kept_from_stream_to_stream(server):
    async def listen():
        asked = load_external(model_of(server), resolve=usual)
        for _ in range(20):
            assert [chunk async for chunk in (await asked.stream(HELLO)).chunks]
        await asked.close()

    asyncio.run(listen())
    # A connection comes back a moment after its last byte, so that the next stream may need another.
    assert server.traffic.connections <= 3


def test_hundreds_of_streams_come_at_once(openai):
    openai.delay = 0.2

    async def listen(asked):
        return [chunk async for chunk in (await asked.stream(HELLO)).chunks]

    async def all_of_them():
        asked = load_external(openai_model(openai), resolve=usual)
        found = await asyncio.gather(*(listen(asked) for _ in range(200)))
        await asked.close()
        return found

    found = asyncio.run(all_of_them())
    assert {put_together(chunks)["message"]["content"] for chunks in found} == {"echo: good morning"}
    assert openai.traffic.max_in_flight == 200


def test_a_stream_may_take_longer_than_a_whole_answer_as_long_as_it_goes_on(server):
    server.pause = 0.03
    chunks = stream(model_of(server), transport=HttpTransport(total_seconds=0.1, idle_seconds=5.0))
    assert put_together(chunks)["message"]["content"] == TEXT


@pytest.mark.parametrize("late", [slow(30.0), lambda _server, _body, reply: Reply(**fields(reply) | {"pause": 30.0})])
def test_a_stream_that_pauses_too_long_is_a_timeout(server, late):
    server.script.append(late)
    with pytest.raises(errors.ProviderTimeoutError, match=r"127\.0\.0\.1:\d+ did not answer within 0\.1 s"):
        stream(model_of(server), transport=HttpTransport(idle_seconds=0.1))


def test_a_complete_answer_does_not_wait_for_a_connection_that_stays_open(monkeypatch):
    monkeypatch.setattr(entity, "LAST_WORDS_SECONDS", 0.05)
    with packets(CHUNK + LAST + DONE, b"\n", pause=30.0) as server:
        chunks = stream(custom(server))
        asyncio.run(until(lambda: server.traffic.abandoned == 1))
    assert put_together(chunks)["message"]["content"] == "Hi"


def test_a_complete_answer_stays_complete_when_its_connection_breaks():
    body = CHUNK + LAST + DONE
    with packets(body, keep=len(body)) as server:
        assert put_together(stream(custom(server)))["message"]["content"] == "Hi"


def test_a_stream_larger_than_the_cap_is_not_read():
    with packets(*[CHUNK] * 100) as server, pytest.raises(errors.ProviderResponseError, match="more than 1000 bytes"):
        stream(custom(server), transport=HttpTransport(max_answer_bytes=1000))


def test_of_a_refusal_only_the_beginning_is_read():
    with packets(*[b"x" * 1000] * 500, status=500, pause=0.001) as server:
        with pytest.raises(errors.ProviderUnavailableError) as caught:
            stream(custom(server))
        asyncio.run(until(lambda: server.traffic.abandoned == 1))
    assert len(str(caught.value)) < 1000


def test_a_redirect_is_not_followed(openai):
    with packets(b"", status=307) as server, pytest.raises(errors.ProviderResponseError, match="not followed"):
        stream(custom(server))


def test_nobody_listening_is_unavailable():
    with OpenAIServer() as gone:
        pass
    with pytest.raises(errors.ProviderUnavailableError, match="Connection refused"):
        stream(openai_model(gone))


def test_a_transport_that_only_posts_gives_the_stream_at_once():
    transport = Recorded(Answer(200, {}, CHUNK + LAST + DONE), Answer(429, {"retry-after": "3"}, b"{}"))
    model = custom_model("https://models.example.org", bearer_token_auth={"token": REFERENCE})
    assert put_together(stream(model, transport=transport))["message"]["content"] == "Hi"
    with pytest.raises(errors.ProviderRateLimitError) as caught:
        stream(model, transport=transport)
    assert caught.value.retry_after == 3.0
    assert [body["stream"] for _, _, body in transport.posts] == [True, True]


# Who asks


class Signer:
    """Signs every request with its length; remembers that it was refused."""

    def __init__(self):
        self.signed, self.refusals = [], 0

    async def authorize(self, url, body):
        await asyncio.sleep(0)
        self.signed.append((url, json.loads(body).get("stream", False)))
        key = KEY if self.refusals else "sk-old"
        return PrivateHeaders(public={"x-length": str(len(body))}, secret={"authorization": f"Bearer {key}"})

    def refused(self):
        self.refusals += 1


def test_requests_are_signed_one_by_one_and_a_refused_signer_hears_of_it(openai):
    signer, elsewhere = Signer(), "/chat/completions?alt=sse"
    asked = ExternalEntity(
        task=CHAT,
        url=f"{openai.url}/chat/completions",
        stream_url=openai.url + elsewhere,
        dialect=OpenAIDialect("openai", "m", CHAT),
        headers=signer,
    )

    async def ask():
        with pytest.raises(errors.ProviderAccessError):
            await asked.stream(HELLO)
        assert [chunk async for chunk in (await asked.stream(HELLO)).chunks]
        await asked.send(HELLO)
        await asked.close()

    openai.task_of = lambda _path, _body: "messages"
    asyncio.run(ask())
    assert signer.signed == [(openai.url + elsewhere, True)] * 2 + [(f"{openai.url}/chat/completions", False)]
    assert signer.refusals == 1
    assert [int(headers["x-length"]) for headers in openai.seen_headers] == [
        int(headers["content-length"]) for headers in openai.seen_headers
    ]


def test_the_secret_is_opened_again_after_a_stream_was_refused(openai):
    opened = []

    def rotating(_reference):
        opened.append(1)
        return KEY if len(opened) > 1 else "sk-old"

    async def ask():
        asked = load_external(openai_model(openai), resolve=rotating)
        with pytest.raises(errors.ProviderAccessError):
            await asked.stream(HELLO)
        for _ in range(2):
            assert [chunk async for chunk in (await asked.stream(HELLO)).chunks]
        await asked.close()

    asyncio.run(ask())
    assert len(opened) == 2


def test_a_stream_goes_nowhere_forbidden():
    with pytest.raises(errors.ConfigurationError, match="link-local"):
        ExternalEntity(
            task=CHAT,
            url="https://example.org",
            stream_url="http://169.254.169.254/latest",
            dialect=OpenAIDialect("openai", "m", CHAT),
            headers=Signer(),
        )


# The local servers stream as the real ones do: the providers' own SDKs read them


def test_the_sdk_of_openai_reads_the_local_server(openai):
    with openai_sdk.OpenAI(base_url=openai.url, api_key=KEY, max_retries=0) as client:
        found = list(client.chat.completions.create(model="m", stream=True, **HELLO))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in found) == "echo: good morning"
        assert found[-1].usage is None
        with client.chat.completions.stream(
            model="m", stream_options={"include_usage": True}, tools=[TOOL], **HELLO
        ) as answer:
            final = answer.get_final_completion()
        assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "good morning"}
        assert final.usage.prompt_tokens == 2
        openai.script.append(breaks(500))
        with pytest.raises(openai_sdk.APIError, match="something broke"):
            list(client.chat.completions.create(model="m", stream=True, **HELLO))
        with pytest.raises(openai_sdk.BadRequestError, match="only allowed when 'stream'"):
            client.chat.completions.create(model="m", stream_options={"include_usage": True}, **HELLO)


def test_the_sdk_of_anthropic_reads_the_local_server(claude):
    tool = {"name": "find", "input_schema": TOOL["function"]["parameters"]}
    asked = {"model": "claude-test", "max_tokens": 99, "messages": HELLO["messages"]}
    with anthropic.Anthropic(base_url=claude.url, api_key=KEY, max_retries=0) as client:
        with client.messages.stream(**asked) as answer:
            assert answer.get_final_text() == "echo: good morning"
        assert answer.get_final_message().usage.output_tokens == 3
        with client.messages.stream(tools=[tool], **asked) as answer:
            [use] = answer.get_final_message().content
        assert (use.name, use.input) == ("find", {"city": "good morning"})
        claude.script.append(breaks(529))
        with (
            pytest.raises(anthropic.APIStatusError, match="something broke"),
            client.messages.stream(**asked) as answer,
        ):
            answer.get_final_text()
