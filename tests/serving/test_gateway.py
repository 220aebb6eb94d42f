"""The gateway takes every request down one path: limits, route, entity, retry or fallback, record."""

import asyncio
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aiquery.testing import ManualClock, ScriptedEntity
from aiquery_serving import errors
from aiquery_serving.endpoint import EndpointConfig, ExternalModel, RateLimit, Route, ServedEntity
from aiquery_serving.gateway import Gateway
from aiquery_serving.messages import EMBEDDINGS, Allowance, LimitHint, Response, Usage
from aiquery_serving.pacing import Lane, Turnstile
from aiquery_serving.registry import Serving
from aiquery_serving.traffic import positions

BODY = {"messages": [{"role": "user", "content": "hello"}]}
DOWN = errors.ProviderUnavailableError("down")


def external(name, concurrency=None):
    model = ExternalModel(provider="openai", name="gpt", task="llm/v1/chat")
    return ServedEntity(name=name, external_model=model, max_provisioned_concurrency=concurrency)


def custom(name):
    return ServedEntity(name=name, entity_name=f"models.{name}", entity_version="1", workload_size="Small")


class Double:
    """A model of our own: `factor` times the number, in one batch."""

    input_schema = None
    output_type = None

    def __init__(self, factor=2, kind=None):
        self.factor, self.kind, self.batches = factor, kind or pa.int64(), []

    def predict(self, rows, params=None):
        self.batches.append(rows.num_rows)
        return pc.multiply(rows.column(0), self.factor).cast(self.kind)

    def query(self, payload):
        return {"predictions": [value * self.factor for value in payload["inputs"]]}


class Servings:
    """A registry of one endpoint, `chat`."""

    def __init__(self):
        self.now = None

    def serve(self, entities, shares=None, *, rate_limits=(), fallback=False, concurrency=None, version=1):
        make = custom if isinstance(next(iter(entities.values())), Double) else external
        served = tuple(make(name, concurrency) if make is external else make(name) for name in entities)
        shares = shares or [100] + [0] * (len(entities) - 1)
        config = EndpointConfig(
            served_entities=served,
            routes=tuple(Route(name, share) for name, share in zip(entities, shares, strict=True)),
            config_version=version,
        )
        self.now = Serving(
            name="chat", config=config, entities=dict(entities), rate_limits=tuple(rate_limits), fallback=fallback
        )

    def serving(self, name, *, wait=None):
        if name != "chat":
            raise errors.EndpointNotFoundError(f"Endpoint with name '{name}' does not exist.")
        return self.now


@pytest.fixture
def world():
    """A gateway with everything around it; `world.serve(...)` declares the endpoint."""
    clock, servings, usage = ManualClock(), Servings(), []
    gateway = Gateway(servings, clock=clock, usage=usage.append, draw=lambda: 1.0)

    def scripted(script, **more):
        return ScriptedEntity(script, clock=clock, **more)

    async def many(count, **more):
        return await asyncio.gather(
            *(gateway.invoke("chat", {**BODY, "n": n}, **more) for n in range(count)), return_exceptions=True
        )

    return SimpleNamespace(
        clock=clock, usage=usage, gateway=gateway, serve=servings.serve, scripted=scripted, many=many
    )


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def text(response):
    return response.body["choices"][0]["message"]["content"]


def test_an_answer_names_the_served_entity_and_is_recorded(world):
    answer = Response(body={"choices": []}, usage=Usage(7, 5))
    world.serve({"a": world.scripted([answer], latency=0.25)}, version=3)
    response = run(world.gateway.invoke("chat", BODY, caller="ann"))
    assert (response.body, response.usage, response.served_entity) == ({"choices": []}, Usage(7, 5), "a")
    (record,) = world.usage
    assert (record.endpoint, record.served_entity, record.config_version) == ("chat", "a", 3)
    assert (record.status, record.attempts, record.rows, record.caller) == ("ok", 1, 1, "ann")
    assert (record.prompt_tokens, record.completion_tokens, record.latency_ms) == (7, 5, 250.0)


def test_an_unknown_endpoint_or_served_entity_is_named(world):
    world.serve({"a": world.scripted(["x"])})
    with pytest.raises(errors.EndpointNotFoundError, match="name 'nope' does not exist"):
        run(world.gateway.invoke("nope", BODY))
    with pytest.raises(errors.EndpointNotFoundError, match=r"no served entity 'b'\. It serves: a"):
        run(world.gateway.invoke("chat", BODY, served_entity="b"))
    assert world.usage == []


def test_calls_without_a_key_keep_the_split_exactly_in_any_window(world):
    world.serve({"a": world.scripted(["x"]), "b": world.scripted(["y"])}, [90, 10])
    names = [response.served_entity for response in run(world.many(200))]
    assert Counter(names) == {"a": 180, "b": 20}
    assert all(0 <= names[start : start + 10].count("b") <= 2 for start in range(190))


def test_a_key_takes_the_same_route_every_time(world):
    world.serve({"a": world.scripted(["x"]), "b": world.scripted(["y"])}, [50, 50])
    for key in (b"1", b"2", b"3", b"4"):
        answers = run(world.many(5, key=key))
        assert len({answer.served_entity for answer in answers}) == 1


def test_an_addressed_entity_answers_whatever_its_share(world):
    world.serve({"a": world.scripted(["x"]), "b": world.scripted(["y"])}, [100, 0])
    assert run(world.gateway.invoke("chat", BODY, served_entity="b")).served_entity == "b"


def test_no_more_are_in_flight_than_the_entity_declares_and_they_go_in_order(world):
    entity = world.scripted(["x"], latency=1.0)
    world.serve({"a": entity}, concurrency=8)
    run(world.many(40))
    assert entity.most_in_flight == 8
    assert [body["n"] for body in entity.asked] == list(range(40))
    assert world.clock.now() == 5.0


def test_failures_that_may_pass_are_retried_with_growing_waits(world):
    world.serve({"a": world.scripted([DOWN, DOWN, DOWN, "x"])})
    assert text(run(world.gateway.invoke("chat", BODY))) == "x"
    assert world.clock.now() == pytest.approx(0.1 + 0.2 + 0.4)
    assert (world.usage[0].attempts, world.usage[0].status) == (4, "ok")


def test_retries_end(world):
    entity = world.scripted([DOWN])
    world.serve({"a": entity})
    with pytest.raises(errors.ProviderUnavailableError, match="down"):
        run(world.gateway.invoke("chat", BODY))
    assert len(entity.asked) == 11
    assert world.usage[0].status == "ProviderUnavailableError"


@pytest.mark.parametrize("error", [errors.ProviderRequestError("bad"), errors.ProviderResponseError("cut")])
def test_failures_that_stay_are_not_retried(world, error):
    entity = world.scripted([error])
    world.serve({"a": entity})
    with pytest.raises(type(error)):
        run(world.gateway.invoke("chat", BODY))
    assert len(entity.asked) == 1


def test_429s_are_waited_out_however_many_there_are(world):
    busy = errors.ProviderRateLimitError("busy", retry_after=3.0)
    world.serve({"a": world.scripted([busy] * 25 + ["x"])})
    assert text(run(world.gateway.invoke("chat", BODY))) == "x"
    assert world.clock.now() == 75.0


def test_after_a_429_everybody_waits_and_one_probes(world):
    busy = errors.ProviderRateLimitError("busy", retry_after=10.0)
    entity = world.scripted(lambda _: busy if world.clock.now() < 10 else "x", latency=0.1)
    world.serve({"a": entity}, concurrency=16)
    run(world.many(64))
    times = Counter(round(at, 3) for at in entity.asked_at)
    assert times.pop(0.0) == 16
    assert times.pop(10.1) == 1
    assert min(times) == 10.2
    assert len(entity.asked) == 64 + 16


def test_a_patient_caller_is_never_refused_by_a_provider_that_only_says_429(world):
    stamps = []

    def provider(_):
        now = world.clock.now()
        recent = [at for at in stamps if at > now - 10]
        if len(recent) >= 300:
            return errors.ProviderRateLimitError("busy", retry_after=float(int(recent[0] + 10 - now) + 1))
        stamps.append(now)
        return "x"

    entity = world.scripted(provider, latency=0.1)
    world.serve({"a": entity}, concurrency=256)
    assert all(isinstance(answer, Response) for answer in run(world.many(500)))
    assert len(entity.asked) - 500 <= 256
    assert world.clock.now() <= 12


def test_a_provider_that_tells_its_limit_never_has_to_say_429(world):
    stamps = []

    def provider(_):
        now = world.clock.now()
        stamps[:] = [at for at in stamps if at > now - 10]
        if len(stamps) >= 300:
            return errors.ProviderRateLimitError("busy", retry_after=stamps[0] + 10 - now)
        stamps.append(now)
        left = Allowance(limit=300, remaining=300 - len(stamps), reset_after=stamps[0] + 10 - now)
        return Response(body={}, hint=LimitHint(requests=left))

    entity = world.scripted(provider, latency=0.1)
    world.serve({"a": entity}, concurrency=256)
    run(world.many(500))
    assert len(entity.asked) == 500
    assert world.clock.now() <= 10.6


def test_calls_sent_before_the_first_answer_count_towards_the_limit_it_teaches():
    clock = ManualClock(automatic=False)
    lane = Lane("a", 64, clock)

    async def enter(count):
        return [await lane.enter(lambda: 0, patient=True) for _ in range(count)]

    async def in_waves():
        permits = await enter(5)
        await clock.advance(5.0)
        permits += await enter(5)
        for permit, reset_after in zip(permits, [15.0] + [10.0] * 9, strict=True):
            told = Allowance(limit=10, remaining=0, reset_after=reset_after)
            lane.answered(permit, Response(body={}, hint=LimitHint(requests=told)))
        await clock.advance(11.0)
        await enter(5)
        assert lane.blocked(0) == 4.0

    run(in_waves())


def test_a_429_teaches_the_limit_too():
    clock = ManualClock(automatic=False)
    lane = Lane("a", 64, clock)
    busy = errors.ProviderRateLimitError("busy", retry_after=2.0)
    busy.hint = LimitHint(requests=Allowance(limit=1, remaining=0, reset_after=10.0))

    async def refused_once():
        permit = await lane.enter(lambda: 0, patient=True)
        lane.failed(permit, busy)
        await clock.advance(3.0)
        assert lane.blocked(0) == pytest.approx(7.0)

    run(refused_once())


def test_a_refused_key_is_not_tried_again_for_every_row(world):
    entity = world.scripted([errors.ProviderAccessError("wrong key")], latency=0.1)
    world.serve({"a": entity}, concurrency=4)
    answers = run(world.many(100))
    assert all(str(answer) == "wrong key" for answer in answers)
    assert len(entity.asked) == 4


def test_an_impatient_caller_gets_a_provider_429_at_once(world):
    busy = errors.ProviderRateLimitError("busy", retry_after=7.0)
    world.serve({"a": world.scripted([busy, "x"])})
    with pytest.raises(errors.ProviderRateLimitError) as first:
        run(world.gateway.invoke("chat", BODY, patient=False))
    with pytest.raises(errors.TooManyRequestsError) as second:
        run(world.gateway.invoke("chat", BODY, patient=False))
    assert (first.value.retry_after, second.value.retry_after, world.clock.now()) == (7.0, 7.0, 0.0)


def test_an_impatient_caller_gets_few_retries(world):
    entity = world.scripted([DOWN])
    world.serve({"a": entity})
    with pytest.raises(errors.ProviderUnavailableError):
        run(world.gateway.invoke("chat", BODY, patient=False))
    assert len(entity.asked) == 3


def test_learned_token_limits_hold_up_calls_by_their_size(world):
    spent = []

    def provider(_):
        now = world.clock.now()
        recent = sum(1_000 for at in spent if at > now - 10)
        if recent + 1_000 > 20_000:
            return errors.ProviderRateLimitError("busy", retry_after=1.0)
        spent.append(now)
        left = Allowance(limit=20_000, remaining=19_000 - recent, reset_after=10.0)
        return Response(body={}, usage=Usage(2, 998), hint=LimitHint(tokens=left))

    entity = world.scripted(provider, latency=0.1)
    world.serve({"a": entity}, concurrency=4)
    run(world.many(50))
    assert len(entity.asked) <= 52
    assert 20 <= world.clock.now() <= 32


def test_many_waiting_calls_can_be_cancelled_at_once(world):
    entity = world.scripted(["x"], latency=100.0)
    world.serve({"a": entity}, concurrency=2)

    async def cancel_all():
        tasks = [asyncio.create_task(world.gateway.invoke("chat", {"n": n})) for n in range(5_000)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        world.serve({"a": entity}, concurrency=2, version=2)
        return await world.gateway.invoke("chat", BODY)

    assert text(run(cancel_all())) == "x"
    assert len(entity.asked) == 3


def minute(**rule):
    return RateLimit(renewal_period="minute", **rule)


def test_a_declared_limit_is_waited_for_in_order_and_never_exceeded(world):
    entity = world.scripted(["x"])
    world.serve({"a": entity}, rate_limits=[minute(calls=10)])
    run(world.many(25))
    assert [body["n"] for body in entity.asked] == list(range(25))
    assert Counter(entity.asked_at) == {0.0: 10, 60.0: 10, 120.0: 5}


def test_a_declared_limit_refuses_those_who_do_not_wait(world):
    world.serve({"a": world.scripted(["x"])}, rate_limits=[minute(calls=1)])
    run(world.gateway.invoke("chat", BODY))
    with pytest.raises(errors.TooManyRequestsError, match=r"exceeded for 'chat'.*\(RPM\).*endpoint") as refused:
        run(world.gateway.invoke("chat", BODY, patient=False))
    assert refused.value.retry_after == 60.0


def test_a_caller_who_used_up_their_limit_holds_up_nobody_else(world):
    entity = world.scripted(["x"])
    world.serve({"a": entity}, rate_limits=[minute(calls=1, key="user")])

    async def both():
        ann = [asyncio.create_task(world.gateway.invoke("chat", {"by": "ann"}, caller="ann")) for _ in range(3)]
        await asyncio.sleep(0)
        await world.gateway.invoke("chat", {"by": "bob"}, caller="bob")
        assert world.clock.now() == 0.0
        await asyncio.gather(*ann)

    run(both())
    assert entity.asked_at == [0.0, 0.0, 60.0, 120.0]


def test_token_limits_reserve_then_settle(world):
    answer = Response(body={}, usage=Usage(2, 8))
    entity = world.scripted([answer], latency=1.0)
    world.serve({"a": entity}, rate_limits=[minute(tokens=100)])
    run(world.many(30, served_entity="a"))
    assert world.clock.now() > 120
    for start in entity.asked_at:
        assert sum(start <= at < start + 60 for at in entity.asked_at) * 10 <= 100


def test_a_failed_call_gives_its_tokens_back(world):
    entity = world.scripted([errors.ProviderRequestError("bad"), "x"])
    world.serve({"a": entity}, rate_limits=[minute(tokens=20)])
    with pytest.raises(errors.ProviderRequestError):
        run(world.gateway.invoke("chat", {**BODY, "max_tokens": 18}))
    run(world.gateway.invoke("chat", {**BODY, "max_tokens": 18}))
    assert world.clock.now() == 0.0


def test_a_request_that_no_wait_admits_is_refused_at_once(world):
    world.serve({"a": world.scripted(["x"])}, rate_limits=[minute(tokens=10)])
    with pytest.raises(errors.InvalidRequestError, match="about 100 tokens"):
        run(world.gateway.invoke("chat", {"prompt": "word" * 100}))


def test_admit_waits_for_the_calls_of_a_batch(world):
    world.serve({"a": Double()}, rate_limits=[minute(calls=2)])
    run(world.gateway.admit("chat", calls=5))
    assert world.clock.now() == 120.0


def test_fallback_asks_the_others_in_list_order(world):
    a, b, c = world.scripted([DOWN]), world.scripted([DOWN]), world.scripted(["x"])
    world.serve({"a": a, "b": b, "c": c}, [0, 100, 0], fallback=True)
    response = run(world.gateway.invoke("chat", BODY))
    assert (response.served_entity, world.clock.now()) == ("c", 0.0)
    assert (len(a.asked), len(b.asked)) == (1, 1)
    assert world.usage[0].attempts == 3


def test_fallback_does_not_repeat_what_is_wrong_with_the_request(world):
    other = world.scripted(["x"])
    world.serve({"a": world.scripted([errors.ProviderRequestError("bad")]), "b": other}, fallback=True)
    with pytest.raises(errors.ProviderRequestError):
        run(world.gateway.invoke("chat", BODY))
    assert other.asked == []


def test_fallback_passes_by_an_entity_in_its_cool_down(world):
    busy = errors.ProviderRateLimitError("busy", retry_after=30.0)
    a = world.scripted([busy, "x"])
    world.serve({"a": a, "b": world.scripted(["y"])}, fallback=True)
    assert {answer.served_entity for answer in run(world.many(5))} == {"b"}
    assert (len(a.asked), world.clock.now()) == (1, 0.0)


def test_a_cancelled_call_gives_everything_back(world):
    entity = world.scripted(["x"], latency=100.0)
    world.serve({"a": entity}, concurrency=2)

    async def cancel_some():
        tasks = [asyncio.create_task(world.gateway.invoke("chat", {"n": n})) for n in range(6)]
        await asyncio.sleep(0)
        for number in (0, 1, 2, 4):
            tasks[number].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(cancel_some())
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [1, 1, 1, 0, 1, 0]
    assert [body["n"] for body in entity.asked] == [0, 1, 3, 5]
    assert world.clock.now() == 100.0
    assert Counter(record.status for record in world.usage) == {"CancelledCallError": 2, "ok": 2}


def test_a_call_cancelled_between_its_turn_and_its_start_gives_its_turn_back():
    open_, undone = [], []

    async def cancel_in_between():
        line = Turnstile(ManualClock(), lambda _: 0.0 if open_ else math.inf, str.upper, undone.append)
        call = asyncio.create_task(line.wait("call"))
        await asyncio.sleep(0)
        open_.append(True)
        line.pump()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert line.waiting == 0

    run(cancel_in_between())
    assert undone == ["CALL"]


def test_a_cancelled_probe_lets_another_probe(world):
    busy = errors.ProviderRateLimitError("busy", retry_after=10.0)
    entity = world.scripted([busy, "x"], latency=5.0)
    world.serve({"a": entity})

    async def cancel_the_probe():
        first = asyncio.create_task(world.gateway.invoke("chat", BODY))
        await world.clock.advance(16.0)
        second = asyncio.create_task(world.gateway.invoke("chat", BODY))
        await world.clock.advance(1.0)
        assert len(entity.asked) == 2
        first.cancel()
        await world.clock.advance(6.0)
        assert text(await second) == "x"

    world.clock._automatic = False
    run(cancel_the_probe())


def test_a_bug_in_an_entity_passes_through_and_gives_its_place_back(world):
    entity = world.scripted([KeyError("oops"), "x"])
    world.serve({"a": entity}, concurrency=1)
    with pytest.raises(KeyError):
        run(world.gateway.invoke("chat", BODY))
    assert text(run(world.gateway.invoke("chat", BODY))) == "x"
    assert world.usage[0].status == "KeyError"


def test_a_new_config_is_used_by_the_next_call_and_by_retries(world):
    world.serve({"a": world.scripted([DOWN])})

    async def swap_meanwhile():
        call = asyncio.create_task(world.gateway.invoke("chat", BODY))
        await asyncio.sleep(0)
        world.serve({"b": world.scripted(["x"])}, version=2)
        return await call

    assert run(swap_meanwhile()).served_entity == "b"


def test_an_unchanged_entity_keeps_its_cool_down_through_an_update(world):
    busy = errors.ProviderRateLimitError("busy", retry_after=30.0)
    entity = world.scripted([busy, "x"])
    world.serve({"a": entity})
    with pytest.raises(errors.ProviderRateLimitError):
        run(world.gateway.invoke("chat", BODY, patient=False))
    world.serve({"a": entity, "b": world.scripted(["y"])}, [100, 0], version=2)
    run(world.gateway.invoke("chat", BODY))
    assert world.clock.now() == 30.0


class Tally:
    """A meter that lets `most` sends go and notes what it is told."""

    def __init__(self, most=math.inf):
        self.most, self.reserved, self.settled = most, [], []

    def reserve(self, served, body):
        if len(self.reserved) >= self.most:
            raise errors.BudgetReachedError("spent")
        self.reserved.append(served.name)
        return len(self.reserved)

    def settle(self, reserved, usage):
        self.settled.append((reserved, usage))


def test_a_meter_counts_every_send_and_what_it_used(world):
    answer = Response(body={}, usage=Usage(7, 5))
    world.serve({"a": world.scripted([DOWN]), "b": world.scripted([DOWN, answer])}, fallback=True)
    tally = Tally()
    response = run(world.gateway.invoke("chat", BODY, meter=tally, job="nightly"))
    assert tally.reserved == ["a", "b", "a", "b"]
    assert tally.settled == [(1, None), (2, None), (3, None), (4, Usage(7, 5))]
    assert (response.attempts, world.usage[0].attempts, world.usage[0].job) == (4, 4, "nightly")


def test_a_meter_hears_of_a_send_that_was_cancelled(world):
    world.serve({"a": world.scripted(["x"], latency=100.0)})
    tally = Tally()

    async def cancel_it():
        task = asyncio.create_task(world.gateway.invoke("chat", BODY, meter=tally))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(cancel_it())
    assert tally.settled == [(1, None)]


def test_what_a_meter_refuses_is_neither_sent_nor_retried_and_holds_up_nobody(world):
    entity, other = world.scripted(["x"]), world.scripted(["y"])
    world.serve({"a": entity, "b": other}, rate_limits=[minute(calls=3, tokens=90)], fallback=True, concurrency=1)
    sized = {"max_tokens": 25}

    async def beyond_the_budget():
        tally = Tally(1)
        asked = [world.gateway.invoke("chat", {**BODY, **sized}, meter=tally) for _ in range(9)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert Counter(type(answer).__name__ for answer in answers) == {"Response": 1, "BudgetReachedError": 8}
        assert {answer.attempts for answer in answers if isinstance(answer, Exception)} == {0}
        await asyncio.gather(*(world.gateway.invoke("chat", {**BODY, **sized}) for _ in range(2)))

    run(beyond_the_budget())
    assert (len(entity.asked), len(other.asked), world.clock.now(), len(world.usage)) == (3, 0, 0.0, 3)


def test_a_refused_send_leaves_no_trace_in_what_the_provider_allows(world):
    told = [Response(body={}, hint=LimitHint(requests=Allowance(limit=9, remaining=1, reset_after=9.0))), "x"]
    world.serve({"a": world.scripted(told)})

    async def refused_in_between():
        await world.gateway.invoke("chat", BODY)
        with pytest.raises(errors.BudgetReachedError):
            await world.gateway.invoke("chat", BODY, meter=Tally(0))
        await world.gateway.invoke("chat", BODY)

    run(refused_in_between())
    assert world.clock.now() == 0.0


def test_an_error_says_how_often_entities_were_asked(world):
    world.serve({"a": world.scripted([DOWN])})
    with pytest.raises(errors.ProviderUnavailableError) as failed:
        run(world.gateway.invoke("chat", BODY, patient=False))
    assert failed.value.attempts == 3


def test_packed_embeddings_are_metered_and_named_after_their_job(world):
    world.serve({"a": embedder(world)})
    tally = Tally(1)
    assert run(world.gateway.embed("chat", ["1", "2"], meter=tally, job="nightly")) == [[1.0], [2.0]]
    (first, second) = run(world.gateway.embed("chat", ["1", "2"], meter=tally, job="nightly"))
    assert isinstance(first, errors.BudgetReachedError)
    assert first is second
    assert [(record.job, record.rows) for record in world.usage] == [("nightly", 2)]


def test_the_appetite_is_what_entities_with_traffic_take_at_once(world):
    world.serve({name: world.scripted(["x"]) for name in "abc"}, [50, 50, 0], concurrency=8)
    assert world.gateway.appetite("chat") == 16
    world.serve({"a": world.scripted([errors.ProviderRateLimitError("busy", retry_after=1.0)])}, concurrency=8)
    with pytest.raises(errors.ProviderRateLimitError):
        run(world.gateway.invoke("chat", BODY, patient=False))
    assert world.gateway.appetite("chat") == 4
    world.serve({"a": Double()})
    assert world.gateway.appetite("chat") == 1


def told(*, calls):
    return Response(body={}, hint=LimitHint(requests=Allowance(limit=9, remaining=calls, reset_after=2.5)))


@pytest.mark.parametrize(
    ("script", "declared", "phrase"),
    [
        (["x"], [minute(calls=9, key="user"), minute(calls=2)], "paced by 2 calls/min on `chat`"),
        (["x"], [minute(tokens=40_000)], "paced by 40,000 tokens/min on `chat`"),
        (["x"], [minute(calls=1, key="user")], "paced by 1 calls/min on `chat` for each user"),
        ([told(calls=0)], [], "the provider of `a` allows no call for 3 s"),
        ([errors.ProviderRateLimitError("busy", retry_after=1.5), "x"], [], "cooling down after 429 for 2 s"),
        ([errors.ProviderUnavailableError("down", retry_after=7.0), "x"], [], "cooling down after 503 for 7 s"),
        (["slow"], [], "at most 4 calls at once"),
    ],
)
def test_what_calls_wait_for_is_said_in_words(world, script, declared, phrase):
    latency = 50.0 if script == ["slow"] else 0.0
    world.serve({"a": world.scripted(script, latency=latency)}, rate_limits=declared, concurrency=4)
    body = {"prompt": "word" * 15_000}

    async def look():
        assert world.gateway.waiting("chat") is None
        tasks = [asyncio.create_task(world.gateway.invoke("chat", body, caller="ann")) for _ in range(6)]
        await world.clock.advance(0.0)
        said = world.gateway.waiting("chat")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return said, world.gateway.waiting("chat")

    world.clock._automatic = False
    assert run(look()) == (phrase, None)


def embedder(world, *, bad=(), too_large=99, refusal=errors.ProviderRequestError):
    def script(body):
        if len(body["input"]) > too_large:
            return errors.RequestTooLargeError("too many")
        if set(bad) & set(body["input"]):
            return refusal("bad input")
        data = [{"index": at, "embedding": [float(word)]} for at, word in enumerate(body["input"])]
        return Response(body={"data": data[::-1]}, usage=Usage(len(data)))

    return world.scripted(script, task=EMBEDDINGS)


def test_packed_embeddings_come_back_in_the_order_of_their_inputs(world):
    entity = embedder(world)
    world.serve({"a": entity})
    answers = run(world.gateway.embed("chat", ["1", "2", "3"], params={"dimensions": 1}))
    assert answers == [[1.0], [2.0], [3.0]]
    assert entity.asked == [{"dimensions": 1, "input": ["1", "2", "3"]}]
    assert world.usage[0].rows == 3


@pytest.mark.parametrize(
    "refusal", [errors.ProviderRequestError, errors.ContextLengthError, errors.InvalidRequestError]
)
@pytest.mark.parametrize("bad", [(), ("0",), ("7",), ("3", "4"), ("1", "38", "39")])
def test_bad_inputs_are_searched_out_and_the_others_answered_once(world, bad, refusal):
    entity = embedder(world, bad=bad, refusal=refusal)
    world.serve({"a": entity})
    answers = run(world.gateway.embed("chat", [str(n) for n in range(40)]))
    for number, answer in enumerate(answers):
        if str(number) in bad:
            assert isinstance(answer, refusal)
        else:
            assert answer == [float(number)]
    assert sum(record.rows for record in world.usage if record.status == "ok") == 40 - len(bad)


def test_a_request_that_is_too_large_is_halved(world):
    entity = embedder(world, too_large=10)
    world.serve({"a": entity})
    assert len(run(world.gateway.embed("chat", ["1"] * 40))) == 40
    assert [len(body["input"]) for body in entity.asked] == [40, 20, 10, 10, 20, 10, 10]


def test_the_wrong_number_of_embeddings_is_an_error_for_each_input(world):
    world.serve({"a": world.scripted([Response(body={"data": [{"embedding": [1.0]}]})])})
    answers = run(world.gateway.embed("chat", ["1", "2"]))
    assert [str(answer) for answer in answers] == ["Served entity 'a' gave 1 embeddings to 2 inputs."] * 2


@pytest.mark.parametrize("item", [None, "text", {"index": 0}, {"index": "x", "embedding": []}])
def test_embeddings_that_cannot_be_read_are_errors_rather_than_bugs(world, item):
    good = {"index": 0, "embedding": [1.0]}
    world.serve({"a": world.scripted([Response(body={"data": [good, item]})])})
    answers = run(world.gateway.embed("chat", ["1", "2"]))
    assert all(isinstance(answer, errors.ProviderResponseError) for answer in answers)


def test_no_inputs_are_no_call(world):
    world.serve({"a": embedder(world)})
    assert run(world.gateway.embed("chat", [])) == []


def numbers(count):
    return pa.record_batch({"x": pa.array(range(count), pa.int64())})


def test_rows_of_one_route_go_to_the_model_as_they_are(world):
    world.serve({"a": Double(2)})
    assert world.gateway.predict("chat", numbers(4), caller="ann").to_pylist() == [0, 2, 4, 6]
    (record,) = world.usage
    assert (record.rows, record.served_entity, record.caller) == (4, "a", "ann")


def test_rows_are_split_by_route_and_answered_in_their_order(world):
    a, b = Double(2), Double(1000)
    world.serve({"a": a, "b": b}, [75, 25])
    answers = world.gateway.predict("chat", numbers(8)).to_pylist()
    routes = [int(answer >= 1000 and answer % 1000 == 0) for answer in answers]
    assert answers == [row * (1000 if route else 2) for row, route in enumerate(routes)]
    assert (a.batches, b.batches) == ([6], [2])
    assert {record.served_entity: record.rows for record in world.usage} == {"a": 6, "b": 2}


def test_remembered_routes_are_kept_and_stale_ones_drawn_anew(world):
    world.serve({"a": Double(1), "b": Double(-1)}, [50, 50])
    assert world.gateway.route_names("chat") == ("a", "b")
    routes = np.array([1, 1, 0, 1])
    assert world.gateway.predict("chat", numbers(4), routes=routes).to_pylist() == [0, -1, 2, -3]
    stale = np.array([9, 1, 0, 9])
    answers = world.gateway.predict("chat", numbers(4), routes=stale).to_pylist()
    assert answers[1:3] == [-1, 2]
    assert abs(answers[3]) == 3


def test_drawn_routes_continue_the_sequence(world):
    world.serve({"a": Double(), "b": Double()}, [90, 10])
    drawn = np.concatenate([world.gateway.draw_routes("chat", size) for size in (1, 7, 50, 42)])
    assert np.bincount(drawn).tolist() == [90, 10]


def test_an_update_that_keeps_the_split_keeps_the_place_in_the_sequence(world):
    world.serve({"a": Double(), "b": Double()}, [90, 10])
    first = world.gateway.draw_routes("chat", 7)
    world.serve({"a": Double(), "b": Double()}, [90, 10], version=2)
    drawn = np.concatenate([first, world.gateway.draw_routes("chat", 93)])
    assert np.bincount(drawn).tolist() == [90, 10]
    assert np.array_equal(drawn, positions(world.gateway.serving("chat").config.routes, 0, 100))


def test_models_of_different_types_meet_at_the_wider_one(world):
    world.serve({"a": Double(2), "b": Double(3, pa.float64())}, [50, 50])
    answers = world.gateway.predict("chat", numbers(2), routes=np.array([0, 1]))
    assert (answers.type, answers.to_pylist()) == (pa.float64(), [0.0, 3.0])


def test_models_whose_types_do_not_mix_are_named(world):
    world.serve({"a": Double(2), "b": Double(3, pa.string())}, [50, 50])
    with pytest.raises(errors.ModelError, match=r"'chat'.*int64 and string"):
        world.gateway.predict("chat", numbers(2), routes=np.array([0, 1]))


def test_a_model_that_raises_is_recorded(world):
    class Broken(Double):
        def predict(self, rows, params=None):
            raise errors.ModelError("broken")

    world.serve({"a": Broken()})
    with pytest.raises(errors.ModelError, match="broken"):
        world.gateway.predict("chat", numbers(2))
    assert world.usage[0].status == "ModelError"


def test_a_model_that_loses_rows_is_caught(world):
    class Short(Double):
        def predict(self, rows, params=None):
            return pa.array([1])

    world.serve({"a": Short()})
    with pytest.raises(errors.ModelError, match="1 answers to 2 rows"):
        world.gateway.predict("chat", numbers(2))


def test_no_rows_are_no_trouble(world):
    world.serve({"a": Double(), "b": Double()}, [50, 50])
    assert len(world.gateway.predict("chat", numbers(0))) == 0


def test_batches_for_an_external_endpoint_are_refused(world):
    world.serve({"a": world.scripted(["x"])})
    with pytest.raises(errors.InvalidRequestError, match="'chat' serves an external model"):
        world.gateway.predict("chat", numbers(2))


def test_rest_queries_reach_models_of_our_own_by_the_split(world):
    world.serve({"a": Double(2), "b": Double(3)}, [50, 50])
    answers = [run(world.gateway.query("chat", {"inputs": [1]}))["predictions"] for _ in range(2)]
    assert sorted(answers) == [[2], [3]]
    assert {record.served_entity for record in world.usage} == {"a", "b"}


def test_several_threads_may_predict_at_once(world):
    from concurrent.futures import ThreadPoolExecutor

    world.serve({"a": Double(1), "b": Double(1)}, [90, 10])
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: world.gateway.predict("chat", numbers(10)).to_pylist(), range(40)))
    assert all(answer == list(range(10)) for answer in answers)
    rows = Counter()
    for record in world.usage:
        rows[record.served_entity] += record.rows
    assert rows == {"a": 360, "b": 40}


def test_the_latency_is_the_entitys_own_and_not_the_wait_in_line(world):
    world.serve({"a": world.scripted(lambda _: "x", latency=0.25)}, concurrency=1)
    run(world.many(4))
    assert [record.latency_ms for record in world.usage] == [250.0] * 4
