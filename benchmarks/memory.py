"""Peak memory of a job over a million rows, against one over a tenth of them; each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import aiquery
from benchmarks.external_throughput import provider
from benchmarks.report import report
from benchmarks.setting import chat_entity

IN_FLIGHT = 256


def work(url: str, rows: int, pipe: Connection) -> None:
    """Run a job over distinct prompts; tell the seconds it took and the most memory the process has held."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, aiquery.Workspace(Path(folder) / "workspace") as workspace:
        workspace.create_endpoint("chat", {"served_entities": [chat_entity(url, IN_FLIGHT)]})
        with aiquery.connect(workspace=workspace, progress=False) as session:
            query = f"SELECT i, ai_query('chat', 'row ' || i) AS answer FROM range({rows}) t(i)"
            session.job(query, output=f"{folder}/out.parquet")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    pipe.send({"rows": rows, "seconds": time.perf_counter() - started, "peak MiB": peak})


def measure(url: str, rows: int) -> dict:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(url, rows, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    print(f"{rows:,} rows: {found['seconds']:.0f} s, {found['peak MiB']:.0f} MiB", flush=True)
    return found | {"rows/s": rows / found["seconds"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--rate", type=float, default=10_000, help="answers a second that the provider gives at most")
    chosen = options.parse_args()
    with provider(IN_FLIGHT / chosen.rate) as url:
        small, large = (measure(url, rows) for rows in (chosen.rows // 10, chosen.rows))
    ratio = large["peak MiB"] / small["peak MiB"]
    report("memory", [small, large], [(f"ten times the rows, at most 1.2 of the memory ({ratio:.2f})", ratio <= 1.2)])
