"""A batch job that wants everything and interactive callers, before one provisioned throughput, by a manual clock."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from aiquery.testing import ManualClock
from aiquery_serving.errors import ThroughputError
from aiquery_serving.throughput import Provision
from aiquery_serving.throughput_gate import ThroughputGate

#: Tokens per second of one chunk.
CHUNK = 980
#: Tokens of a batch job's request and of an interactive one, in the mean; both are expected to use more.
BATCH, INTERACTIVE, EXPECTED = 400, 250, 1.3
#: Requests of the job that are on their way at once, and seconds that an answer takes.
FLOOD, ANSWER = 256, 2.0


@dataclass(frozen=True)
class Figures:
    """What came of it: tokens per second, parts of what is provisioned, and what interactive callers waited."""

    tokens_per_second: float
    used: float
    batch: float
    interactive: float
    refused: int
    p50_ms: float
    p99_ms: float


class World:
    """Everybody before one gate; not `shared`, they all stand in one line as they come."""

    def __init__(self, chunks: int, load: float, *, shared: bool, seed: int) -> None:
        self.clock, self.draw = ManualClock(), random.Random(seed)
        self.rate, self.shared = chunks * CHUNK, shared
        self.gap = INTERACTIVE / (load * self.rate)
        self.gate = ThroughputGate("llama", Provision(self.rate, self.rate, CHUNK, burst=False), self.clock)
        self.used = {True: 0, False: 0}
        self.waits: list[float] = []
        self.refused = 0

    async def call(self, mean: int, *, batch: bool) -> None:
        tokens, began = max(10, round(self.draw.gauss(mean, mean / 4))), self.clock.now()
        taken = await self.gate.enter(round(tokens * EXPECTED), patient=batch or not self.shared)
        if not batch:
            self.waits.append(self.clock.now() - began)
        await self.clock.sleep(ANSWER)
        self.gate.settle(taken, tokens)
        self.used[batch] += tokens

    async def job(self) -> None:
        while True:
            await self.call(BATCH, batch=True)

    async def caller(self) -> None:
        try:
            await self.call(INTERACTIVE, batch=False)
        except ThroughputError:
            self.refused += 1

    async def callers(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self.clock.sleep(self.draw.expovariate(1 / self.gap))
                group.create_task(self.caller())

    async def run(self, seconds: float, settled: float) -> None:
        tasks = [asyncio.create_task(self.job()) for _ in range(FLOOD)] + [asyncio.create_task(self.callers())]
        await self.clock.sleep(settled)
        self.used, self.refused = {True: 0, False: 0}, 0
        self.waits.clear()
        await self.clock.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def simulate(
    chunks: int, *, seconds: float, shared: bool, load: float = 0.3, settled: float = 30.0, seed: int = 1
) -> Figures:
    """Let a job flood so many chunks while interactive callers want the part `load` of them, after a settling time."""
    world = World(chunks, load, shared=shared, seed=seed)
    asyncio.run(world.run(seconds, settled))
    waits = sorted(world.waits) or [float("inf")]
    both = world.used[True] + world.used[False]
    most = world.rate * seconds
    return Figures(
        tokens_per_second=both / seconds,
        used=both / most,
        batch=world.used[True] / most,
        interactive=world.used[False] / most,
        refused=world.refused,
        p50_ms=1000 * waits[len(waits) // 2],
        p99_ms=1000 * waits[int(0.99 * len(waits))],
    )
