"""Stopping: within a second, leaving no request behind and the connection usable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import custom_models
import duckdb
import pytest
from providers import status


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("rows", [1, 5000])
def test_an_interrupted_query_stops_within_a_second(con, server, rows):
    server.delay = 30.0
    caught = []

    def ask():
        try:
            con.execute(f"SELECT ai_query('chat', 'n' || i) FROM range({rows}) t(i)").fetchall()
        except duckdb.Error as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: server.requests)
    started = time.monotonic()
    con.interrupt()
    thread.join(5)

    assert time.monotonic() - started < 1.0
    assert caught
    wait_for(lambda: server.traffic.in_flight == 0)
    sent = len(server.requests)
    server.delay = 0.0
    assert con.execute("SELECT ai_query('chat', 'again')").fetchall() == [("echo: again",)]
    assert len(server.requests) == sent + 1


def test_interrupting_one_cursor_leaves_the_other_alone(con, server):
    server.delay = lambda body: 30.0 if body["messages"][0]["content"] == "slow" else 0.5
    slow, other = con.cursor(), con.cursor()

    def ask_slowly():
        with pytest.raises(duckdb.Error):
            slow.execute("SELECT ai_query('chat', 'slow')").fetchall()

    failed = threading.Thread(target=ask_slowly)
    failed.start()
    wait_for(lambda: server.requests)
    found = []
    asking = threading.Thread(target=lambda: found.extend(other.execute("SELECT ai_query('chat', 'quick')").fetchall()))
    asking.start()
    wait_for(lambda: len(server.requests) == 2)
    slow.interrupt()
    failed.join(5)
    asking.join(5)

    assert found == [("echo: quick",)]


def test_a_query_that_waits_for_a_slow_model_can_be_interrupted(custom_workspace, custom):
    custom_models.LOADED.clear()
    entity = custom_models.entity("only", "demo.slow")
    created = custom_workspace.create_endpoint("slow", {"served_entities": [entity]})
    caught = []

    def ask():
        try:
            custom.execute("SELECT ai_query('slow', 1.0::DOUBLE)").fetchall()
        except duckdb.Error as error:
            caught.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(0.3)
    custom.interrupt()
    thread.join(1.0)
    waiting = thread.is_alive()
    custom_models.LOADED.set()
    thread.join(10)

    assert created["state"]["ready"] == "NOT_READY"
    assert not waiting
    assert "'slow' was loading" in caught[0]
    assert custom.execute("SELECT ai_query('slow', 1.0::DOUBLE)").fetchall() == [(1.0,)]


def test_an_error_ends_the_query_while_other_threads_still_wait(con, server):
    def bad(body):  # the first row of each row group: whichever thread is first, meets one
        return int(body["messages"][0]["content"]) % 122_880 == 0

    server.delay = lambda body: 0.0 if bad(body) else 5.0
    server.fault, server.fault_when = status(400, "not this one"), bad
    con.execute("SET threads = 4; CREATE TABLE t AS SELECT i FROM range(300_000) t(i)")
    started = time.monotonic()

    with pytest.raises(duckdb.Error, match="not this one"):
        con.execute("SELECT max(ai_query('chat', i::VARCHAR)) FROM t").fetchall()

    assert time.monotonic() - started < 4.0


@pytest.mark.slow
def test_ctrl_c_stops_a_script_within_a_second(server, tmp_path):
    from engine_endpoints import external

    server.delay = 30.0
    script = textwrap.dedent(f"""
        import sys, time, threading, duckdb, aiquery
        with aiquery.Workspace(":memory:") as workspace:
            workspace.create_endpoint("chat", {{"served_entities": [{external(server, "llm/v1/chat", "gpt-4o")!r}]}})
            con = duckdb.connect()
            aiquery.register(con, workspace=workspace)
            con.execute("SET threads = 4")
            print("ready", flush=True)
            try:
                con.execute("SELECT ai_query('chat', 'n' || i) FROM range(5000) t(i)").fetchall()
            except BaseException as error:
                print(type(error).__name__, flush=True)
            print("usable", con.execute("SELECT 42").fetchall(), flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        wait_for(lambda: server.requests)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        lines = [process.stdout.readline() for _ in range(2)]
        seconds = time.monotonic() - started

        assert lines[1] == "usable [(42,)]\n"
        assert seconds < 1.5  # a second, and what a busy machine takes to start printing
        assert process.wait(10) == 0
