"""The workspace's database: several threads and processes, transactions, and the usage in it."""

import logging
import sqlite3
import subprocess
import sys
import threading

import pytest

from aiquery_serving.errors import WorkspaceError
from aiquery_serving.store import MIGRATIONS, Store
from aiquery_serving.usage import Invocation, UsageLog


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    made = Store(tmp_path / "deep" / "ws" if request.param == "file" else None)
    yield made
    made.close()


def put(connection, key):
    connection.execute("INSERT INTO secrets VALUES ('s', ?, '', x'00')", (key,))


def keys(store):
    with store.read() as connection:
        return [key for (key,) in connection.execute("SELECT key FROM secrets ORDER BY key")]


def put_two_and_fail(store):
    with store.write() as connection:
        put(connection, "b")
        with store.write() as inner:  # joins the outer one
            put(inner, "c")
        raise KeyError


def revision(store):
    return store.glance("SELECT number FROM endpoints_revision")[0]


def call(endpoint="e", served_entity="m", started_ms=1, status="ok", **others):
    numbers = {"latency_ms": 2.0, "rows": 3, "prompt_tokens": 4, "completion_tokens": 5, "attempts": 1}
    return Invocation(endpoint, served_entity, 1, started_ms, status=status, caller="me", **{**numbers, **others})


def test_a_transaction_is_stored_whole_or_not_at_all(store):
    with store.write() as connection:
        put(connection, "a")
    with pytest.raises(KeyError):
        put_two_and_fail(store)
    assert keys(store) == ["a"]


def test_threads_take_turns(store):
    def work(name):
        for number in range(50):
            with store.write() as connection:
                put(connection, f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(store)) == 200


def test_a_glance_never_waits_for_another_thread(store):
    seen = []
    with store.write():
        thread = threading.Thread(target=lambda: seen.append(store.glance("SELECT 1")))
        thread.start()
        thread.join()
    assert seen == [None]
    assert store.glance("SELECT 1") == (1,)


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO endpoints VALUES ('b', 'id-b', '{}')",
        "UPDATE endpoints SET document = '[]'",
        "DELETE FROM endpoints",
    ],
)
def test_every_change_of_an_endpoint_raises_the_revision(store, change):
    with store.write() as connection:
        connection.execute("INSERT INTO endpoints VALUES ('a', 'id-a', '{}')")
    before = revision(store)
    with store.write() as connection:
        connection.execute(change)
    assert revision(store) == before + 1


def test_two_in_memory_stores_share_nothing():
    one, other = Store(None), Store(":memory:")
    with one.write() as connection:
        put(connection, "a")
    assert (keys(one), keys(other)) == (["a"], [])
    assert (one.folder, one.path) == (None, None)
    one.close()
    other.close()


WRITER = """
import sys
from aiquery_serving.store import Store
store = Store(sys.argv[1])
for number in range(100):
    with store.write() as connection:
        connection.execute("INSERT INTO secrets VALUES (?, ?, '', x'00')", (sys.argv[2], str(number)))
store.close()
"""


def test_processes_make_one_workspace_together_and_lose_nothing(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "new")]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    writers = [subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE, text=True) for name in "abc"]
    for writer in writers:
        assert writer.communicate() == (None, "")
    store = Store(tmp_path / "new")
    with store.read() as connection:
        assert connection.execute("SELECT count(*) FROM secrets").fetchone() == (300,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()


def test_a_new_folder_is_kept_out_of_repositories_and_an_old_one_is_left_alone(tmp_path):
    Store(tmp_path / "new").close()
    assert (tmp_path / "new" / ".gitignore").read_text() == "*\n"
    Store(tmp_path).close()
    assert not (tmp_path / ".gitignore").exists()


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(WorkspaceError, match=r"is closed\. Open it again"), store.read() as connection:
        connection.execute("SELECT 1")


# Usage.


@pytest.fixture
def usage(store):
    log = UsageLog(store)
    yield log
    log.close()


def test_totals_add_up_per_endpoint_and_served_entity(usage):
    for one in [
        call("e", "m", latency_ms=2.0),
        call("e", "m", latency_ms=4.0, status="ProviderTimeoutError", rows=1),
        call("e", "n"),
        call("d", "m"),
    ]:
        usage.record(one)
    assert [(t["endpoint"], t["served_entity"]) for t in usage.totals()] == [("d", "m"), ("e", "m"), ("e", "n")]
    assert usage.totals("e")[0] == {
        "endpoint": "e",
        "served_entity": "m",
        "calls": 2,
        "rows": 4,
        "errors": 1,
        "prompt_tokens": 8,
        "completion_tokens": 10,
        "mean_latency_ms": 3.0,
    }


def test_totals_may_begin_at_a_time(usage):
    for started_ms in (10, 20, 30):
        usage.record(call(started_ms=started_ms))
    assert [total["calls"] for total in usage.totals(since_ms=20)] == [2]
    assert usage.totals("nobody", since_ms=0) == []


def test_totals_and_rows_may_be_those_of_a_job(usage):
    for started_ms, job in [(1, ""), (2, "nightly"), (3, "nightly"), (4, "weekly")]:
        usage.record(call(started_ms=started_ms, job=job))
    assert [total["calls"] for total in usage.totals(job="nightly")] == [2]
    assert [total["calls"] for total in usage.totals(job="")] == [1]
    assert usage.rows(job="weekly") == [("e", "m", 1, 4, 2.0, 3, 4, 5, "ok", 1, "me", "weekly")]
    assert [row[3] for row in usage.rows(since_ms=2, job="nightly")] == [2, 3]
    assert (len(usage.rows()), usage.rows(endpoint="nobody")) == (4, [])


def test_a_workspace_from_before_jobs_keeps_its_usage(tmp_path):
    old = sqlite3.connect(tmp_path / "workspace.db")
    old.executescript(MIGRATIONS[0] + "INSERT INTO usage VALUES ('e', 'm', 1, 1, 2.0, 3, 4, 5, 'ok', 1, 'me');")
    old.execute("PRAGMA user_version = 1")
    old.close()
    store = Store(tmp_path)
    assert [row[-1] for row in UsageLog(store).rows()] == [""]
    store.close()


def test_the_usage_of_two_processes_adds_up(tmp_path):
    stores = [Store(tmp_path), Store(tmp_path)]
    logs = [UsageLog(store) for store in stores]
    for log in logs:
        log.record(call())
    logs[0].flush()
    assert logs[1].totals()[0]["calls"] == 2
    for each in [*logs, *stores]:
        each.close()


def test_watchers_see_every_invocation_until_they_end_and_cannot_fail_one(usage, caplog):
    def broken(invocation):
        raise ValueError("broken bar")

    seen = []
    usage.subscribe(broken)
    unsubscribe = usage.subscribe(seen.append)
    usage.record(call("a"))
    unsubscribe()
    usage.record(call("b"))
    assert [invocation.endpoint for invocation in seen] == ["a"]
    assert "broken bar" in caplog.text
    assert len(usage.totals()) == 2


def test_recording_from_many_threads_loses_nothing(usage):
    def work():
        for _ in range(500):
            usage.record(call())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert usage.totals()[0]["calls"] == 2000


def test_the_thread_writes_by_itself_and_ends_when_idle(store, monkeypatch):
    monkeypatch.setattr("aiquery_serving.usage.FLUSH_SECONDS", 0.001)
    usage = UsageLog(store)
    for expected in (1, 2):  # the second record starts a thread again
        usage.record(call())
        if thread := usage._thread:
            thread.join(10)
        assert usage._thread is None
        with store.read() as connection:
            assert connection.execute("SELECT count(*) FROM usage").fetchone() == (expected,)
    usage.close()


def test_closing_writes_what_is_left_and_ends_the_thread(store):
    others = set(threading.enumerate())  # of workspaces that are open for a whole run of the tests
    usage = UsageLog(store)
    usage.record(call())
    usage.close()
    assert not [t for t in threading.enumerate() if t.name == "aiquery-usage" and t not in others]
    assert UsageLog(store).totals()[0]["calls"] == 1


def test_a_program_that_just_ends_has_its_usage_written(tmp_path):
    program = (
        "import sys; from aiquery_serving.store import Store;"
        "from aiquery_serving.usage import Invocation, UsageLog;"
        "UsageLog(s := Store(sys.argv[1])).record(Invocation('e', 'm', 1, 1, 1.0, 1, 0, 0, 'ok', 1, ''))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    store = Store(tmp_path)
    assert UsageLog(store).totals()[0]["calls"] == 1
    store.close()


def test_usage_that_cannot_be_written_is_counted_warned_of_once_and_written_later(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("aiquery_serving.usage.MOST_HELD", 2)
    store = Store(tmp_path)
    usage = UsageLog(store)
    with store.write() as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON usage BEGIN SELECT RAISE(FAIL, 'no room'); END")
    with caplog.at_level(logging.WARNING, "aiquery.usage"):
        for job in "aaabb":
            usage.record(call(job=job))
            usage.flush()
    assert caplog.text.count("only counted in memory") == 1
    assert [usage.totals(job=job)[0]["calls"] for job in (None, "a", "b")] == [5, 3, 2]
    assert [row[-1] for row in usage.rows()] == ["b", "b"]
    with store.write() as connection:
        connection.execute("DROP TRIGGER full")
    usage.flush()
    with store.read() as connection:
        assert connection.execute("SELECT count(*) FROM usage").fetchone() == (2,)
    assert usage.totals()[0]["calls"] == 5
    usage.close()
    store.close()
