"""Calls wait for the throughput of their served entity: interactive ones shortly, batch work for as long as it takes."""

import asyncio
from types import SimpleNamespace

import pytest
from provisioned_world import CHUNK, Figures, simulate

from aiquery.testing import ManualClock, ScriptedEntity, chat_response
from aiquery_serving.endpoint import EndpointConfig, FoundationModel, Route, ServedEntity
from aiquery_serving.errors import EngineError, ThroughputError
from aiquery_serving.gateway import Gateway
from aiquery_serving.messages import Response, Stream, Usage
from aiquery_serving.registry import Serving
from aiquery_serving.throughput import Provision
from aiquery_serving.throughput.scaling import DOWN_SECONDS
from aiquery_serving.throughput_gate import PATIENCE, ThroughputGate


def gate_of(minimum, maximum, *, clock, burst=False):
    return ThroughputGate("llama", Provision(minimum * CHUNK, maximum * CHUNK, CHUNK, burst), clock)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def test_batch_work_waits_for_its_turn_and_an_interactive_caller_is_told_when_to_come_again():
    clock = ManualClock()
    gate = gate_of(1, 1, clock=clock)

    async def story():
        await gate.enter(3 * CHUNK, patient=True)
        with pytest.raises(ThroughputError, match="'llama' has 980 tokens per second now, of 980 at most") as refused:
            await gate.enter(490, patient=False)
        await gate.enter(980, patient=True)
        return refused.value

    refused = run(story())
    assert refused.retry_after == pytest.approx(2.5)
    assert (refused.http_status, refused.error_code) == (429, "REQUEST_LIMIT_EXCEEDED")
    # 1,960 tokens of debt and 980 to fill the bucket; batch work is owed a quarter, and it had three seconds' worth.
    assert clock.now() == pytest.approx(3.0, abs=0.1)


def test_an_interactive_caller_waits_for_two_seconds_at_most():
    clock = ManualClock()
    gate = gate_of(1, 1, clock=clock)

    async def ask():
        began = clock.now()
        await gate.enter(245, patient=False)
        return clock.now() - began

    async def story():
        return await asyncio.gather(*(ask() for _ in range(40)), return_exceptions=True)

    waits = [answer for answer in run(story()) if isinstance(answer, float)]
    assert len(waits) == 4 + PATIENCE * 4
    assert max(waits) == pytest.approx(PATIENCE)


def test_settling_lets_the_next_go_at_once():
    clock = ManualClock(automatic=False)
    gate = gate_of(1, 1, clock=clock)

    async def story():
        taken = await gate.enter(CHUNK, patient=True)
        waiting = asyncio.ensure_future(gate.enter(400, patient=True))
        await turns()
        assert gate.holdup() == "paced by 980 tokens/s of `llama`"
        gate.settle(taken, 30)
        await turns()
        assert waiting.done()
        assert gate.holdup() is None

    run(story())


def test_who_gives_up_waiting_holds_up_nobody():
    clock = ManualClock()
    gate = gate_of(1, 1, clock=clock)

    async def story():
        await gate.enter(CHUNK, patient=True)
        large = asyncio.ensure_future(gate.enter(5 * CHUNK, patient=True))
        small = asyncio.ensure_future(gate.enter(98, patient=True))
        await turns()
        large.cancel()
        await small
        assert clock.now() < 1.0

    run(story())


def test_who_gives_up_waiting_lets_the_other_line_go_at_once():
    clock = ManualClock(automatic=False)
    gate = gate_of(1, 1, clock=clock)

    async def story():
        await gate.enter(CHUNK, patient=True)
        interactive = asyncio.ensure_future(gate.enter(900, patient=False))
        batch = asyncio.ensure_future(gate.enter(10, patient=True))
        await clock.advance(0.6)
        assert not batch.done()
        interactive.cancel()
        await turns()
        assert batch.done()

    run(story())


def test_one_call_that_waits_for_long_is_enough_to_scale_up():
    clock = ManualClock()
    gate = gate_of(1, 4, clock=clock)

    async def story():
        await gate.enter(10 * CHUNK, patient=True)
        await gate.enter(10 * CHUNK, patient=True)

    run(story())
    assert clock.now() < 6.0


def test_a_flood_scales_up_within_seconds_and_idle_minutes_scale_down():
    clock = ManualClock()
    gate = gate_of(1, 4, clock=clock)

    async def story():
        assert gate.now_provisioned == CHUNK
        taken = await asyncio.gather(*(gate.enter(400, patient=True) for _ in range(100)))
        assert gate.now_provisioned == 4 * CHUNK
        assert clock.now() < 100 * 400 / (4 * CHUNK) + 5
        for each in taken:
            gate.settle(each, 400)
        await clock.sleep(DOWN_SECONDS + 1)
        assert gate.now_provisioned == CHUNK

    run(story())


def test_changed_bounds_count_from_the_next_call_on_and_who_waits_stays_in_line():
    clock = ManualClock()
    gate = gate_of(1, 1, clock=clock)

    async def story():
        waiting = [asyncio.ensure_future(gate.enter(CHUNK, patient=True)) for _ in range(9)]
        await turns()
        gate.provision = Provision(8 * CHUNK, 8 * CHUNK, CHUNK, burst=False)
        await asyncio.gather(*waiting)
        assert clock.now() < 3.0
        assert gate.now_provisioned == 8 * CHUNK

    run(story())


def test_a_model_that_was_unloaded_is_asked_by_a_second_s_worth_until_it_answers():
    clock = ManualClock(automatic=False)
    gate = gate_of(0, 2, clock=clock)

    async def story():
        gate.settle(await gate.enter(400, patient=False, loaded=True), 400)
        await clock.advance(DOWN_SECONDS + 1)
        calls = [asyncio.ensure_future(gate.enter(400, patient=False, loaded=False)) for _ in range(5)]
        await turns()
        await clock.advance(30)
        assert [call.done() for call in calls] == [True, True, False, False, False]
        assert gate.holdup() == "waiting for `llama` to be loaded"
        gate.began()
        gate.settle(calls[0].result(), 400)
        gate.settle(calls[1].result(), 400)
        await clock.advance(2)
        assert all(call.done() for call in calls)

    run(story())


def test_a_model_that_cannot_be_loaded_is_tried_by_the_next():
    clock = ManualClock(automatic=False)
    gate = gate_of(0, 2, clock=clock)

    async def story():
        calls = [asyncio.ensure_future(gate.enter(900, patient=True, loaded=False)) for _ in range(3)]
        for call in calls:
            await turns()
            assert call.done()
            gate.settle(call.result(), 900)  # cancelled under way: it used nothing, as nothing was there

    run(story())


def test_a_model_that_is_still_there_after_an_idle_time_is_not_waited_for():
    clock = ManualClock(automatic=False)
    gate = gate_of(0, 1, clock=clock)

    async def story():
        for _ in range(2):
            assert gate.now_provisioned == 0
            taken = await gate.enter(900, patient=False, loaded=True)
            waiting = asyncio.ensure_future(gate.enter(400, patient=False, loaded=True))
            await clock.advance(0.5)
            gate.settle(taken, 900)
            gate.settle(await waiting, 400)
            await clock.advance(DOWN_SECONDS + 1)

    run(story())


# Through the gateway


LLAMA = FoundationModel(task="llm/v1/chat", model_type="llama", throughput_chunk_size=CHUNK)
BODY = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 100}
LONG = {"messages": [{"role": "user", "content": "x" * 2400}]}


class Queueing(ScriptedEntity):
    """An entity with a queue of its own: it remembers who could wait."""

    queues = True

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.batch = []
        self.loaded = True

    async def send(self, body, *, batch=False):
        self.batch.append(batch)
        return await super().send(body)

    async def stream(self, body, *, batch=False):
        self.batch.append(batch)

        async def chunks():
            yield {"choices": [{"delta": {"content": "Hi"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}

        return Stream(chunks=chunks())


def answer(tokens):
    return Response(body=chat_response("Hi").body, usage=Usage(100, tokens - 100))


@pytest.fixture
def world():
    """A gateway to an endpoint `llama` of foundation models; `world.serve({name: (entity, declared)})`."""
    clock, now = ManualClock(), SimpleNamespace(serving=None)

    class Servings:
        def serving(self, name, *, wait=None):
            return now.serving

    def serve(entities, *, shares=(100,), fallback=False):
        served = tuple(
            ServedEntity(name=name, entity_name="a.b.c", entity_version="1", foundation_model=LLAMA, **declared)
            for name, (_, declared) in entities.items()
        )
        config = EndpointConfig(
            served_entities=served,
            routes=tuple(Route(one.name, share) for one, share in zip(served, shares, strict=True)),
        )
        now.serving = Serving(
            name="llama",
            config=config,
            entities={name: entity for name, (entity, _) in entities.items()},
            rate_limits=(),
            fallback=fallback,
        )

    gateway = Gateway(Servings(), clock=clock, usage=lambda _: None, draw=lambda: 1.0)
    return SimpleNamespace(clock=clock, gateway=gateway, serve=serve)


ONE = {"min_provisioned_throughput": CHUNK, "max_provisioned_throughput": CHUNK, "burst_scaling_enabled": False}


def test_a_batch_job_is_paced_by_the_tokens_it_really_uses(world):
    entity = Queueing([answer(490)], clock=world.clock, latency=0.1)
    world.serve({"a": (entity, ONE)})

    async def job():
        await asyncio.gather(*(world.gateway.invoke("llama", BODY, patient=True) for _ in range(40)))

    run(job())
    assert world.clock.now() == pytest.approx(40 * 490 / CHUNK, abs=2.0)
    assert set(entity.batch) == {True}


def test_an_interactive_caller_beyond_what_there_is_gets_a_429(world):
    entity = Queueing([answer(5000)], clock=world.clock, latency=0.1)
    world.serve({"a": (entity, ONE)})

    async def story():
        await world.gateway.invoke("llama", BODY, patient=False)
        with pytest.raises(ThroughputError, match="Served entity 'a' has 980 tokens per second"):
            await world.gateway.invoke("llama", BODY, patient=False)

    run(story())
    assert entity.batch == [False]


def test_what_is_refused_for_throughput_falls_back_to_another_entity(world):
    busy, other = Queueing([answer(5000)]), Queueing([answer(200)])
    world.serve({"a": (busy, ONE), "b": (other, {"workload_size": "Small"})}, shares=(100, 0), fallback=True)

    async def story():
        return [(await world.gateway.invoke("llama", BODY, patient=False)).served_entity for _ in range(3)]

    assert run(story()) == ["a", "b", "b"]


def test_a_streamed_answer_is_settled_when_it_has_ended(world):
    entity = Queueing([])
    world.serve({"a": (entity, ONE)})

    async def story():
        for _ in range(40):
            async with await world.gateway.stream("llama", {**BODY, "max_tokens": 800}, patient=False) as pieces:
                [_ async for _ in pieces]

    run(story())
    assert world.clock.now() < 0.5
    assert set(entity.batch) == {False}


def test_a_model_flows_once_it_has_answered(world):
    entity = Queueing([answer(490)], clock=world.clock, latency=0.1)
    entity.loaded = False
    world.serve({"a": (entity, {**ONE, "min_provisioned_throughput": 0})})

    async def job():
        await asyncio.gather(*(world.gateway.invoke("llama", BODY, patient=True) for _ in range(40)))

    run(job())
    assert world.clock.now() == pytest.approx(40 * 490 / CHUNK, abs=2.0)


def test_a_failed_try_uses_nothing(world):
    entity = Queueing([EngineError("down"), answer(900)])
    world.serve({"a": (entity, ONE)})
    run(world.gateway.invoke("llama", LONG, patient=True))
    assert world.clock.now() < 0.5


def test_a_job_says_what_it_waits_for(world):
    entity = Queueing([answer(900)], clock=world.clock, latency=0.1)
    world.serve({"a": (entity, ONE)})

    async def story():
        calls = [asyncio.ensure_future(world.gateway.invoke("llama", BODY, patient=True)) for _ in range(9)]
        await turns(3)
        assert world.gateway.waiting("llama") == "paced by 980 tokens/s of `a`"
        await asyncio.gather(*calls)

    run(story())
    assert world.gateway.appetite("llama") == 256


def test_another_config_of_the_same_entity_keeps_who_waits_in_line(world):
    entity = Queueing([answer(980)], clock=world.clock, latency=0.01)
    world.serve({"a": (entity, ONE)})

    async def story():
        calls = [asyncio.ensure_future(world.gateway.invoke("llama", BODY, patient=True)) for _ in range(40)]
        await turns()
        eight = {"min_provisioned_throughput": 8 * CHUNK, "max_provisioned_throughput": 8 * CHUNK}
        world.serve({"a": (entity, {**ONE, **eight})})
        await world.gateway.invoke("llama", BODY, patient=True)
        await asyncio.gather(*calls)

    run(story())
    assert world.clock.now() == pytest.approx(40 / 8, abs=1.5)


# What it comes to, with a batch job that wants everything and interactive callers who come when they come


@pytest.mark.parametrize("chunks", [2, 4])
def test_a_flooding_job_uses_everything_and_interactive_callers_hardly_wait(chunks):
    shared = simulate(chunks, seconds=60, shared=True)
    assert shared.used >= 0.97
    assert shared.used <= 1.05
    assert shared.refused == 0
    assert shared.p50_ms < 100
    assert shared.p99_ms < 1000
    in_one_line = simulate(chunks, seconds=60, shared=False)
    assert in_one_line.p50_ms > 10 * max(100, shared.p50_ms)
    assert isinstance(shared, Figures)
