"""Jobs: every row once, whole outputs or none, and a second run that goes on with the first."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from engine_endpoints import external
from providers import status

import aiquery
from aiquery.session import connect
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.job_log import JobRecord

QUERY = "SELECT i AS id, ai_query('chat', 'n' || i) AS answer FROM range({rows}) t(i)"


def query(rows=100):
    return QUERY.format(rows=rows)


def expected(rows=100):
    return [(i, f"echo: n{i}") for i in range(rows)]


def prompt(body):
    return body["messages"][-1]["content"]


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.fixture
def session(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with connect(workspace=workspace, progress=False) as opened:
        yield opened


@pytest.fixture
def left(tmp_path):
    """What lies in the folder of the outputs."""
    return lambda: sorted(path.name for path in tmp_path.iterdir())


#: An output, what reads it, and the tables that there are then.
OUTPUTS = [
    ("out.parquet", "'out.parquet'", []),
    ("out.csv", "'out.csv'", []),
    ("out.jsonl", "'out.jsonl'", []),
    ("out.ndjson", "'out.ndjson'", []),
    ("out.json", "'out.json'", []),
    ('it\'s "odd" [1]*.csv', "glob('*odd*')", []),
    ("answers", "answers", ["answers"]),
    ("main.answers", "answers", ["answers"]),
    ('memory.main."two ""words"""', '"two ""words"""', ['two "words"']),
]


@pytest.mark.parametrize(("output", "place", "tables"), OUTPUTS)
def test_rows_come_whole_and_in_order(session, left, output, place, tables):
    session.execute("SET threads = 4")
    job = session.job(query(3000), output, key="id")

    assert (job.status().state, job.status().rows) == ("finished", 3000)
    found = session.sql(f"FROM {place}").fetchall()
    assert found == expected(3000) if "glob" not in place else [(output,)]
    assert left() == ([] if tables else [output])
    assert session.sql("SHOW TABLES").fetchall() == [(name,) for name in tables]


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049])
def test_any_number_of_rows(session, server, rows):
    job = session.job(query(rows), "out.parquet", key="id")
    assert session.sql("FROM 'out.parquet'").fetchall() == expected(rows)
    assert job.status().rows == len(server.requests) == rows


def test_the_same_job_again_asks_nothing_and_writes_the_same(session, server):
    first = session.job(query(), "out.parquet")
    before = Path("out.parquet").read_bytes()
    again = session.job(query(), "out.parquet")

    assert first.name == again.name
    assert Path("out.parquet").read_bytes() == before
    assert (again.status().from_ledger, again.status().calls) == (100, 0)
    assert len(server.requests) == 100


def test_a_job_that_failed_goes_on_where_it_was(session, server, left):
    server.fault, server.fault_when = status(400, "not this one"), lambda body: prompt(body) == "n2500"
    with pytest.raises(duckdb.Error, match="not this one"):
        session.job(query(3000), "out.parquet")
    assert left() == []
    (job,) = session.sql("SELECT state, reason FROM ai_jobs()").fetchall()
    assert job[0] == "failed"
    assert job[1].startswith("[REMOTE_FUNCTION_HTTP_FAILED_ERROR]")

    server.fault = None
    session.job(query(3000), "out.parquet")
    assert session.sql("FROM 'out.parquet'").fetchall() == expected(3000)
    assert len({prompt(body) for body in server.requests}) == 3000


def test_a_query_that_fails_itself_fails_the_job_and_leaves_nothing(session, server, left):
    sql = "SELECT ai_query('chat', 'n' || i)[7:]::INT / (i - 2500 + 1)::INT, error('no') FROM range(3000) t(i)"
    with pytest.raises(duckdb.Error, match="no"):
        session.job(sql, "out.csv")
    with pytest.raises(duckdb.Error):
        session.job(sql, "answers")
    assert left() == []
    assert session.sql("SHOW TABLES").fetchall() == []
    assert session.sql("SELECT 42").fetchall() == [(42,)]


def test_recorded_errors_are_rows(session, server):
    server.fault, server.fault_when = status(400, "not this one"), lambda body: prompt(body) in ("n3", "n5")
    job = session.job(query(), "out.parquet", on_error="record", key="id")

    assert job.status().failed == 2
    assert "Of its requests, 2 failed" in job.result
    rows = session.sql("SELECT id, answer, answer_error FROM 'out.parquet'").fetchall()
    assert [number for number, answer, _ in rows if answer is None] == [3, 5]
    assert {error["class"] for *_, error in rows if error} == {"ProviderRequestError"}
    assert {error["attempts"] for *_, error in rows if error} == {1}
    assert [(one.kind, one.requests) for one in job.errors()] == [("ProviderRequestError", 2)]
    assert "not this one" in job.status().failures[0].message


def test_failed_rows_stay_failed_until_they_are_asked_again(session, server):
    server.fault, server.fault_when = status(400, "not this one"), lambda body: prompt(body) == "n3"
    session.job(query(), "out.parquet", on_error="record")
    server.fault = None

    again = session.job(query(), "out.parquet", on_error="record")
    assert (again.status().failed, len(server.requests)) == (1, 100)
    retried = session.job(query(), "out.parquet", on_error="record", retry_failed=True)
    assert (retried.status().failed, len(server.requests)) == (0, 101)
    assert retried.errors() == []
    assert session.sql("SELECT id, answer FROM 'out.parquet'").fetchall() == expected()


@pytest.mark.parametrize(
    ("budget", "word"),
    [({"max_calls": 40}, "max_calls"), ({"max_tokens": 200}, "max_tokens"), ({"max_cost": 0.001}, "max_cost")],
)
def test_a_budget_stops_a_job_before_it_is_crossed(session, server, left, budget, word):
    sql = query().replace("'n' || i", "'n' || i, modelParameters => {max_tokens: 20}")
    job = session.job(sql, "out.parquet", **budget)
    stopped = job.status()

    assert stopped.state == "stopped"
    assert word in stopped.reason
    assert "run the job again with a larger" in job.result
    assert left() == []
    assert 0 < len(server.requests) < 100
    assert stopped.calls <= budget.get("max_calls", 100)
    assert stopped.tokens <= budget.get("max_tokens", 10_000)
    assert stopped.cost <= budget.get("max_cost", 1.0)

    session.job(sql, "out.parquet")
    assert session.sql("FROM 'out.parquet'").fetchall() == expected()
    assert len(server.requests) <= 100 + stopped.in_flight


@pytest.mark.parametrize("given", [lambda _: 0.3, lambda moment: moment, lambda moment: moment.replace(tzinfo=None)])
def test_a_deadline_stops_a_job(session, server, left, given):
    server.delay = 30.0
    started = time.monotonic()
    deadline = given(datetime.now().astimezone() + timedelta(seconds=0.3))
    job = session.job(query(), "out.parquet", deadline=deadline)

    assert time.monotonic() - started < 2.0
    assert (job.status().state, job.status().reason) == ("stopped", "Its deadline has passed.")
    assert left() == []
    server.delay = 0.0
    assert session.sql("SELECT ai_query('chat', 'x')").fetchall() == [("echo: x",)]


def test_a_job_beside_can_be_watched_paused_and_gone_on_with(session, server):
    server.delay = 0.05
    job = session.job(query(3000), "out.parquet", wait=False, name="mine")
    wait_for(lambda: job.status().answered > 200)
    job.pause()
    assert job.status().state == "paused"
    wait_for(lambda: server.traffic.in_flight == 0)
    sent = len(server.requests)
    time.sleep(0.3)
    assert len(server.requests) == sent < 3000
    assert job.status().waiting_for == "paused"
    assert "paused" in repr(job)
    assert session.sql("SELECT 42").fetchall() == [(42,)]
    server.delay = 0.0
    job.resume()

    assert job.wait(30).state == "finished"
    assert session.sql("FROM 'out.parquet'").fetchall() == expected(3000)
    assert len(server.requests) == 3000


def test_a_cancelled_job_ends_within_a_second_and_leaves_nothing(session, server, left):
    server.delay = 30.0
    job = session.job(query(), "out.parquet", wait=False)
    wait_for(lambda: server.requests)
    assert job.wait(0.01).state == "running"
    started = time.monotonic()
    job.cancel()

    assert job.wait(5).state == "cancelled"
    assert time.monotonic() - started < 1.0
    assert left() == []
    wait_for(lambda: server.traffic.in_flight == 0)


def test_an_interrupted_session_cancels_the_job_it_waits_for(session, server):
    server.delay = 30.0
    threading.Thread(target=lambda: (wait_for(lambda: server.requests), session.interrupt())).start()
    job = session.job(query(), "out.parquet")
    assert (job.status().state, job.status().reason) == ("cancelled", "Its connection was interrupted.")


def test_closing_a_session_cancels_its_jobs(workspace, server, tmp_path):
    server.delay = 30.0
    with connect(workspace=workspace) as session:
        job = session.job(query(), tmp_path / "out.parquet", wait=False)
        wait_for(lambda: server.requests)
    assert job.status().state == "cancelled"


@pytest.mark.parametrize("output", ["out.parquet", "out.csv", "out.jsonl", "out.json", "answers"])
@pytest.mark.parametrize(
    ("key", "told"),
    [("i % 3", r"0 \(4 rows\); 1 \(3 rows\)"), ("nullif(i, 3)", r"NULL \(1 row\)"), ("'x'", "x .10 rows.")],
)
def test_a_key_that_does_not_tell_rows_apart_is_refused(session, left, output, key, told):
    with pytest.raises(InvalidRequestError, match=rf"The key \(k\) .*{told}.* Nothing was written"):
        session.job(f"SELECT {key} AS k, ai_query('chat', 'n' || i) FROM range(10) t(i)", output, key=["k"])
    assert left() == []
    assert session.sql("SHOW TABLES").fetchall() == []


@pytest.mark.parametrize("output", ["out.parquet", "out.csv", "out.jsonl", "out.json", "answers"])
def test_an_empty_text_is_a_key_and_names_of_keys_have_no_case(session, output):
    sql = "SELECT CASE WHEN i > 0 THEN i::VARCHAR ELSE '' END AS \"A 'k'\", i // 10 AS b, ai_query('chat', 'a\nb' || i) FROM range(20) t(i)"
    assert session.job(sql, output, key=["a 'K'", "B"]).status().state == "finished"


def test_what_is_not_ours_is_not_overwritten(session, server):
    Path("out.csv").write_text("mine")
    session.execute("CREATE TABLE answers AS SELECT 1 AS mine; CREATE VIEW seen AS SELECT 1")
    for output in ("out.csv", "answers", "seen"):
        with pytest.raises(InvalidRequestError, match="overwrite=True"):
            session.job(query(), output)
    assert Path("out.csv").read_text() == "mine"
    assert server.requests == []
    assert session.sql("FROM ai_jobs()").fetchall() == []

    for output in ("out.csv", "answers"):
        session.job(query(), output, overwrite=True)
        session.job(query(), output)
        assert session.sql(f"FROM '{output}'" if "." in output else f"FROM {output}").fetchall() == expected()
        with pytest.raises(InvalidRequestError, match="query is another"):
            session.job(query(5), output)
        session.job(query(5), output, overwrite=True)
        with pytest.raises(InvalidRequestError, match="query is another"):
            session.job(query(), output)


REFUSED = {
    "two statements": ({"sql": "SELECT 1; SELECT 2"}, "holds SELECT, SELECT"),
    "no statement": ({"sql": " -- nothing"}, "holds nothing"),
    "no query": ({"sql": "CREATE TABLE t(i INT)"}, "holds CREATE"),
    "a pivot": ({"sql": "PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b)"}, "put a PIVOT into"),
    "no folder": ({"output": "nowhere/out.csv"}, "cannot be written .No such file"),
    "a folder": ({"output": Path()}, "is no kind of file"),
    "a folder that ends well": ({"output": "folder.csv"}, "is a folder"),
    "a file as folder": ({"output": "file/out.csv"}, "cannot be written .Not a directory"),
    "another kind": ({"output": Path("out.xlsx")}, "Let its name end in"),
    "another kind, as text": ({"output": "out.xlsx"}, "no schema 'out' for table out.xlsx"),
    "a name with a blank": ({"output": "two words"}, "neither a file"),
    "far away": ({"output": "s3://bucket/out.csv"}, "local file or a table"),
    "an unknown key": ({"key": "nope"}, "no column 'nope' for its key. It has: id, answer"),
    "an unknown policy": ({"on_error": "ignore"}, "'fail' or 'record', not 'ignore'"),
    "an empty name": ({"name": " "}, "must not be empty"),
    "a deadline that has passed": ({"deadline": datetime.now(UTC)}, "in the future"),
    "a budget below zero": ({"max_calls": -1}, "max_calls must be a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_asked(session, server, case):
    Path("folder.csv").mkdir()
    Path("file").touch()
    given, said = REFUSED[case]
    with pytest.raises(InvalidRequestError, match=said):
        session.job(**{"sql": query(), "output": "out.csv", **given})
    assert server.requests == []
    assert session.sql("FROM ai_jobs()").fetchall() == []
    assert sorted(path.name for path in Path().iterdir()) == ["file", "folder.csv"]


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT * FROM missing", "SELECT ai_query('missing', 'x')", "SELECT 1 +"])
def test_wrong_sql_is_no_job(session, sql):
    with pytest.raises(duckdb.Error):
        session.job(sql, "out.csv", on_error="record")
    assert session.sql("FROM ai_jobs()").fetchall() == []


def test_a_table_is_not_written_inside_a_transaction(session, server):
    session.execute("BEGIN")
    with pytest.raises(InvalidRequestError, match="COMMIT it first"):
        session.job(query(), "answers")
    session.execute("COMMIT")
    assert server.requests == []


def test_a_read_only_database_takes_no_table_but_gives_a_file(workspace, server, tmp_path):
    duckdb.connect(tmp_path / "my.db").close()
    with connect(tmp_path / "my.db", workspace=workspace, read_only=True) as session:
        with pytest.raises(duckdb.Error, match="read-only"):
            session.job(query(), "answers")
        assert server.requests == []
        session.job(query(), tmp_path / "out.csv")
        assert session.sql(f"FROM '{tmp_path}/out.csv'").fetchall() == expected()


def test_a_job_that_is_waited_for_sees_temporary_tables_and_python_variables(session):
    session.execute("CREATE TEMP TABLE words AS SELECT 'a' AS word")
    here = session.sql("SELECT 'b' AS word").to_arrow_table()
    session.job("SELECT ai_query('chat', word) AS x FROM (FROM words UNION ALL FROM here)", "out.csv")
    assert len(here) == 1
    assert session.sql("FROM 'out.csv'").fetchall() == [("echo: a",), ("echo: b",)]


def test_a_job_beside_finds_the_tables_of_its_session(session):
    session.execute("CREATE SCHEMA s; USE s; CREATE TABLE words AS SELECT 'a' AS word")
    job = session.job("SELECT ai_query('chat', word) AS x FROM words", "answers", wait=False)
    assert job.wait(30).state == "finished"
    assert session.sql("FROM s.answers").fetchall() == [("echo: a",)]


def test_the_session_is_as_it_was_after_a_job(session, server):
    session.job(query(), "out.csv")
    session.sql("SELECT ai_query('chat', 'n1')").fetchall()
    assert len(server.requests) == 101  # the session itself does not use the ledger


def test_databricks_sql_is_taken(session):
    session.job('SELECT ai_query("chat", "x") AS answer', "out.csv", dialect="databricks")
    assert session.sql("FROM 'out.csv'").fetchall() == [("echo: x",)]


def test_one_job_runs_once_at_a_time(session, server):
    server.delay = 30.0
    job = session.job(query(), "out.csv", wait=False, name="mine")
    for other in ({"name": "mine", "output": "b.csv"}, {"name": "other", "output": "out.csv"}):
        with pytest.raises(InvalidRequestError, match=rf"'mine'.* is running in process {os.getpid()}"):
            session.job(**{"sql": query(), **other})
    job.cancel()
    job.wait(5)
    assert sorted(path.name for path in Path().iterdir()) == []


def test_jobs_are_seen_by_other_processes_while_they_run_and_when_they_died(server, tmp_path):
    with aiquery.Workspace(tmp_path / "ws") as ours, aiquery.Workspace(tmp_path / "ws") as theirs:
        ours.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
        server.delay = 30.0
        with connect(workspace=ours) as session, connect(workspace=theirs) as other:
            job = session.job(query(), tmp_path / "out.csv", wait=False, name="mine")
            wait_for(lambda: other.sql("SELECT in_flight FROM ai_jobs()").fetchall() == [(100,)])
            assert other.sql("SELECT name, state, pid FROM ai_jobs()").fetchall() == [("mine", "running", os.getpid())]
            job.cancel()
            job.wait(5)
            assert other.sql("SELECT state FROM ai_jobs()").fetchall() == [("cancelled",)]

        died = subprocess.Popen([sys.executable, "-c", ""])
        died.wait()
        begun, _ = theirs.job_log.begin(JobRecord(name="dead", sql="", output="x", draft="", run="1"))
        with ours._store.write() as store:
            store.execute("UPDATE jobs SET pid = ? WHERE name = 'dead'", (died.pid,))
        assert ours.job_log.find("dead").state == "interrupted"
        theirs.job_log.begin(JobRecord(name="dead", sql="", output="x", draft="", run="2"))
        assert not ours.job_log.update(begun), "a run that was taken over must not speak for the job"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("pid = pid", "running"),
        ("updated_ms = updated_ms - 20000", "running"),
        ("updated_ms = updated_ms - 40000", "interrupted"),
        ("run = 'of an earlier process with this number'", "interrupted"),
        ("host = 'elsewhere', pid = 0", "running"),
        ("state = 'failed', pid = 0", "failed"),
    ],
)
def test_whether_the_process_of_a_job_lives(workspace, change, state):
    workspace.job_log.begin(JobRecord(name="mine", sql="", output="x", draft="", run="1"))
    with workspace._store.write() as store:
        store.execute(f"UPDATE jobs SET {change}")
    assert workspace.job_log.find("mine").state == state


def test_answers_can_be_read_while_a_job_runs(session, server):
    server.delay = lambda body: 30.0 if prompt(body) == "n50" else 0.0
    server.fault, server.fault_when = status(400, "not this one"), lambda body: prompt(body) == "n3"
    job = session.job(query(), "out.csv", wait=False, name="mine", on_error="record")
    wait_for(lambda: session.sql("SELECT count(*) FROM ai_results('mine')").fetchall() == [(99,)])

    answers = dict(session.sql("SELECT answer, error_message FROM ai_results('mine')").fetchall())
    assert answers["echo: n7"] is None
    assert "not this one" in answers[None]
    assert session.sql("SELECT count(*) FROM ai_results('mine', latest := 5)").fetchall() == [(5,)]
    job.cancel()
    job.wait(5)
    with pytest.raises(duckdb.Error, match="no job 'nope'"):
        session.sql("FROM ai_results('nope')").fetchall()


def test_usage_tells_jobs_apart(session):
    session.job(query(10), "out.csv", name="mine")
    session.sql("SELECT ai_query('chat', 'x')").fetchall()
    session.sql("SELECT ai_query('embeddings', 'x')").fetchall()
    rows = session.sql("FROM ai_usage()").fetchall()

    assert [row[:5] for row in rows] == [
        ("chat", "gpt-4o", None, 1, 1),
        ("chat", "gpt-4o", "mine", 10, 10),
        ("embeddings", "text-embedding-3-small", None, 1, 1),
    ]
    columns = session.sql("FROM ai_usage()").columns
    mine = dict(zip(columns, rows[1], strict=True))
    assert mine["errors"] == 0
    assert mine["cost"] > 0
    assert 0 < mine["latency_p50_ms"] <= mine["latency_p99_ms"]


def test_views_are_not_made_when_a_statement_is_planned(session, workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(workspace.job_log, "all", lambda: asked.append(1) or [])
    session.execute("EXPLAIN FROM ai_jobs()").fetchall()
    session.execute("PREPARE jobs AS SELECT name FROM ai_jobs() WHERE state = 'running' ORDER BY name LIMIT 1")
    assert asked == []
    session.execute("EXECUTE jobs").fetchall()
    session.execute("EXECUTE jobs").fetchall()
    assert len(asked) == 2


def test_two_sessions_of_one_database_see_their_own_workspaces(workspace, tmp_path):
    with aiquery.Workspace(":memory:") as other, connect(tmp_path / "my.db", workspace=workspace) as first:
        with connect(tmp_path / "my.db", workspace=other) as second:
            first.job("SELECT 1 AS one", tmp_path / "out.csv", name="mine")
            assert first.sql("SELECT name FROM ai_jobs()").fetchall() == [("mine",)]
            assert second.sql("SELECT name FROM ai_jobs()").fetchall() == []
        assert first.sql("SELECT name FROM ai_jobs()").fetchall() == [("mine",)]


def test_a_workspace_that_cannot_be_written_does_not_end_a_job(session, workspace, monkeypatch, caplog, server):
    from aiquery_serving.errors import WorkspaceError

    def full(_):
        raise WorkspaceError("The disk is full.")

    monkeypatch.setattr(workspace.job_log, "update", full)
    job = session.job(query(), "out.csv")
    assert job.status().state == "finished"
    assert "The disk is full." in caplog.text


SCRIPT = """
import sys
import aiquery
from aiquery.session import connect

workspace = aiquery.Workspace({workspace!r})
workspace.create_endpoint("chat", {{"served_entities": [{entity!r}]}})
session = connect(workspace=workspace)
"""


def script(server, tmp_path, body):
    entity = external(server, "llm/v1/chat", "gpt-4o")
    text = SCRIPT.format(workspace=str(tmp_path / "ws"), entity=entity) + textwrap.dedent(body)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", text], text=True, cwd=tmp_path, **pipes)


def records(tmp_path):
    with aiquery.Workspace(tmp_path / "ws") as workspace:
        return {job.name: job for job in workspace.job_log.all()}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_ctrl_c_cancels_a_job_within_a_second(server, tmp_path, threads):
    server.delay = lambda body: 0.0 if int(prompt(body)[1:]) < 50 else 30.0
    body = f"""
        session.execute("SET threads = {threads}")
        print("ready", flush=True)
        try:
            session.job({query(5000)!r}, "out.csv", name="mine")
        except KeyboardInterrupt:
            print("cancelled", flush=True)
        print(session.sql("SELECT 42").fetchall(), flush=True)
    """
    with script(server, tmp_path, body) as process:
        assert process.stdout.readline() == "ready\n"
        wait_for(lambda: len(server.requests) > 50)
        time.sleep(0.3)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "cancelled\n"
        assert time.monotonic() - started < 1.5
        assert process.stdout.readline() == "[(42,)]\n"
        assert process.wait(10) == 0
    job = records(tmp_path)["mine"]
    assert (job.state, job.reason) == ("cancelled", "Ctrl-C was pressed.")
    assert [path.name for path in tmp_path.iterdir()] == ["ws"]

    server.delay, sent = 0.0, len(server.requests)
    with aiquery.Workspace(tmp_path / "ws") as workspace, connect(workspace=workspace) as session:
        again = session.job(query(5000), tmp_path / "out.csv")
        assert again.status().from_ledger >= 50
        assert len(server.requests) - sent <= 4950


@pytest.mark.slow
def test_a_program_that_ends_cancels_its_jobs_beside(server, tmp_path):
    server.delay = 30.0
    body = f"""
        session.job({query(100)!r}, "out.csv", name="mine", wait=False)
        print("ready", flush=True)
        sys.exit(3)
    """
    started = time.monotonic()
    with script(server, tmp_path, body) as process:
        assert process.stdout.readline() == "ready\n"
        assert process.wait(15) == 3
        assert "Traceback" not in process.stderr.read()
    assert time.monotonic() - started < 15
    assert records(tmp_path)["mine"].state == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_a_full_disk_fails_a_job_that_can_go_on_later(server, tmp_path, output):
    server.answer = lambda text: random.Random(text).randbytes(1000).hex()
    body = f"""
        import duckdb, resource
        sql = {query(3000)!r}
        job = session.job(sql, "other.parquet")  # so that the ledger is there
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        try:
            session.job(sql, {output!r}, name="mine")
        except duckdb.Error as error:
            print("failed", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(session.job(sql, {output!r}, name="mine").status().calls, flush=True)
    """
    with script(server, tmp_path, body) as process:
        out, err = process.communicate(timeout=60)
    assert out == "failed\n0\n", err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["other.parquet", output, "ws"])
