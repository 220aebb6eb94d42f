"""A job is killed (SIGKILL) when half of its rows are answered, and run again: what is paid in all."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import duckdb
from providers import OpenAIServer

import aiquery
from benchmarks.report import report
from benchmarks.setting import chat_entity

IN_FLIGHT = 64


def work(folder: str, url: str, rows: int) -> None:
    """Run the job to its end."""
    with aiquery.Workspace(Path(folder) / "workspace") as workspace:
        if not workspace.list_endpoints():
            workspace.create_endpoint("chat", {"served_entities": [chat_entity(url, IN_FLIGHT)]})
        with aiquery.connect(workspace=workspace, progress=False) as session:
            text = f"SELECT i, ai_query('chat', 'row ' || i) AS answer FROM range({rows}) t(i)"
            session.job(text, output=f"{folder}/out.parquet", key="i")


def run(server: OpenAIServer, folder: str, rows: int, kill_at: int | None) -> int:
    """Run the job in a process of its own, until so many calls have come; return how many were in flight then."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder, server.url, rows))
    process.start()
    in_flight = 0
    while process.is_alive():
        if kill_at is not None and len(server.requests) >= kill_at:
            in_flight = server.traffic.in_flight
            process.kill()
        time.sleep(0.005)
    process.join()
    return in_flight


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=10_000)
    rows = options.parse_args().rows
    with tempfile.TemporaryDirectory() as folder, OpenAIServer(delay=0.02) as server:
        in_flight = run(server, folder, rows, rows // 2)
        first = len(server.requests)
        run(server, folder, rows, None)
        paid = len(server.requests)
        right = duckdb.sql(
            f"SELECT count(*) FROM '{folder}/out.parquet' WHERE answer = 'echo: row ' || i"
        ).fetchall() == [(rows,)]
    report(
        "resume",
        [{"rows": rows, "calls when killed": first, "in flight": in_flight, "paid in all": paid, "complete": right}],
        [
            (f"paid <= rows + {IN_FLIGHT}, what may be in flight", paid <= rows + IN_FLIGHT),
            ("every row is there", right),
        ],
    )
