"""A batch job that wants all of a provisioned throughput, and interactive callers beside it: who gets how much, when.

By a manual clock, so it takes seconds: the gate is the real one, requests and their tokens are drawn. `in one line` is
what comes of it when everybody waits in the order in which they came. With `--real` a small Llama answers, by the clock
on the wall: the job and the callers ask an endpoint of it, provisioned or not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

from provisioned_world import CHUNK, Figures, simulate

import aiquery
from aiquery_serving.chunk_sizes import ChunkSizes
from aiquery_serving.errors import ThroughputError
from aiquery_serving.store import Store
from aiquery_serving.throughput.sharing import BATCH_SHARE
from benchmarks.report import report

#: Seconds that are measured, and what interactive callers want, as parts of what is provisioned.
SECONDS, LOADS = 120, (0.1, 0.3, 0.6, 1.2)
#: Of what a model was seen to do, the part that is provisioned.
PROVISIONED = 0.75


def row(chunks: int, load: float, how: str, figures: Figures) -> dict:
    return {
        "chunks": chunks,
        "provisioned": chunks * CHUNK,
        "interactive want": f"{load:.0%}",
        "how": how,
        "tokens/s": round(figures.tokens_per_second),
        "used": f"{figures.used:.0%}",
        "batch has": f"{figures.batch:.0%}",
        "interactive have": f"{figures.interactive:.0%}",
        "refused": figures.refused,
        "p50 ms": round(figures.p50_ms),
        "p99 ms": round(figures.p99_ms),
    }


def simulated() -> None:
    rows, aims = [], []
    for chunks in (2, 4, 6):
        for load in LOADS:
            shared = simulate(chunks, seconds=SECONDS, shared=True, load=load)
            in_one_line = simulate(chunks, seconds=SECONDS, shared=False, load=load)
            rows += [row(chunks, load, "shared", shared), row(chunks, load, "in one line", in_one_line)]
            aims.append((shared.used >= 0.97, shared.batch >= 0.95 * BATCH_SHARE, load > 0.5 or shared.p99_ms <= 1000))
    report(
        "provisioned",
        rows,
        [
            ("the job and the callers together use 97 % of what is provisioned", all(used for used, _, _ in aims)),
            ("batch work has its quarter when callers want more than there is", all(batch for _, batch, _ in aims)),
            ("callers who want up to 30 % wait less than a second, 99 of 100", all(wait for _, _, wait in aims)),
        ],
    )


class Asking:
    """A job and interactive callers before one endpoint of a workspace."""

    def __init__(self, gateway, endpoint: str, *, interactive_first: bool, gap: float) -> None:
        self.gateway, self.endpoint = gateway, endpoint
        self.interactive_first, self.gap = interactive_first, gap
        self.draw, self.tokens, self.refused = random.Random(1), {True: 0, False: 0}, 0
        self.took: list[float] = []
        self.until = 0.0

    async def call(self, *, batch: bool) -> None:
        text = " ".join(self.draw.choices(("review", "good", "bad", "product", "table"), k=12))
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 32, "temperature": 1.0}
        began = time.monotonic()
        answer = await self.gateway.invoke(self.endpoint, body, patient=batch or not self.interactive_first)
        if time.monotonic() <= self.until:
            self.tokens[batch] += answer.usage.total_tokens
        if not batch:
            self.took.append(time.monotonic() - began)

    async def job(self) -> None:
        while time.monotonic() < self.until:
            await self.call(batch=True)

    async def caller(self) -> None:
        try:
            await self.call(batch=False)
        except ThroughputError:
            self.refused += 1

    async def run(self, seconds: float, *, jobs: int = 128) -> Asking:
        self.until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(self.job())
            while self.gap and time.monotonic() < self.until:
                await asyncio.sleep(self.draw.expovariate(1 / self.gap))
                group.create_task(self.caller())
        return self

    def figures(self, how: str, provisioned: int | None, seconds: float) -> dict:
        took = sorted(self.took) or [float("nan")]
        return {
            "how": how,
            "provisioned": provisioned or "",
            "tokens/s": round(sum(self.tokens.values()) / seconds),
            "interactive": len(took),
            "refused": self.refused,
            "p50 ms": round(1000 * took[len(took) // 2]),
            "p99 ms": round(1000 * took[int(0.99 * len(took))]),
        }


async def really(workspace: aiquery.Workspace, seconds: float) -> list[dict]:
    gateway, rows = workspace.gateway, []
    await Asking(gateway, "free", interactive_first=True, gap=0).run(seconds / 4)
    seen = sum((await Asking(gateway, "free", interactive_first=True, gap=0).run(seconds)).tokens.values()) / seconds
    chunk = max(10, int(PROVISIONED * seen / 2))
    ChunkSizes(Store(workspace.path), workspace.clock).learn("system.ai.small/1", chunk)
    served = {"name": "small", "entity_name": "system.ai.small", "entity_version": "1", "burst_scaling_enabled": False}
    bounds = {"min_provisioned_throughput": 2 * chunk, "max_provisioned_throughput": 2 * chunk}
    workspace.create_endpoint("provisioned", {"served_entities": [served | bounds]})
    await asyncio.to_thread(workspace.wait, "provisioned", 60)
    gap = 45 / (0.2 * 2 * chunk)
    for how, endpoint, first in (
        ("not provisioned", "free", True),
        ("in one line", "provisioned", False),
        ("shared", "provisioned", True),
    ):
        asked = await Asking(gateway, endpoint, interactive_first=first, gap=gap).run(seconds)
        rows.append(asked.figures(how, 2 * chunk if endpoint == "provisioned" else None, seconds))
    await gateway.close()
    return rows


def real(seconds: float) -> None:
    import torch
    from tiny_models import tiny_llama

    with tempfile.TemporaryDirectory() as folder, aiquery.Workspace(f"{folder}/workspace") as workspace:
        workspace.sources.alias("system.ai.small", str(tiny_llama(Path(folder), context=2048)))
        served = {"name": "small", "entity_name": "system.ai.small", "entity_version": "2"}
        workspace.create_endpoint("free", {"served_entities": [served]})
        workspace.wait("free", 120)
        rows = asyncio.run(really(workspace, seconds))
    shared = rows[-1]
    report(
        f"provisioned_real_{'gpu' if torch.cuda.is_available() else 'cpu'}",
        rows,
        [
            ("no more than 105 % of what is provisioned", shared["tokens/s"] <= 1.05 * shared["provisioned"]),
            ("at least 90 % of it", shared["tokens/s"] >= 0.9 * shared["provisioned"]),
            ("callers have answers in half the time of one line", 2 * shared["p50 ms"] <= rows[-2]["p50 ms"]),
        ],
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--real", action="store_true", help="let a small Llama answer (needs aiquery[llm])")
    options.add_argument("--seconds", type=float, default=20.0, help="of each real run")
    chosen = options.parse_args()
    if chosen.real:
        real(chosen.seconds)
    else:
        simulated()
