"""500 rows against a provider that allows 300 requests in any 10 seconds; ideal is 10.1 s.

(a) the provider says so in `x-ratelimit-*` headers; (b) only by 429 and `Retry-After`.
"""

from __future__ import annotations

import time

from providers import OpenAIServer

from benchmarks.report import report
from benchmarks.setting import connected

ROWS = 500


def run(*, headers: bool) -> dict:
    with OpenAIServer(limit=(300, 10.0), headers=headers, delay=0.02) as server, connected(server.url) as con:
        started = time.perf_counter()
        found = con.execute(f"SELECT ai_query('chat', 'row ' || i) FROM range({ROWS}) t(i)").fetchall()
        seconds = time.perf_counter() - started
        answered = sum(answer is not None for (answer,) in found)
        return {
            "provider tells": "headers" if headers else "429 only",
            "seconds": seconds,
            "429s": server.stats.too_many,
            "rows": answered,
            "in flight": server.traffic.max_in_flight,
        }


def main() -> None:
    told, silent = run(headers=True), run(headers=False)
    report(
        "hard_limit",
        [told, silent],
        [
            (
                "(a) <= 10.6 s, <= 5 429s, 500 rows",
                told["seconds"] <= 10.6 and told["429s"] <= 5 and told["rows"] == ROWS,
            ),
            (
                "(b) <= 12 s, no more 429s than were in flight, 500 rows",
                silent["seconds"] <= 12 and silent["429s"] <= silent["in flight"] and silent["rows"] == ROWS,
            ),
        ],
    )
