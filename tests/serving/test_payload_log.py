"""Inference tables: every request in them once, in files that stay few, whatever happens to the disk."""

from __future__ import annotations

import gc
import json
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, date, datetime

import pyarrow.parquet as pq
import pytest

from aiquery_serving.endpoint import AutoCapture
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.payload_log import PayloadLog, PayloadRow, check_inference_table_change, is_logged
from aiquery_serving.payload_log import files as table_files
from aiquery_serving.payload_log import log as payload_log
from aiquery_serving.payload_log.files import PayloadFiles
from aiquery_serving.payload_log.rows import MOST_BYTES, SCHEMA, table

NOON = 1_700_000_000_000
MEBIBYTE = 1_048_576


def row(number=0, endpoint="e1", **more):
    members = {
        "endpoint_id": endpoint,
        "request_time_ms": NOON + number,
        "status_code": 200,
        "execution_duration_ms": 12.6,
        "request": {"messages": [{"role": "user", "content": f"n{number}"}]},
        "response": {"choices": []},
        "served_entity": "gpt",
        "requester": "ada@example.com",
    }
    return PayloadRow(**members | more)


def asked(rows):
    return [json.loads(text)["messages"][0]["content"] for text in rows["request"].to_pylist()]


def expected(*numbers):
    return [f"n{number}" for number in numbers]


class Clock:
    """A clock that stands still until told."""

    def __init__(self):
        self.ms = NOON

    def epoch_ms(self):
        return self.ms

    def advance(self, seconds):
        self.ms += int(seconds * 1000)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(tmp_path, clock):
    opened = PayloadLog(tmp_path, clock)
    yield opened
    opened.close()


@pytest.fixture
def in_memory(clock):
    opened = PayloadLog(None, clock)
    yield opened
    opened.close()


def on_disk(tmp_path, endpoint="e1"):
    return sorted(path.name for path in (tmp_path / "payloads" / endpoint).glob("*"))


# Rows


def test_a_row_has_the_columns_of_databricks(log):
    log.record(row(request={"prompt": "hi", "client_request_id": "c1"}, request_id="r1"))
    (found,) = log.table("e1").to_pylist()
    assert found == {
        "request_date": date(2023, 11, 14),
        "databricks_request_id": "r1",
        "client_request_id": "c1",
        "request_time": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        "status_code": 200,
        "sampling_fraction": 1.0,
        "execution_duration_ms": 13,
        "request": '{"prompt":"hi","client_request_id":"c1"}',
        "response": '{"choices":[]}',
        "served_entity_id": "e1/gpt",
        "served_entity_name": "gpt",
        "requester": "ada@example.com",
        "logging_error_codes": None,
    }
    assert log.table("e1").schema == SCHEMA


def test_what_nobody_says_is_made_up_or_left_out():
    rows = table([row(response=None, served_entity="", requester=""), row()]).to_pylist()
    assert len({one["databricks_request_id"] for one in rows}) == 2
    assert rows[0]["response"] is rows[0]["served_entity_id"] is rows[0]["requester"] is None


def test_the_callers_own_id_of_a_request_is_found_in_it():
    rows = table([row(request={"prompt": "x", "client_request_id": "mine"}), row(request={"client_request_id": 7})])
    assert rows["client_request_id"].to_pylist() == ["mine", None]


@pytest.mark.parametrize(
    ("request_size", "response_size", "codes"),
    [
        (MEBIBYTE, MEBIBYTE, None),
        (MEBIBYTE + 1, 10, ["MAX_REQUEST_SIZE_EXCEEDED"]),
        (10, MEBIBYTE + 1, ["MAX_RESPONSE_SIZE_EXCEEDED"]),
        (MEBIBYTE + 1, MEBIBYTE + 1, ["MAX_REQUEST_SIZE_EXCEEDED", "MAX_RESPONSE_SIZE_EXCEEDED"]),
    ],
)
def test_payloads_over_a_mebibyte_are_not_logged_but_counted(request_size, response_size, codes):
    (found,) = table([row(request="x" * request_size, response=b"y" * response_size)]).to_pylist()
    assert (found["request"] is None) is (request_size > MOST_BYTES)
    assert (found["response"] is None) is (response_size > MOST_BYTES)
    assert found["logging_error_codes"] == codes


@pytest.mark.parametrize(
    "request_body",
    [{"x": float("nan")}, {"x": b"\xff", 7: object}, {"x": "\ud83d"}, "\ud83d", b"\xff\xfe", {"x": {}}, "{broken"],
)
def test_no_request_is_too_odd_to_be_logged(request_body):
    deep = {"x": request_body}
    for _ in range(400):
        deep = {"x": deep}
    rows = table([row(request=request_body, response=deep), row(1)])
    assert rows["request"].null_count == rows["response"].null_count == 0


# Files


def test_rows_are_written_by_endpoint_into_private_files(log, tmp_path):
    for number in range(6):
        log.record(row(number, endpoint=f"e{number % 2}"))
    log.flush()
    assert asked(log.table("e0")) == expected(0, 2, 4)
    assert asked(log.table("e1")) == expected(1, 3, 5)
    for endpoint in ("e0", "e1"):
        (name,) = on_disk(tmp_path, endpoint)
        mode = (tmp_path / "payloads" / endpoint / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE((tmp_path / "payloads").stat().st_mode) == 0o700


def test_rows_are_written_soon_without_anybody_asking(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(payload_log, "FLUSH_SECONDS", 0.01)
    log = PayloadLog(tmp_path, clock)
    log.record(row())
    deadline = time.monotonic() + 5
    while not on_disk(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    log.close()


def test_many_rows_do_not_wait(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(payload_log, "FLUSH_SECONDS", 60)
    log = PayloadLog(tmp_path, clock)
    for number in range(payload_log.MANY_ROWS):
        log.record(row(number))
    deadline = time.monotonic() + 5
    while not on_disk(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    log.close()


def test_the_writing_thread_ends_when_nothing_comes_and_starts_again(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(payload_log, "FLUSH_SECONDS", 0.001)
    log = PayloadLog(tmp_path, clock)
    for number in range(3):
        log.record(row(number))
        deadline = time.monotonic() + 5
        while any(thread.name == "aiquery-payloads" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert asked(log.table("e1")) == expected(0, 1, 2)
    log.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_round_that_fails_for_a_bug_is_not_the_last(tmp_path, clock, monkeypatch):
    def fail_once(*_):
        monkeypatch.undo()
        raise TypeError("a bug")

    monkeypatch.setattr(payload_log, "_write", fail_once)
    monkeypatch.setattr(payload_log, "FLUSH_SECONDS", 0.01)
    made = PayloadLog(tmp_path, clock)
    made.record(row(1))
    while made._thread is not None:
        time.sleep(0.01)
    made.record(row(2))
    made.close()
    assert asked(made.table("e1")) == expected(2)


def test_rows_of_many_threads_are_all_there(log):
    def note(first):
        for number in range(first, first + 300):
            log.record(row(number))

    threads = [threading.Thread(target=note, args=(first,)) for first in range(0, 1200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(log.table("e1")) == expected(*range(1200))


def test_closing_writes_what_is_left(tmp_path, clock):
    log = PayloadLog(tmp_path, clock)
    log.record(row())
    log.close()
    assert asked(PayloadLog(tmp_path, clock).table("e1")) == expected(0)


def test_a_log_that_is_dropped_writes_what_is_left(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(PayloadLog, "_start", lambda _: None)  # its thread would keep it
    log = PayloadLog(tmp_path, clock)
    log.record(row())
    del log
    gc.collect()
    assert len(on_disk(tmp_path)) == 1


def test_a_program_that_just_ends_has_its_rows_written(tmp_path):
    program = f"""
        from pathlib import Path
        import pandas  # as every program with a workspace does
        from aiquery_serving.clock import SystemClock
        from aiquery_serving.payload_log import PayloadLog, PayloadRow
        log = PayloadLog(Path({str(tmp_path)!r}), SystemClock())
        log.record(PayloadRow(endpoint_id="e1", request_time_ms=1, status_code=200, execution_duration_ms=1,
                              request={{}}, response={{}}))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(on_disk(tmp_path)) == 1


# Merging


@pytest.mark.parametrize("seconds", [1, 30])
def test_files_stay_few_and_every_row_is_there_once(log, tmp_path, clock, seconds):
    for number in range(50):
        log.record(row(number))
        log.flush()
        clock.advance(seconds)
        if number % 4 == 0 or number > 45:
            assert asked(log.table("e1")) == expected(*range(number + 1))
    assert len(log.files("e1")) < table_files.MANY
    clock.advance(120)
    log.record(row(50))
    log.flush()
    assert len(on_disk(tmp_path)) <= 2 * table_files.MANY


def test_a_query_that_found_its_files_before_they_were_merged_still_reads_them(log, clock):
    for number in range(table_files.MANY - 1):
        log.record(row(number))
        log.flush()
    before = log.files("e1")
    log.record(row(99))
    after = log.files("e1")
    log.record(row(100))
    log.flush()
    assert (len(before), len(after)) == (table_files.MANY - 1, 1)
    assert sum(pq.read_metadata(path).num_rows for path in before) == table_files.MANY - 1
    assert pq.read_metadata(after[0]).num_rows == table_files.MANY
    assert stat.S_IMODE(after[0].stat().st_mode) == 0o600


def test_whoever_dies_while_merging_loses_and_doubles_nothing(log, tmp_path, clock, monkeypatch):
    def die(*_, **__):
        raise OSError("killed")

    monkeypatch.setattr(PayloadFiles, "_remove_merged", die)
    for number in range(table_files.MANY + 5):
        log.record(row(number))
        log.flush()
        clock.advance(120)
    assert asked(log.table("e1")) == expected(*range(table_files.MANY + 5))
    monkeypatch.undo()
    log.record(row(500))
    log.flush()
    clock.advance(120)
    log.record(row(501))
    log.flush()
    assert asked(log.table("e1")) == expected(*range(table_files.MANY + 5), 500, 501)
    assert len(on_disk(tmp_path)) < table_files.MANY


def test_one_process_merges_at_a_time_until_it_has_died(log, tmp_path, clock):
    lock = tmp_path / "payloads" / "e1" / "merging"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (clock.epoch_ms() / 1000,) * 2)
    for number in range(table_files.MANY):
        log.record(row(number))
        log.flush()
    assert len(log.files("e1")) == table_files.MANY
    clock.advance(table_files.STALE_MS / 1000 + 1)
    log.record(row(99))
    assert len(log.files("e1")) == 1
    assert not lock.exists()


def test_large_files_are_left_alone(log, monkeypatch):
    monkeypatch.setattr(table_files, "LARGE", 1)
    for number in range(table_files.MANY + 2):
        log.record(row(number))
        log.flush()
    assert len(log.files("e1")) == table_files.MANY + 2


def test_two_processes_write_into_one_table(log, tmp_path, clock):
    other = PayloadLog(tmp_path, clock)
    log.record(row(0))
    other.record(row(1))
    other.flush()
    assert asked(log.table("e1")) == expected(0, 1)
    other.close()


# Faults


@pytest.fixture
def full_disk(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PayloadFiles, "write", fail)


def test_a_full_disk_warns_once_and_loses_nothing_that_fits(log, monkeypatch, caplog, full_disk):
    for number in range(3):
        log.record(row(number, endpoint=f"e{number}"))
        log.flush()
    assert [record.message for record in caplog.records] == [
        "Payloads are only held in memory for now, the newest 10000. [Errno 28] No space left on device"
    ]
    monkeypatch.undo()
    log.flush()
    assert [asked(log.table(f"e{number}")) for number in range(3)] == [[f"n{number}"] for number in range(3)]


def test_a_disk_that_stays_full_keeps_the_newest(log, monkeypatch, full_disk):
    monkeypatch.setattr(payload_log, "MOST_HELD", 4)
    for number in range(10):
        log.record(row(number))
    log.flush()
    monkeypatch.undo()
    assert asked(log.table("e1")) == expected(6, 7, 8, 9)


def test_closing_with_a_full_disk_says_what_is_lost(tmp_path, clock, caplog, full_disk):
    log = PayloadLog(tmp_path, clock)
    log.record(row())
    log.close()
    assert "The last 1 payloads are not logged. [Errno 28] No space left on device" in caplog.text


# Whole tables


def test_a_table_without_rows_is_empty(log):
    assert log.table("never") == SCHEMA.empty_table()
    assert [pq.read_table(path).num_rows for path in log.files("never")] == [0]


def test_what_is_deleted_leaves_nothing(log, tmp_path):
    for number in range(2):
        log.record(row(number))
        log.record(row(number, endpoint="e2"))
        log.flush()
    log.record(row(5))
    log.record(row(5, endpoint="e2"))
    log.forget("e1")
    log.record(row(6))  # one that was on its way
    assert log.table("e1").num_rows == 0
    assert not (tmp_path / "payloads" / "e1").exists()
    assert asked(log.table("e2")) == expected(0, 1, 5)


def test_a_workspace_in_memory_keeps_the_newest_rows(clock, monkeypatch):
    monkeypatch.setattr(payload_log, "MOST_HELD", 3)
    log = PayloadLog(None, clock)
    for number in range(5):
        log.record(row(number))
    assert asked(log.table("e1")) == expected(2, 3, 4)
    assert log.table("e1").schema == SCHEMA
    with pytest.raises(ValueError, match="in memory"):
        log.files("e1")
    log.forget("e1")
    assert log.table("e1").num_rows == 0
    log.close()


# Settings


def gateway(**members):
    return {"inference_table_config": members}


@pytest.mark.parametrize(
    ("block", "capture", "logged"),
    [
        (None, None, False),
        ({}, None, False),
        (gateway(enabled=True), None, True),
        (gateway(enabled=False), None, False),
        (gateway(catalog_name="c"), None, False),
        (None, AutoCapture(), True),
        (gateway(enabled=False), AutoCapture(enabled=False), False),
    ],
)
def test_an_endpoint_logs_when_it_is_told_to(block, capture, logged):
    assert is_logged(block, capture) is logged


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, gateway(enabled=True, catalog_name="c")),
        (gateway(enabled=True, catalog_name="c"), gateway(enabled=True, catalog_name="c")),
        (gateway(enabled=True), gateway(enabled=True, table_name_prefix="chat")),
        (gateway(enabled=True, catalog_name="c"), gateway(enabled=False, catalog_name="d")),
        (gateway(enabled=False, catalog_name="c"), gateway(enabled=True, catalog_name="d")),
        (gateway(enabled=True, catalog_name="c"), None),
    ],
)
def test_a_table_changes_its_name_while_it_is_disabled(old, new):
    check_inference_table_change("chat", old, new)


@pytest.mark.parametrize("member", ["catalog_name", "schema_name", "table_name_prefix"])
def test_a_table_that_is_enabled_keeps_its_name(member):
    with pytest.raises(ConfigurationError, match=rf"{member} cannot change from .* to 'new'.*disable it first"):
        check_inference_table_change("chat", gateway(enabled=True), gateway(enabled=True, **{member: "new"}))
