"""A gate lets so many through, in order, and loses no place to those who give up."""

from __future__ import annotations

import asyncio

import pytest

from aiquery_udfs.gates import Gate


async def visit(gate, name, log, most=2):
    await gate.enter(most)
    log.append(name)


def test_those_who_find_it_full_wait_in_order():
    async def run():
        gate, log = Gate(), []
        visits = [asyncio.create_task(visit(gate, name, log)) for name in "abcd"]
        await asyncio.sleep(0)
        assert log == ["a", "b"]
        gate.leave()
        await asyncio.sleep(0)
        gate.leave()
        await asyncio.gather(*visits)
        return log

    assert asyncio.run(run()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("called", [False, True], ids=["while it waits", "as it is called"])
def test_who_gives_up_takes_no_place(called):
    async def run():
        gate, log = Gate(), []
        first = asyncio.create_task(visit(gate, "first", log, most=1))
        quitter, last = (asyncio.create_task(visit(gate, name, log, most=1)) for name in ("quitter", "last"))
        await first
        await asyncio.sleep(0)
        if called:
            gate.leave()
            quitter.cancel()
        else:
            quitter.cancel()
            gate.leave()
        await asyncio.wait_for(last, 5)
        return log

    assert asyncio.run(run()) == ["first", "last"]


def test_a_gate_that_has_grown_lets_more_through():
    async def run():
        gate, log = Gate(), []
        await visit(gate, "a", log, most=1)
        await asyncio.wait_for(visit(gate, "b", log, most=2), 5)
        return log

    assert asyncio.run(run()) == ["a", "b"]
