"""Deadlines that share one timer call back in time, and only those that were not met."""

import asyncio

import pytest

from aiquery_serving.rest.deadlines import Deadlines, Within


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def test_only_those_not_lifted_are_called_in_their_order():
    async def ask():
        called, deadlines = [], Deadlines(0.02)
        marks = [deadlines.set(lambda n=n: called.append(n)) for n in range(5)]
        for mark in (marks[0], marks[3], marks[3], object()):
            deadlines.lift(mark)
        await asyncio.sleep(0.01)
        deadlines.set(lambda: called.append("later"))
        await asyncio.sleep(0.012)
        early = list(called)
        await asyncio.sleep(0.05)
        return early, called

    assert run(ask()) == ([1, 2, 4], [1, 2, 4, "later"])


def test_a_call_may_set_another_deadline():
    async def ask():
        called, deadlines = [], Deadlines(0.01)
        deadlines.set(lambda: deadlines.set(lambda: called.append(1)))
        await asyncio.sleep(0.05)
        return called

    assert run(ask()) == [1]


def test_a_block_that_takes_too_long_is_cancelled():
    async def ask():
        with pytest.raises(TimeoutError), Within(Deadlines(0.01)):
            await asyncio.sleep(5)
        assert asyncio.current_task().cancelling() == 0
        with Within(Deadlines(5)):
            await asyncio.sleep(0)
        return "alive"

    assert run(ask()) == "alive"


def test_a_cancel_from_outside_is_not_taken_for_a_deadline():
    async def ask():
        async def work():
            with Within(Deadlines(5)):
                await asyncio.sleep(5)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(ask())
