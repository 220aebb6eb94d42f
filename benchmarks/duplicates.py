"""Calls sent for 2,000 rows of 100 distinct prompts."""

from __future__ import annotations

from providers import OpenAIServer

from benchmarks.report import report
from benchmarks.setting import connected


def main() -> None:
    with OpenAIServer() as server, connected(server.url) as con:
        con.execute("SELECT ai_query('chat', 'prompt ' || i % 100) FROM range(2000) t(i)").fetchall()
        sent = len(server.requests)
    report("duplicates", [{"rows": 2000, "distinct": 100, "calls sent": sent}], [("100 calls", sent == 100)])
