"""Foundation models as served entities: what they answer, in how many pieces, and when their engines come and go."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import BytePrompter, FakeEmbedder, FakeEngine, lost, said

from aiquery_serving.clock import SystemClock
from aiquery_serving.entities.foundation import FoundationEntity, load_foundation, opening
from aiquery_serving.entities.foundation.loading import OnDemand
from aiquery_serving.errors import (
    ConfigurationError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
)
from aiquery_serving.llm.interface import LENGTH, Piece
from aiquery_serving.llm.settings import EngineSettings
from aiquery_serving.messages import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    QueueingEntity,
    ReportingEntity,
    RequestEntity,
    Retirable,
    StreamingEntity,
    Usage,
)
from aiquery_serving.packing import with_lists
from aiquery_serving.streaming import noted
from aiquery_serving.tokens import CountsPrompts

HI = {"messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"type": "function", "function": {"name": "now"}}]
CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


class Noon(SystemClock):
    def epoch_ms(self):
        return 1_763_629_200_999


def served(engine, task=CHAT, prompter=None, *, loaded=False, **options):
    """Return the entity of an engine, or of what loads one."""
    load = engine if callable(engine) else lambda: engine
    prompter = prompter or BytePrompter()
    place = OnDemand(load, name="tiny", **options)
    if loaded:
        place.load()
    return FoundationEntity("tiny", task, place, lambda: prompter, clock=Noon())


def asked(engine, body, task=CHAT, **options):
    """Return the response to one body."""
    return asyncio.run(served(engine, task, **options).send(body))


def streamed(engine, body, task=CHAT, **options):
    """Return the chunks of the answer to one body, without what all of them begin with."""

    async def chunks():
        stream = await served(engine, task, **options).stream(body)
        return [chunk async for chunk in stream.chunks]

    found = asyncio.run(chunks())
    heads = [{name: chunk.pop(name) for name in ("id", "object", "created", "model")} for chunk in found]
    assert all(head == heads[0] for head in heads)
    return found


def delta(delta, finish=None, index=0, **more):
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}


USED = {
    "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0},
}  # fmt: skip


def test_an_entity_is_what_the_gateway_looks_for():
    entity = served(FakeEngine())
    for protocol in (RequestEntity, StreamingEntity, QueueingEntity, ReportingEntity, Retirable, CountsPrompts):
        assert isinstance(entity, protocol)
    assert (entity.task, entity.queues, entity.count_prompt(HI)) == (CHAT, True, 3)


def test_an_entity_reports_what_its_engine_has_done():
    async def scene():
        entity = served(FakeEngine())
        before = entity.report()
        await entity.send(HI)
        return before, entity.report()

    before, after = asyncio.run(scene())
    assert (before["engine"], before["device"], before["loaded"], before["finished"]) == (None, None, False, 0)
    assert (after["engine"], after["device"], after["loaded"], after["finished"]) == ("fake", "cpu", True, 1)
    assert after["prefix_hit_rate"] == 0


def test_a_chat_is_answered_in_the_rest_apis_words():
    response = asked(FakeEngine("ok"), HI)
    identity = response.body.pop("id")
    assert identity.startswith("chatcmpl-")
    assert response.body == {
        "object": "chat.completion",
        "created": 1_763_629_200,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": USED,
    }
    assert response.usage == Usage(3, 2)
    assert asked(FakeEngine("ok"), HI).body["id"] != identity


def test_a_completion_is_answered_in_the_rest_apis_words():
    response = asked(FakeEngine(lambda _: said("ok", finish=LENGTH)), {"prompt": "Hi", "echo": True}, COMPLETIONS)
    assert response.body.pop("id").startswith("cmpl-")
    assert response.body == {
        "object": "text_completion",
        "created": 1_763_629_200,
        "model": "tiny",
        "choices": [{"index": 0, "text": "Hiok", "finish_reason": "length"}],
        "usage": USED,
    }


def test_a_streamed_chat_tells_who_speaks_then_what_then_why_it_ended_and_what_it_used():
    assert streamed(FakeEngine(lambda _: said("o", "", "k")), HI) == [
        delta({"role": "assistant", "content": ""}),
        delta({"content": "o"}),
        delta({"content": "k"}),
        delta({}, "stop"),
        {"choices": [], "usage": USED},
    ]


def test_a_streamed_completion_has_text_in_its_chunks():
    chunks = streamed(FakeEngine(lambda _: said("o", "k")), {"prompt": "Hi", "echo": True}, COMPLETIONS)
    assert chunks == [
        {"choices": [{"index": 0, "text": "Hi", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "o", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "k", "finish_reason": "stop"}]},
        {"choices": [], "usage": USED},
    ]


def test_chunks_are_called_chunks_and_have_the_answers_id():
    async def first_of(task, body):
        stream = await served(FakeEngine(), task).stream(body)
        return await anext(stream.chunks)

    assert asyncio.run(first_of(CHAT, HI))["object"] == "chat.completion.chunk"
    assert asyncio.run(first_of(COMPLETIONS, {"prompt": "Hi"}))["object"] == "text_completion"


def test_several_choices_share_a_prompt_that_counts_once():
    answers = iter("abc")
    response = asked(FakeEngine(lambda _: said(next(answers))), {**HI, "n": 3})
    assert [choice["index"] for choice in response.body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in response.body["choices"]] == ["a", "b", "c"]
    assert response.usage == Usage(3, 3)


def test_prompts_and_their_choices_are_numbered_through_and_every_prompt_counts():
    response = asked(FakeEngine("ok"), {"prompt": ["a", "bc"], "n": 2}, COMPLETIONS)
    assert [choice["index"] for choice in response.body["choices"]] == [0, 1, 2, 3]
    assert response.body["usage"]["prompt_tokens"] == len("^a" + "^bc")
    assert response.body["usage"]["completion_tokens"] == 8


def test_tokens_taken_over_from_another_prompt_are_told():
    async def twice():
        entity = served(FakeEngine())
        return [(await entity.send(HI)).body["usage"] for _ in range(2)]

    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in asyncio.run(twice())]
    assert cached == [0, 3]


def test_several_streamed_choices_come_interleaved_each_under_its_index():
    async def scene():
        slow = asyncio.Event()
        answers = iter([[Piece("a1"), slow, *said("a2")], said("b1", "b2")])
        engine = FakeEngine(lambda _: next(answers))
        stream = await served(engine).stream({**HI, "n": 2})
        came = []
        async for chunk in stream.chunks:
            came += [
                (choice["index"], choice["delta"].get("content"), choice["finish_reason"])
                for choice in chunk["choices"]
            ]
            if came[-1] == (1, None, "stop"):
                slow.set()
        return came

    came = asyncio.run(scene())
    assert came[:2] == [(0, "", None), (1, "", None)]
    assert came[-2:] == [(0, "a2", None), (0, None, "stop")]
    assert [text for index, text, _ in came if index == 1] == ["", "b1", "b2", None]


def test_a_chat_tells_how_likely_its_tokens_were():
    engine = FakeEngine(lambda _: said("o", "k", logprobs=True))
    content = [
        {"token": text, "logprob": -0.5, "bytes": [ord(text)], "top_logprobs": [
            {"token": text, "logprob": -0.5, "bytes": [ord(text)]}, {"token": "?", "logprob": -1.5, "bytes": [63]},
        ]} for text in "ok"
    ]  # fmt: skip
    (choice,) = asked(engine, {**HI, "logprobs": True, "top_logprobs": 2}).body["choices"]
    assert choice["logprobs"] == {"content": content, "refusal": None}
    chunks = streamed(engine, {**HI, "logprobs": True, "top_logprobs": 2})
    told = [chunk["choices"][0].get("logprobs") for chunk in chunks[:-1]]
    assert [entry and entry["content"] for entry in told] == [None, [content[0]], [content[1]], None]


def test_a_completion_tells_how_likely_its_tokens_were_and_where_they_begin():
    logprobs = {
        "tokens": ["a", "\ufffd", "\ufffd", "b"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{"a": -0.5, "?": -1.5}, {"\ufffd": -0.5, "?": -1.5}, {"\ufffd": -0.5, "?": -1.5}, {"b": -0.5, "?": -1.5}],
        "text_offset": [0, 1, 1, 2],
    }  # fmt: skip
    body = {"prompt": "Hi", "logprobs": 2}
    (choice,) = asked(FakeEngine(lambda _: said("aéb", logprobs=True)), body, COMPLETIONS).body["choices"]
    assert choice["logprobs"] == logprobs
    pieces = FakeEngine(lambda _: said("a", "éb", logprobs=True))
    *chunks, _ = streamed(pieces, body, COMPLETIONS)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [1, 1, 2]]


def test_nobody_who_did_not_ask_is_told_how_likely_tokens_were():
    (choice,) = asked(FakeEngine(lambda _: said("ok")), HI).body["choices"]
    assert "logprobs" not in choice


def test_calls_of_tools_are_taken_out_of_the_text():
    (choice,) = asked(FakeEngine(f"Well.\n{CALL}"), {**HI, "tools": TOOLS}).body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "Well."}
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    (choice,) = asked(FakeEngine(CALL), {**HI, "tools": TOOLS}).body["choices"]
    assert choice["message"]["content"] is None


def test_streamed_calls_come_whole_each_under_its_index():
    chunks = streamed(FakeEngine(lambda _: said("Well. ", *(CALL + CALL))), {**HI, "tools": TOOLS})
    _, text, first, second, end, _ = [chunk["choices"] and chunk["choices"][0]["delta"] for chunk in chunks]
    assert text == {"content": "Well."}
    assert [delta["tool_calls"][0]["index"] for delta in (first, second)] == [0, 1]
    assert first["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert first["tool_calls"][0]["id"] != second["tool_calls"][0]["id"]
    assert end == {}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_text_that_only_began_like_a_call_is_given_in_the_end():
    chunks = streamed(FakeEngine(lambda _: said("a ", "<tool_c")), {**HI, "tools": TOOLS})
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "a <tool_c"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_without_tools_or_within_a_form_what_looks_like_a_call_is_text():
    bare = '{"name": "now", "arguments": {}}'
    for body in (
        {},
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": TOOLS, "response_format": {"type": "json_object"}},
    ):
        (choice,) = asked(FakeEngine(bare), {**HI, **body}).body["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (bare, "stop")


def test_a_call_that_was_asked_for_is_a_call_and_what_was_cut_off_is_text():
    body = {**HI, "tools": TOOLS, "tool_choice": "required"}
    engine = FakeEngine('{"name": "now", "arguments": {}}')
    (choice,) = asked(engine, body).body["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "now"
    assert '"const":"now"' in engine.requests[0].sampling.schema
    (choice,) = asked(FakeEngine(lambda _: said('{"name": "no', finish=LENGTH)), body).body["choices"]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": '{"name": "no'}, "length")


def test_thoughts_are_blocks_beside_the_text():
    engine = FakeEngine(lambda _: said("<think>\nHm", ".\n</think>", "\n\nYes."))
    (choice,) = asked(engine, HI).body["choices"]
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    assert choice["message"]["content"] == [thought, {"type": "text", "text": "Yes."}]
    deltas = [chunk["choices"][0]["delta"]["content"] for chunk in streamed(engine, HI)[1:-2]]
    assert [part if isinstance(part, str) else part[0]["summary"][0]["text"] for part in deltas] == ["Hm", ".", "Yes."]


def test_a_thought_that_the_template_begins_is_one():
    (choice,) = asked(FakeEngine("Hm.</think>Yes."), HI, prompter=BytePrompter("<think>\n")).body["choices"]
    assert choice["message"]["content"][1] == {"type": "text", "text": "Yes."}


def test_embeddings_come_in_order_with_what_they_used():
    engine = FakeEmbedder()
    response = asked(engine, {"input": ["a", "bcd"]}, EMBEDDINGS)
    assert with_lists(response.body) == {
        "object": "list",
        "model": "tiny",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [2.0, 94.0, 97.0]},
            {"object": "embedding", "index": 1, "embedding": [4.0, 94.0, 98.0]},
        ],
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    assert response.usage == Usage(6, 0)


def test_embeddings_may_be_shorter_and_in_base64():
    body = {"input": "a", "dimensions": 2, "encoding_format": "base64"}
    (found,) = asked(FakeEmbedder(), body, EMBEDDINGS).body["data"]
    vector = np.frombuffer(base64.b64decode(found["embedding"]), "<f4")
    assert vector == pytest.approx(np.array([2, 94]) / np.hypot(2, 94))


def test_a_text_that_is_too_long_is_its_requests_own_fault():
    with pytest.raises(ContextLengthError):
        asked(FakeEmbedder(), {"input": "x" * 100}, EMBEDDINGS)


def test_embeddings_have_no_pieces():
    with pytest.raises(InvalidRequestError, match="leave out 'stream'"):
        streamed(FakeEmbedder(), {"input": "a"}, EMBEDDINGS)


def test_the_engine_is_told_who_can_wait():
    async def scene(entity, body):
        await entity.send(body, batch=True)
        await entity.send(body)
        if entity.task == CHAT:
            await (await entity.stream(body, batch=True)).chunks.aclose()

    engine, embedder = FakeEngine(), FakeEmbedder()
    asyncio.run(scene(served(engine), HI))
    asyncio.run(scene(served(embedder, EMBEDDINGS), {"input": "a"}))
    assert [request.batch for request in engine.requests] == [True, False, True]
    assert [batch for _, batch in embedder.asked] == [True, False]


def test_long_prompts_become_tokens_on_a_thread():
    threads = []

    class Watched(BytePrompter):
        def chat(self, *messages, **options):
            threads.append(threading.current_thread())
            return super().chat(*messages, **options)

    long = {"messages": [{"role": "user", "content": "x" * 30_000}]}
    for body in (HI, long):
        asked(FakeEngine(context_length=100_000), body, prompter=Watched())
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


def test_a_prompt_that_is_too_long_fails_alone_and_takes_its_choices_along():
    async def scene():
        entity = served(engine := FakeEngine())
        long = {"messages": [{"role": "user", "content": "x" * 99}]}
        answers = await asyncio.gather(*(entity.send(body) for body in (HI, long, HI)), return_exceptions=True)
        late = entity.send({"prompt": ["a", "x" * 99]})
        entity.task = COMPLETIONS
        with pytest.raises(ContextLengthError):
            await late
        return answers, engine.generations[-1].cancelled

    (first, second, third), cancelled = asyncio.run(scene())
    assert isinstance(second, ContextLengthError)
    assert first.usage == third.usage == Usage(3, 2)
    assert cancelled


def test_a_cancelled_request_gives_its_place_up_at_once():
    async def scene():
        never = asyncio.Event()
        entity = served(engine := FakeEngine(lambda _: [Piece("a"), never]), loaded=True)
        waiting = [asyncio.create_task(entity.send({**HI, "n": 2})), asyncio.create_task(entity.stream({**HI, "n": 2}))]
        stream = await waiting[1]
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        whole = [generation.cancelled for generation in engine.generations]
        await stream.chunks.aclose()
        return whole, [generation.cancelled for generation in engine.generations]

    whole, both = asyncio.run(scene())
    assert whole == [True, True, False, False]
    assert both == [True] * 4


def test_a_stream_that_nobody_asked_for_a_chunk_can_be_closed():
    async def scene():
        entity = served(engine := FakeEngine(lambda _: [Piece("a"), asyncio.Event()]))
        stream = await entity.stream(HI)
        await stream.chunks.aclose()
        return engine.generations[0].cancelled, entity._engine._users

    assert asyncio.run(scene()) == (True, 0)


def test_what_fails_before_the_first_chunk_is_raised_where_the_stream_is_opened():
    with pytest.raises(EngineError):
        streamed(FakeEngine(lambda _: [lost()]), HI)

    async def late(n):
        stream = await served(FakeEngine(lambda _: [Piece("a"), lost()])).stream({**HI, "n": n})
        came = []
        with pytest.raises(EngineError):
            came += [chunk async for chunk in noted(stream.chunks, into=came)]
        return [chunk["choices"][0]["delta"].get("content") for chunk in came]

    assert asyncio.run(late(1)) == ["", "a"]
    assert "a" in asyncio.run(late(2))


def test_an_engine_that_ended_is_loaded_anew_and_the_request_tried_again():
    engines = []

    def load():
        engines.append(FakeEngine())
        return engines[-1]

    async def scene(count, ask):
        entity = served(load)
        await entity.send(HI)
        engines[-1].close()
        return await asyncio.gather(*(ask(entity) for _ in range(count)))

    assert len(asyncio.run(scene(5, lambda entity: entity.send(HI)))) == 5
    assert len(engines) == 2
    (stream,) = asyncio.run(scene(1, lambda entity: entity.stream(HI)))
    assert stream.chunks
    assert len(engines) == 4
    gc.collect()


# When engines come and go.


class Loads:
    """Loads an engine when `go` is set, and counts how often; fails as often as it is told."""

    def __init__(self, failures=0):
        self.engines = []
        self.go = threading.Event()
        self.failures = failures
        self.attempts = 0

    def __call__(self):
        assert self.go.wait(10)
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no memory")
        self.engines.append(FakeEngine())
        return self.engines[-1]


def open_loads(failures=0):
    loads = Loads(failures)
    loads.go.set()
    return loads


def test_nothing_is_loaded_before_the_first_request_and_then_once_for_all():
    async def scene():
        loads = Loads()
        entity = served(loads)
        assert not entity.loaded
        assert entity.metrics().finished == 0
        waiting = [asyncio.create_task(entity.send(HI)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        loads.go.set()
        await asyncio.gather(*waiting[1:])
        assert entity.loaded
        assert entity.metrics().finished == 4
        return loads.attempts

    assert asyncio.run(scene()) == 1


def test_a_load_that_fails_is_everybodys_error_and_tried_again_after_a_while():
    now = [0.0]

    async def scene(loads):
        entity = served(loads, now=lambda: now[0])
        said = [
            str(error) for error in await asyncio.gather(*(entity.send(HI) for _ in range(3)), return_exceptions=True)
        ]
        assert said == ["Model 'tiny' could not be loaded: RuntimeError: no memory"] * 3
        for now[0], attempts in ((0.9, 1), (1.1, 2), (3.0, 2)):
            with pytest.raises(ModelError, match="no memory"):
                await entity.send(HI)
            assert loads.attempts == attempts
        now[0] = 3.2
        assert await entity.send(HI)
        return loads.attempts

    assert asyncio.run(scene(open_loads(failures=2))) == 3


def test_an_engine_that_nobody_asks_is_unloaded_and_loaded_again_by_who_asks():
    now, lines = [0.0], []
    loads = open_loads()

    async def scene():
        entity = served(loads, idle_seconds=1000, say=lines.append, now=lambda: now[0])
        await entity.send(HI)
        stream = await entity.stream(HI)
        now[0] = 2000
        entity._engine.rest()  # somebody still listens
        assert entity.loaded
        await stream.chunks.aclose()
        now[0] = 2999
        entity._engine.rest()
        assert entity.loaded
        now[0] = 3000
        entity._engine.rest()
        assert not entity.loaded
        assert loads.engines[0].closed == 1
        await entity.send(HI)
        await entity.close()

    asyncio.run(scene())
    assert lines == ["Unloaded: nobody has asked for 1000 s."]
    assert [engine.closed for engine in loads.engines] == [1, 1]


def test_a_retired_engine_is_given_back_when_it_has_answered():
    async def scene():
        go, gone = asyncio.Event(), threading.Event()
        engine = FakeEngine(lambda _: [Piece("a"), go, *said("b")])
        engine.close = gone.set
        entity = served(engine, loaded=True)
        answer = asyncio.create_task(entity.send(HI))
        await asyncio.sleep(0)
        entity.retire()
        assert not gone.is_set()
        go.set()
        body = (await answer).body
        assert await asyncio.to_thread(gone.wait, 10)
        with pytest.raises(OverloadedError, match="'tiny' was taken out of service"):
            await entity.send(HI)
        return body["choices"][0]["message"]["content"]

    assert asyncio.run(scene()) == "ab"


def test_an_engine_can_be_given_back_at_once_or_before_anybody_asked():
    async def scene():
        entity = served(engine := FakeEngine(lambda _: [Piece("a"), asyncio.Event()]))
        stream = await entity.stream(HI)
        entity.retire(at_once=True)
        closed = engine.closed
        await stream.chunks.aclose()
        return closed

    assert asyncio.run(scene()) == 1
    entity = served(loads := open_loads())
    entity.retire()
    with pytest.raises(OverloadedError):
        asyncio.run(entity.send(HI))
    assert loads.attempts == 0


def test_an_engine_that_is_still_loading_when_it_is_given_back_is_closed_when_it_is_there():
    async def scene():
        entity = served(loads := Loads())
        waiting = asyncio.create_task(entity.send(HI))
        await asyncio.sleep(0)
        entity.retire(at_once=True)
        loads.go.set()
        with pytest.raises(OverloadedError):
            await waiting
        return loads.engines[0].closed

    assert asyncio.run(scene()) == 1


def test_nothing_is_loaded_before_what_was_there_has_given_its_memory_back():
    now, closing, gone = [0.0], threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def close(self):
            closing.set()
            assert gone.wait(10)

    engines = []
    place = OnDemand(lambda: engines.append(Slow()) or engines[-1], name="tiny", idle_seconds=1000, now=lambda: now[0])
    place.load()
    now[0] = 1000
    resting, loading = threading.Thread(target=place.rest), threading.Thread(target=place.load)
    resting.start()
    assert closing.wait(10)
    loading.start()
    loading.join(0.05)
    assert len(engines) == 1
    gone.set()
    resting.join()
    loading.join()
    assert len(engines) == 2
    place.close()


def test_without_pytorch_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(ConfigurationError, match=r"'tiny' cannot be served here.*torch.*pip install 'aiquery\[llm\]'"):
        load_foundation(None, name="tiny", settings=EngineSettings(), say=lambda _: None)


def test_models_are_loaded_one_at_a_time(monkeypatch):
    inside, most = [], []

    def slowly(*_):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return FakeEngine()

    monkeypatch.setattr(opening, "require_libraries", lambda _: None)
    monkeypatch.setattr("aiquery_serving.llm.prompting.Prompter.load", slowly)
    monkeypatch.setattr("aiquery_serving.llm.choosing.load_engine", slowly)
    files = SimpleNamespace(task=CHAT)
    with ThreadPoolExecutor(4) as pool:
        done = [
            pool.submit(load_foundation, files, name="tiny", settings=EngineSettings(), say=lambda _: None)
            for _ in range(4)
        ]
    assert all(each.result() for each in done)
    assert most == [1] * 8


# With a model of random weights.


@pytest.fixture(scope="module")
def tiny(llama):
    """Opens the tiny Llama for a task; one engine each for all tests."""
    import torch

    from aiquery_serving.llm.model_files import find

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    opened = {}

    def entity(task=CHAT, **options):
        key = (task, *options.items())
        if key not in opened:
            settings = EngineSettings(device="cpu", max_sequences=8)
            files = find(llama, task=task)
            opened[key] = load_foundation(files, name="tiny", settings=settings, say=lambda _: None, **options)
        return opened[key]

    yield entity
    for each in opened.values():
        each.retire(at_once=True)
    torch.set_num_threads(before)


async def together(entity, *bodies):
    return await asyncio.gather(*(entity.send(body) for body in bodies), return_exceptions=True)


def test_a_real_model_chats_completes_and_streams_the_same(tiny):
    body = {**HI, "max_tokens": 12, "temperature": 0}

    async def scene():
        entity = tiny()
        whole, again = [response.body for response in await together(entity, body, body)]
        chunks = [chunk async for chunk in (await entity.stream(body)).chunks]
        return whole, again, chunks

    whole, again, chunks = asyncio.run(scene())
    (choice,) = whole["choices"]
    assert choice == again["choices"][0]
    assert choice["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == chunks[-1]["usage"]["completion_tokens"] == 12
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text == choice["message"]["content"] != ""


def test_a_real_models_choices_differ_and_come_again_by_their_seeds(tiny):
    body = {"prompt": "The quick", "n": 3, "seed": 1, "max_tokens": 8, "logprobs": 2}

    async def scene():
        return await together(tiny(COMPLETIONS), body, {**body, "seed": 2, "n": 1})

    three, second = asyncio.run(scene())
    texts = [choice["text"] for choice in three.body["choices"]]
    assert len(set(texts)) == 3
    assert second.body["choices"][0]["text"] == texts[1]
    logprobs = three.body["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 8
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    assert three.usage.completion_tokens == 24


def test_a_real_model_ends_at_a_stop_string_that_is_no_part_of_its_answer(tiny):
    body = {"prompt": "The quick", "max_tokens": 20, "temperature": 0}
    (whole,) = asyncio.run(together(tiny(COMPLETIONS), body))
    text = whole.body["choices"][0]["text"]
    stop = text[6:9]
    (stopped,) = asyncio.run(together(tiny(COMPLETIONS), {**body, "stop": [stop]}))
    choice = stopped.body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_a_real_model_gives_json_of_a_schema_and_calls_the_tool_that_it_must(tiny):
    schema = {
        "type": "object", "additionalProperties": False, "required": ["ok"], "properties": {"ok": {"type": "boolean"}},
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    weather = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "additionalProperties": False, "required": ["place"], "properties": {"place": {"$ref": "#/$defs/Place"}},
        "$defs": {"Place": {"enum": ["Bern", "Rome"]}},
    }}}  # fmt: skip
    tools = {"tools": [*TOOLS, weather], "tool_choice": weather, "max_tokens": 200}
    form_answer, call_answer = asyncio.run(together(tiny(), {**HI, "response_format": form}, {**HI, **tools}))
    assert json.loads(form_answer.body["choices"][0]["message"]["content"])["ok"] in (True, False)
    (choice,) = call_answer.body["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], choice["finish_reason"]) == ("weather", "tool_calls")
    assert json.loads(call["function"]["arguments"])["place"] in ("Bern", "Rome")


def test_a_real_models_long_prompt_fails_alone_and_a_cancelled_one_makes_room(tiny):
    long = {"messages": [{"role": "user", "content": "fox " * 600}]}

    async def scene():
        entity = tiny()
        first, second, third = await together(entity, {**HI, "max_tokens": 4}, long, {**HI, "max_tokens": 4})
        stream = await entity.stream({**HI, "ignore_eos": True})
        await stream.chunks.aclose()
        after = await entity.send({**HI, "max_tokens": 1})  # the engine has seen to the cancelled one before this one
        assert entity.metrics().running == 0
        assert after.usage.completion_tokens == 1
        return first, second, third

    first, second, third = asyncio.run(scene())
    assert isinstance(second, ContextLengthError)
    assert first.usage.completion_tokens == third.usage.completion_tokens == 4


def test_a_real_model_is_loaded_by_the_first_request(tiny):
    entity = tiny(COMPLETIONS, on_demand=True, idle_seconds=1000.0)
    assert not entity.loaded
    body = {"prompt": ["The", "quick"], "n": 2, "max_tokens": 2}
    counted = entity.count_prompt(body)
    assert not entity.loaded
    (response,) = asyncio.run(together(entity, body))
    assert response.usage.prompt_tokens == counted
    assert response.usage.completion_tokens == 8
    assert entity.loaded
