"""Jobs that are killed at any moment: what was answered is not asked again, and the output is what it would have been."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import duckdb
import pytest
from engine_endpoints import external
from providers import OpenAIServer

ROWS = 3000
#: Kills; more of them with `AIQUERY_KILL_ROUNDS=50`.
ROUNDS = int(os.environ.get("AIQUERY_KILL_ROUNDS", "5"))
#: A kill comes so many seconds after the job began, at the latest.
LONGEST = 1.2
#: Calls that are under way at once, at most: their answers included that are not on disk yet.
WINDOW = 256
SCRIPT = """
import sys
import aiquery
from aiquery.session import connect

with aiquery.Workspace(sys.argv[1]) as workspace:
    if not workspace.list_endpoints():
        workspace.create_endpoint("chat", {{"served_entities": [{entity!r}]}})
    with connect(workspace=workspace) as session:
        print("begun", flush=True)
        sql = "SELECT i AS id, ai_query('chat', 'n' || i) AS answer FROM range({rows}) t(i)"
        job = session.job(sql, sys.argv[2], key="id")
        print(job.status().state, job.status().calls, flush=True)
"""


@pytest.fixture(scope="module")
def server():
    with OpenAIServer(delay=0.005) as running:
        yield running


def run(server, folder, output):
    text = SCRIPT.format(entity=external(server, "llm/v1/chat", "gpt-4o"), rows=ROWS)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(folder / "ws"), str(folder / output)], stdout=subprocess.PIPE, text=True
    )


def rows(path):
    return duckdb.sql(f"FROM '{path}'").fetchall()


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("output", ["out.parquet", "out.csv"])
def test_a_killed_job_pays_only_for_what_was_in_flight(server, tmp_path, output):
    draw = random.Random(output)
    kills = []
    for number in range(ROUNDS if output.endswith("parquet") else 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        server.requests.clear()
        with run(server, folder, output) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(draw.random() * LONGEST)
            before = len(server.requests)
            process.kill()
        sent = len(server.requests)
        complete = (folder / output).exists()
        with run(server, folder, output) as process:
            said, _ = process.communicate(timeout=60)

        twice = len(server.requests) - ROWS
        kills.append((before, twice))
        assert process.returncode == 0
        assert said == f"begun\nfinished {ROWS - sent + twice}\n"
        assert rows(folder / output) == [(i, f"echo: n{i}") for i in range(ROWS)]
        assert sorted(path.name for path in folder.iterdir()) == [output, "ws"]
        assert 0 <= twice <= WINDOW
        assert not complete or twice == 0
    print("\n(sent before the kill, sent twice):", *sorted(kills))
