"""A budget is never crossed by calls that stay within their worst case, and nothing waits forever."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_serving import tokens
from aiquery_serving.budget import Meter, Spent, Tab
from aiquery_serving.endpoint import ExternalModel, ServedEntity
from aiquery_serving.errors import BudgetReachedError, ConfigurationError, InvalidRequestError
from aiquery_serving.messages import Usage
from aiquery_serving.prices import Prices

PRICES = Prices({"openai": {"cheap": {"input": 1, "output": 2}, "dear": {"input": 10, "output": 0.3, "call": 0.0001}}})


def external(model="cheap"):
    task = "llm/v1/chat"
    return ServedEntity(name=model, external_model=ExternalModel(provider="openai", name=model, task=task))


CHEAP, DEAR, UNPRICED = external(), external("dear"), external("unheard-of")
CUSTOM = ServedEntity(name="forest", entity_name="main.forest", entity_version="1")


def body(max_tokens=100, text="x"):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}


PROMPT = tokens.most(body(), CHEAP)
WORST = PROMPT + 100


def used(completion=100, prompt=PROMPT):
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


async def settled():
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def ask(meter, usage, served=CHEAP, request=None, *, sends=None):
    """Send a request through a meter as the gateway does: one try for each usage, None for a failed one."""
    request = request or body()
    async with meter.enter(served, request) as ticket:
        for usage_of_try in usage:
            reserved = ticket.reserve(served, request)
            if sends is not None:
                sends.append(served.name)
            await asyncio.sleep(0)
            ticket.settle(reserved, usage_of_try)


def test_without_maxima_it_only_counts():
    meter = Meter(prices=PRICES)
    asyncio.run(ask(meter, [None, used(7, 5)]))
    assert meter.spent == Spent(2, 5, 7, pytest.approx((5 + 14) / 1e6), cost_known=True)


@pytest.mark.parametrize(
    ("served", "usage", "known"),
    [(CHEAP, used(), True), (UNPRICED, used(), False), (CHEAP, Usage(), False), (CHEAP, None, True)],
)
def test_the_cost_is_known_when_all_had_a_price_and_a_count(served, usage, known):
    meter = Meter(prices=PRICES)
    asyncio.run(ask(meter, [usage], served))
    asyncio.run(ask(meter, [used()]))
    assert meter.spent.cost_known is known


def test_a_custom_model_costs_its_calls():
    meter = Meter(prices=Prices({"endpoint": {"forest": {"call": 0.01}}}), max_cost=1, max_tokens=0)

    async def two():
        for _ in range(2):
            async with meter.enter(CUSTOM, {"inputs": [1]}, endpoint="forest") as ticket:
                ticket.settle(ticket.reserve(CUSTOM, {"inputs": [1]}), Usage())

    asyncio.run(two())
    assert meter.spent == Spent(2, 0, 0, pytest.approx(0.02), cost_known=True)


@pytest.mark.parametrize(
    ("maxima", "says"),
    [
        ({"max_calls": 2}, r"max_calls is 2, spent so far: 2, and the next request may use up to 1\. Raise max_calls"),
        (
            {"max_tokens": 2 * WORST},
            rf"max_tokens is {2 * WORST}, spent so far: {2 * WORST}, .* up to {WORST}\. .*bound",
        ),
        ({"max_cost": 2 * (PROMPT + 200) / 1e6}, r"max_cost is \$0\.\d+, spent so far: \$0\.\d+"),
    ],
)
def test_the_budget_can_be_used_up_and_not_a_call_more(maxima, says):
    meter = Meter(prices=PRICES, **maxima)
    asyncio.run(ask(meter, [used()]))
    asyncio.run(ask(meter, [used()]))
    with pytest.raises(BudgetReachedError, match=says):
        asyncio.run(ask(meter, [used()]))
    assert meter.spent.calls == 2


def test_what_only_waits_for_calls_in_flight_does_not_end_the_job():
    meter = Meter(prices=PRICES, max_tokens=WORST + 20)

    async def both():
        sends = []
        async with meter.enter(CHEAP, body()) as ticket:
            reserved = ticket.reserve(CHEAP, body())
            other = asyncio.create_task(ask(meter, [used(1, 1)], sends=sends))
            await settled()
            assert sends == []
            ticket.settle(reserved, used(1, 1))
        await other
        assert sends == ["cheap"]

    asyncio.run(both())
    assert meter.spent.calls == 2


def test_who_waits_is_let_through_in_order_and_who_never_fits_is_refused():
    meter = Meter(prices=PRICES, max_tokens=WORST)

    async def three():
        order = []

        async def one(number, max_tokens):
            async with meter.enter(CHEAP, body(max_tokens)):
                order.append(number)

        async with meter.enter(CHEAP, body()) as ticket:
            waiting = [
                asyncio.create_task(one(number, most)) for number, most in [(1, 100), (2, 50), (3, 101), (4, 10)]
            ]
            await settled()
            assert order == []
            assert isinstance(waiting[2], asyncio.Task)
            ticket.settle(ticket.reserve(CHEAP, body()), used(1, 1))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert order == [2, 4]
        assert [isinstance(result, BudgetReachedError) for result in results] == [True, False, True, False]

    asyncio.run(three())


def test_a_request_that_was_never_sent_costs_nothing():
    meter = Meter(prices=PRICES, max_calls=1)

    async def unsent():
        with pytest.raises(RuntimeError):
            async with meter.enter(CHEAP, body()):
                raise RuntimeError

    asyncio.run(unsent())
    asyncio.run(ask(meter, [used()]))
    assert meter.spent.calls == 1


@pytest.mark.parametrize("late", [False, True])
def test_who_stops_waiting_holds_up_nobody_and_nothing(late):
    meter = Meter(prices=PRICES, max_calls=2, max_tokens=WORST)

    async def cancel():
        async with meter.enter(CHEAP, body()):
            first = asyncio.create_task(ask(meter, [used(1, 1)]))
            await settled()
            if not late:
                first.cancel()
                await settled()
        first.cancel()  # late: it has just been let through, and does not know yet
        await settled()
        assert first.cancelled()
        await asyncio.wait_for(ask(meter, [used(1, 1)]), 5)

    asyncio.run(cancel())
    assert meter.spent.calls == 1


def test_a_second_try_needs_a_call_but_no_more_tokens():
    meter = Meter(prices=PRICES, max_tokens=WORST, max_calls=2)
    asyncio.run(ask(meter, [None, used()]))
    assert (meter.spent.calls, meter.spent.prompt_tokens + meter.spent.completion_tokens) == (2, WORST)
    meter = Meter(prices=PRICES, max_calls=1)
    with pytest.raises(BudgetReachedError, match="max_calls is 1, spent so far: 1"):
        asyncio.run(ask(meter, [None, used()]))


def test_a_dearer_fallback_is_paid_from_what_is_left_or_refused():
    async def fall_back(max_cost):
        meter = Meter(prices=PRICES, max_cost=max_cost)
        async with meter.enter(CHEAP, body()) as ticket:
            ticket.settle(ticket.reserve(CHEAP, body()), None)
            ticket.settle(ticket.reserve(DEAR, body()), used())
        return meter.spent

    assert asyncio.run(fall_back(0.01)).calls == 2
    with pytest.raises(BudgetReachedError):
        asyncio.run(fall_back((PROMPT + 200) / 1e6))


def test_a_packed_request_that_is_halved_stays_within_its_ticket():
    whole = {"input": ["one", "two", "three", "four"]}
    halves = [{"input": ["one", "two"]}, {"input": ["three", "four"]}]
    meter = Meter(prices=PRICES, max_tokens=tokens.most(whole, CHEAP) + 64)

    async def pack():
        async with meter.enter(CHEAP, whole) as ticket:
            ticket.settle(ticket.reserve(CHEAP, whole), None)
            for half in halves:
                ticket.settle(ticket.reserve(CHEAP, half), Usage(prompt_tokens=4))

    asyncio.run(pack())
    assert meter.spent[:3] == (3, 8, 0)


def test_an_answer_that_nobody_counted_is_charged_what_was_held_for_it():
    meter = Meter(prices=PRICES, max_tokens=WORST)
    asyncio.run(ask(meter, [Usage()]))
    assert meter.spent[:3] == (1, PROMPT, 100)


def test_what_nobody_counted_teaches_nothing_about_the_size_of_answers():
    meter = Meter(prices=PRICES, max_tokens=20_000)
    unbounded = {"messages": body()["messages"]}
    for _ in range(4):
        asyncio.run(ask(meter, [Usage()], request=unbounded))
    assert meter.spent.completion_tokens == 4 * tokens.UNBOUNDED_OUTPUT


def test_without_max_tokens_twice_the_largest_answer_is_held():
    meter = Meter(prices=PRICES, max_tokens=30_000)
    unbounded = {"messages": body()["messages"]}
    asyncio.run(ask(meter, [used(12_000)], request=unbounded))
    with pytest.raises(BudgetReachedError, match=r"up to 24,\d+"):
        asyncio.run(ask(meter, [used(1)], request=unbounded))


def test_a_maximum_cost_needs_a_price_and_says_where_to_put_it(tmp_path):
    meter = Meter(prices=Prices.load(tmp_path), max_cost=1)
    with pytest.raises(ConfigurationError, match=r"openai model 'unheard-of' costs: add \"unheard-of\" = .*\[openai\]"):
        asyncio.run(ask(meter, [used()], UNPRICED))
    with pytest.raises(ConfigurationError, match=r"served entity 'forest' costs"):
        asyncio.run(ask(meter, [used()], CUSTOM))
    assert meter.spent == Spent()


@pytest.mark.parametrize("maxima", [{"max_cost": -1}, {"max_tokens": float("nan")}, {"max_calls": float("inf")}])
def test_a_maximum_is_a_number_from_0_on(maxima):
    with pytest.raises(InvalidRequestError, match=f"{next(iter(maxima))} must be a number from 0 on"):
        Meter(prices=PRICES, **maxima)


def test_nothing_may_be_sent_on_an_empty_budget():
    with pytest.raises(BudgetReachedError):
        asyncio.run(ask(Meter(prices=PRICES, max_calls=0), [used()]))


tries = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 100), st.integers(0, PROMPT))), min_size=1, max_size=3)
jobs = st.lists(
    st.tuples(st.sampled_from([CHEAP, DEAR]), st.sampled_from([1, 50, 100]), tries, st.booleans(), st.integers(0, 6)),
    min_size=1,
    max_size=25,
)
maxima = st.fixed_dictionaries(
    {},
    optional={
        "max_cost": st.sampled_from([0.0, 0.001, 0.0021, 0.1]),
        "max_tokens": st.sampled_from([0, WORST - 1, WORST, 3 * WORST + 1]),
        "max_calls": st.integers(0, 12),
    },
)


@settings(deadline=None)
@given(maxima, jobs)
def test_no_order_of_calls_crosses_a_maximum_and_all_of_them_end(maxima, jobs):
    async def work():
        meter = Meter(prices=PRICES, **maxima)

        def check():
            spent = meter.spent
            assert spent.calls <= maxima.get("max_calls", 10**9)
            assert spent.prompt_tokens + spent.completion_tokens <= maxima.get("max_tokens", 10**9)
            assert spent.cost <= maxima.get("max_cost", 10**9) * (1 + 1e-12)

        async def one(served, max_tokens, tries, _cancelled, pause):
            async with meter.enter(served, body(max_tokens)) as ticket:
                for usage in tries:
                    reserved = ticket.reserve(served, body(max_tokens))
                    for _ in range(pause):
                        await asyncio.sleep(0)
                    ticket.settle(reserved, None if usage is None else used(min(usage[0], max_tokens), usage[1]))
                    check()

        tasks = [asyncio.create_task(one(*job)) for job in jobs]
        for task, job in zip(tasks, jobs, strict=True):
            await asyncio.sleep(0)
            if job[3]:
                task.cancel()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = (BudgetReachedError, asyncio.CancelledError, type(None))
        assert [result for result in results if not isinstance(result, kinds)] == []
        check()
        assert not any(meter._spending.held)
        assert not meter._line

    asyncio.run(work())


def test_a_tab_counts_what_is_sent_and_limits_nothing():
    tab = Tab(PRICES)
    counter = tab.at("chat")
    answered, failed = counter.reserve(CHEAP, {}), counter.reserve(CHEAP, {})
    assert tab.in_flight == 2

    counter.settle(answered, Usage(1_000_000, 1_000_000))
    counter.settle(failed, None)

    price = PRICES.of(CHEAP, "chat")
    assert tab.in_flight == 0
    assert tab.spent == Spent(2, 1_000_000, 1_000_000, price.cost(1_000_000, 1_000_000), cost_known=True)


def test_a_tab_says_when_it_does_not_know_a_cost():
    tab = Tab(Prices({}))
    counter = tab.at("chat")
    counter.settle(counter.reserve(CHEAP, {}), Usage(3, 4))

    assert tab.spent == Spent(1, 3, 4, 0.0, cost_known=False)
