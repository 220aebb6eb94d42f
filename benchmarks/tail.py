"""50,000 rows against a model with a long tail: how much of its concurrency a query uses.

Latency is lognormal with a p99 of eight times the mean of 40 ms. The reference is what the concurrency allows
(rows x mean / concurrency); the ceiling asks the same of the gateway, without DuckDB.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time

import duckdb

import aiquery
from aiquery_udfs.engine_thread import engine_thread
from benchmarks.external_throughput import Provider, provider
from benchmarks.report import report
from benchmarks.setting import chat_entity

MEAN = 0.04
#: With this spread the 99th percentile of a lognormal is eight times its mean.
SIGMA = 1.2075
MODES = ("ceiling", "plain", "look_ahead", "session")


class Uneven(Provider):
    """Answers late now and then."""

    draw = random.Random(1)

    def wait(self) -> float:
        return self.draw.lognormvariate(math.log(self.delay) - SIGMA**2 / 2, SIGMA)


def ceiling(workspace: aiquery.Workspace, rows: int, in_flight: int) -> None:
    """Ask the gateway alone, as many at once as it is allowed."""

    async def worker(numbers) -> None:
        for i in numbers:
            body = {"messages": [{"role": "user", "content": f"ceiling {i}"}], "temperature": 0.0}
            await workspace.gateway.invoke("chat", body, key=b"%d" % i)

    async def workers() -> None:
        numbers = iter(range(rows))
        await asyncio.gather(*(worker(numbers) for _ in range(in_flight)))

    engine_thread.run(workers())


def query(workspace: aiquery.Workspace, rows: int, mode: str) -> None:
    """Ask for a column of a table."""
    if mode == "session":
        con = aiquery.connect(workspace=workspace, progress=False)
    else:
        con = duckdb.connect()
        aiquery.register(con, workspace, look_ahead=mode == "look_ahead")
    with con:
        con.execute(f"CREATE TABLE t AS SELECT '{mode} ' || i AS w FROM range({rows}) r(i)")
        assert len(con.execute("SELECT w, ai_query('chat', w) FROM t").fetchall()) == rows


def measure(url: str, rows: int, in_flight: int) -> dict:
    """Return the share of the concurrency that each mode uses."""
    shares: dict = {"in flight": in_flight, "rows": rows}
    with aiquery.Workspace(":memory:") as workspace:
        workspace.create_endpoint("chat", {"served_entities": [chat_entity(url, in_flight)]})
        for mode in MODES:
            started = time.perf_counter()
            ceiling(workspace, rows, in_flight) if mode == "ceiling" else query(workspace, rows, mode)
            shares[mode] = rows * MEAN / in_flight / (time.perf_counter() - started)
            print(f"{in_flight} in flight, {mode}: {shares[mode]:.3f}", flush=True)
    return shares


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--in-flight", type=int, nargs="+", default=[64, 256])
    chosen = options.parse_args()
    with provider(MEAN, Uneven) as url:
        rows = [measure(url, chosen.rows, in_flight) for in_flight in chosen.in_flight]
    aims = [(f"{row['in flight']} in flight: the ceiling >= 0.95", row["ceiling"] >= 0.95) for row in rows]
    for row in rows:
        for mode in ("look_ahead", "session"):
            share = row[mode] / row["ceiling"]
            aims.append((f"{row['in flight']} in flight: {mode} >= 0.95 of the ceiling ({share:.2f})", share >= 0.95))
    report("tail", rows, aims)
