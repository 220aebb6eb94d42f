"""An answer that comes piece by piece goes the way of every other, and is settled when it has ended."""

import asyncio
import threading
from contextlib import aclosing

import pytest
from stream_worlds import BODY, USAGE, Speaker, Teller, Whole, World, chunk, text_of

from aiquery_serving import errors
from aiquery_serving.endpoint import RateLimit
from aiquery_serving.streaming import pieces


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_pieces_come_in_order_and_the_usage_is_recorded_at_the_end():
    world = World(a=Speaker())
    assert text_of(run(world.said())) == "one two three"
    (record,) = world.usage
    assert (record.status, record.prompt_tokens, record.completion_tokens) == ("ok", 4, 3)
    assert "stream" not in world.now.entities["a"].asked[0]


def test_the_chunk_of_usage_is_passed_on_to_those_who_asked_for_it():
    chunks = run(World(a=Speaker()).said(stream_options={"include_usage": True}))
    assert [chunk["choices"] == [] for chunk in chunks] == [False, False, False, True]
    assert chunks[-1]["usage"] == USAGE


def test_others_get_the_usage_with_the_last_words():
    chunks = run(World(a=Speaker()).said())
    assert [chunk.get("usage") for chunk in chunks] == [None, None, USAGE]
    assert text_of(chunks) == "one two three"


def test_several_choices_may_end_one_after_the_other():
    ends = [{"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]} for index in (0, 1)]
    speaker = Speaker(says=[chunk("a"), *ends, {"choices": [], "usage": USAGE}])
    assert run(World(a=speaker).said()) == [chunk("a"), ends[0], ends[1] | {"usage": USAGE}]


def test_what_fails_before_the_first_piece_is_retried_and_falls_back():
    down = errors.ProviderUnavailableError("down")
    world = World(a=Speaker(fails=[down]), b=Speaker(), fallback=True)

    async def ask():
        async with await world.gateway.stream("chat", BODY) as streamed:
            return streamed.served_entity, [chunk async for chunk in streamed]

    served, chunks = run(ask())
    assert (served, text_of(chunks)) == ("b", "one two three")
    assert [record.attempts for record in world.usage] == [2]


def test_what_breaks_later_raises_and_is_recorded_once():
    world = World(a=Speaker(breaks=(2, errors.ProviderResponseError("cut off"))))
    with pytest.raises(errors.ProviderResponseError, match="cut off"):
        run(world.said())
    assert [record.status for record in world.usage] == ["ProviderResponseError"]


def test_hanging_up_closes_the_answer_and_frees_its_place():
    speaker = Speaker()
    world = World(a=speaker, concurrency=1)

    async def ask():
        async with await world.gateway.stream("chat", BODY) as streamed:
            await anext(streamed)
        return await world.said()

    assert text_of(run(ask())) == "one two three"
    assert speaker.hung_up == 1
    assert [record.status for record in world.usage] == ["CancelledCallError", "ok"]


def test_an_answer_nobody_reads_still_frees_its_place():
    world = World(a=Speaker(), concurrency=1)

    async def ask():
        await (await world.gateway.stream("chat", BODY)).aclose()
        return await world.said()

    assert text_of(run(ask())) == "one two three"


def test_streams_count_in_rate_limits_and_impatient_callers_are_refused():
    world = World(a=Speaker(), rate_limits=[RateLimit(calls=1)])
    run(world.said())
    with pytest.raises(errors.TooManyRequestsError, match="rate limit exceeded"):
        run(world.said())


@pytest.mark.parametrize("logged", [None, {"inference_table_config": {"enabled": True}}])
def test_a_model_nobody_listened_to_is_left_in_peace_too(logged):
    teller = Teller()
    world = World(ai_gateway=logged, a=teller)

    async def ask():
        await (await world.gateway.stream("chat", BODY)).aclose()

    run(ask())
    assert teller.closed.wait(5)


def test_whole_answers_come_in_two_pieces():
    chunks = run(World(a=Whole()).said())
    assert text_of(chunks) == "all of it"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


def test_a_model_of_ours_is_asked_piece_by_piece_on_one_thread():
    teller = Teller()
    assert text_of(run(World(a=teller).said())) == "one two three"
    assert len(teller.threads) == 1
    assert threading.get_ident() not in teller.threads


@pytest.mark.parametrize("place", [0, 2])
def test_a_model_that_raises_while_it_speaks(place):
    world = World(a=Teller(breaks=place))
    with pytest.raises(errors.ModelError, match="broken"):
        run(world.said())
    assert [record.status for record in world.usage] == ["ModelError"]


def test_hanging_up_on_a_model_of_ours_ends_its_generator():
    teller = Teller()
    world = World(a=teller)

    async def ask():
        async with aclosing(await world.gateway.stream("chat", BODY)) as streamed:
            await anext(streamed)

    run(ask())
    assert teller.closed.wait(5)


def test_tool_calls_of_a_whole_answer_get_their_index():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    first, last = pieces({"object": "chat.completion", "choices": [choice]})
    assert first["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}


def test_other_answers_are_one_piece():
    assert pieces({"predictions": [1]}) == [{"predictions": [1]}]
