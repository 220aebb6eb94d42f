"""The ledger after `kill -9`, on a full disk, with torn or flipped bytes: found exactly, or a sentence says why."""

import asyncio
import contextlib
import logging
import os
import pwd
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from aiquery_serving.errors import LedgerError
from aiquery_serving.ledger import Entry, Failure, Ledger

CIPHER_KEY = bytes(range(32))


def key(number):
    return number.to_bytes(16, "big")


def entry(number, answer=None):
    return Entry(key=key(number), endpoint="e", served_entity="m", answer=answer or f"answer {number}")


def write(ledger, *entries):
    async def all_at_once():
        await asyncio.gather(*map(ledger.write, entries))

    asyncio.run(all_at_once())


def found(ledger, *numbers):
    return {int.from_bytes(k, "big"): one.answer for k, one in ledger.find([*map(key, numbers)]).items()}


def expected(*numbers):
    return {number: f"answer {number}" for number in numbers}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ws"


@pytest.fixture
def ledger(folder):
    made = Ledger(folder)
    yield made
    made.close()


# Processes that die, and processes that live together.

CHILD = """
import asyncio, sys
from pathlib import Path
from aiquery_serving.ledger import Entry, Ledger

folder, sealed, first, count = Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3]), int(sys.argv[4])
ledger = Ledger(folder, cipher_key=bytes(range(32)) if sealed else None)
numbers = iter(range(first, first + count))

async def lane():
    for number in numbers:
        key = number.to_bytes(16, "big")
        await ledger.write(Entry(key=key, endpoint="e", served_entity="m", answer=f"answer {number}"))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()

async def lanes():
    await asyncio.gather(*(lane() for _ in range(16)))

asyncio.run(lanes())
ledger.close()
"""


def start(folder, *, first, count, sealed=False):
    command = [sys.executable, "-c", CHILD, str(folder), str(sealed), str(first), str(count)]
    return subprocess.Popen(command, env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE, text=True)


def kill_in_the_middle(folder, *, first, after, sealed):
    """Return what a process said it had stored when it was killed."""
    with start(folder, first=first, count=10**9, sealed=sealed) as child:
        said = child.stdout.readline()
        time.sleep(after)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read()
    return [int(line) for line in re.findall(r"^(\d+)\n", said, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [False, True])
def test_what_a_killed_process_had_stored_is_found(folder, sealed):
    draw, stored = random.Random(7), []
    for round_ in range(25):
        said = kill_in_the_middle(folder, first=round_ * 10**9, after=draw.uniform(0, 0.15), sealed=sealed)
        assert said
        stored += said
        ledger = Ledger(folder, cipher_key=CIPHER_KEY if sealed else None)
        assert found(ledger, *stored) == expected(*stored)
        assert ledger.export(folder / "all.jsonl") >= len(stored)
        assert ledger.damaged == 0
        ledger.close()


def test_processes_that_write_and_read_at_once_lose_nothing(folder, ledger):
    children = [start(folder, first=first, count=1_000) for first in (0, 10_000)]
    seen = set()
    while any(child.poll() is None for child in children):
        write(ledger, entry(20_000 + len(seen)))
        seen |= found(ledger, *range(1_000), *range(10_000, 11_000)).items()
    for child in children:
        assert child.communicate()[0].count("\n") == 1_000
        assert child.returncode == 0
    assert seen <= set(expected(*range(1_000), *range(10_000, 11_000)).items())
    assert len(found(ledger, *range(1_000), *range(10_000, 11_000))) == 2_000


def test_pruning_while_another_process_writes_loses_nothing_of_it(folder, ledger):
    with start(folder, first=0, count=3_000) as child:
        while child.poll() is None:
            ledger.prune(before_ms=2)
            write(ledger, Entry(key=key(10**6), endpoint="e", served_entity="m", answer="old", written_ms=1))
            found(ledger, 0)
        assert child.stdout.read().count("\n") == 3_000
    assert found(ledger, *range(3_000)) == expected(*range(3_000))


def test_another_process_that_keeps_the_file_is_waited_for_and_then_named(folder, ledger, monkeypatch):
    write(ledger, entry(1))
    monkeypatch.setattr("aiquery_serving.ledger_file.BUSY_SECONDS", 0.05)
    second = Ledger(folder)
    holder = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    async def write_two():
        return await asyncio.gather(second.write(entry(2)), second.write(entry(2)), return_exceptions=True)

    errors = asyncio.run(write_two())
    for error in errors:
        with pytest.raises(LedgerError, match=r"Another process has locked the ledger .*ledger\.db.* Try again"):
            raise error
    assert errors[0] is not errors[1]
    holder.close()
    write(second, entry(3))
    assert found(second, 1, 2, 3) == expected(1, 3)
    second.close()


# A disk without room.


def test_a_full_disk_says_so_keeps_what_was_stored_and_works_again_with_room(small_disk):
    ledger = Ledger(small_disk / "ws")
    write(ledger, entry(1))
    (small_disk / "ballast").write_bytes(bytes(60_000))
    for number in (2, 3):
        with pytest.raises(LedgerError, match=r"disk of the ledger .*ledger\.db' is full .*Free some space"):
            write(ledger, entry(number, "large" * 100_000))
        assert found(ledger, 1, 2, 3) == expected(1)
    (small_disk / "ballast").unlink()
    write(ledger, entry(4))
    assert found(ledger, 1, 2, 3, 4) == expected(1, 4)
    ledger.close()
    again = Ledger(small_disk / "ws")
    assert found(again, 1, 2, 3, 4) == expected(1, 4)
    again.close()


def test_a_ledger_that_finds_no_room_at_its_beginning_begins_later(small_disk):
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as file:
        file.write(bytes(400_000))
    ledger = Ledger(small_disk / "ws")
    with pytest.raises(LedgerError, match="is full"):
        write(ledger, entry(1))
    (small_disk / "ballast").unlink()
    write(ledger, entry(1))
    assert found(ledger, 1) == expected(1)
    ledger.close()


@pytest.fixture
def most_bytes():
    """Set how large any file of this process may become; None for no end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_may_not_grow_say_so_and_go_on_when_they_may(ledger, most_bytes):
    write(ledger, entry(1))
    most_bytes(200_000)
    with pytest.raises(LedgerError, match=r"is full .*Free some space"):
        write(ledger, entry(2, "large" * 100_000))
    assert found(ledger, 1, 2) == expected(1)
    most_bytes(None)
    write(ledger, entry(2))
    assert found(ledger, 1, 2) == expected(1, 2)


# Bytes that are not what they were.


def leave_a_log(folder):
    """Write a hundred entries, one commit each, and die with all of them in the write-ahead log."""
    ledger = Ledger(folder)
    for number in range(100):
        write(ledger, entry(number))
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no thread of ours
        child = os.fork()
    if not child:
        signal.alarm(20)
        with contextlib.suppress(BaseException):
            work(*arguments)
        os._exit(1)
    return os.waitpid(child, 0)[1]


def cut(log, size):
    return log[:-size]


def garble(log, size):
    return log[:-size] + random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [1, 100, 4_096, 10_000, 100_000])
@pytest.mark.parametrize("damage", [cut, garble])
def test_a_torn_log_costs_what_was_written_last_and_nothing_before(folder, damage, size):
    assert in_a_child(leave_a_log, folder) == signal.SIGKILL
    log = folder / "ledger.db-wal"
    assert log.stat().st_size > 300_000
    log.write_bytes(damage(log.read_bytes(), size))
    ledger = Ledger(folder)
    left = found(ledger, *range(100))
    assert left == expected(*range(len(left)))
    assert 100 > len(left) >= 98 - size // 4_000
    write(ledger, entry(99))
    assert found(ledger, 99) == expected(99)
    assert ledger.damaged == 0
    ledger.close()


@pytest.mark.parametrize("flip", [0x01, 0x5A])
@pytest.mark.parametrize("cipher_key", [None, CIPHER_KEY], ids=["clear", "sealed"])
def test_a_flipped_byte_costs_its_row_and_never_gives_another_answer(folder, cipher_key, flip, caplog):
    ledger = Ledger(folder, cipher_key=cipher_key)
    write(ledger, *(entry(number) for number in range(20)))
    ledger.close()
    path = folder / "ledger.db"
    whole = path.read_bytes()
    middle = whole.index(key(10))
    left = []
    for place in range(middle - 30, middle + 90):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        ledger = Ledger(folder, cipher_key=cipher_key)
        right = found(ledger, *range(20))
        left.append(len(right))
        assert right.items() <= expected(*range(20)).items()
        ledger.close()
    # The number of a row orders the rows of its page: SQLite finds only half of them when that is flipped.
    assert sorted(left)[1] == 19
    assert {record.name for record in caplog.records} == {"aiquery.ledger"}


def change(folder, column, value):
    connection = sqlite3.connect(folder / "ledger.db")
    with connection:
        connection.execute(f"UPDATE entries SET {column} = ? WHERE key = ?", (value, key(1)))
    connection.close()


@pytest.mark.parametrize("cipher_key", [None, CIPHER_KEY], ids=["clear", "sealed"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("body", b"another answer"),
        ("body", b""),
        ("body", 5),
        ("endpoint", "f"),
        ("endpoint", b"\xff"),
        ("served_entity", "n"),
        ("failure", "ModelError"),
        ("form", 0),
        ("form", 77),
        ("written_ms", 1),
        ("prompt_tokens", 1),
        ("completion_tokens", "many"),
        ("attempts", 2),
    ],
)
def test_any_field_that_was_changed_is_noticed_and_said_once(folder, cipher_key, column, value, caplog):
    ledger = Ledger(folder, cipher_key=cipher_key)
    write(ledger, entry(1), entry(2))
    change(folder, column, value)
    with caplog.at_level(logging.WARNING):
        assert [found(ledger, 1, 2), found(ledger, 1, 2)] == [expected(2)] * 2
    assert ledger.damaged == 1
    assert [(record.name, "damaged rows" in record.message) for record in caplog.records] == [("aiquery.ledger", True)]
    assert ledger.export(folder / "all.parquet") == 1
    write(ledger, entry(1))
    assert found(ledger, 1, 2) == expected(1, 2)
    ledger.close()


def test_an_answer_does_not_open_under_another_key_of_the_ledger(folder):
    ledger = Ledger(folder, cipher_key=CIPHER_KEY)
    write(ledger, entry(1), Entry(key=key(2), endpoint="e", served_entity="m", answer=None, failure=Failure("E", "x")))
    change(folder, "key", key(3))
    assert found(ledger, 1, 3) == {}
    assert ledger.damaged == 1
    ledger.close()


def overwrite_all(path):
    path.write_bytes(b"this is no database, but long enough to be looked at" * 100)


def overwrite_pages(path):
    data = path.read_bytes()
    path.write_bytes(data[:200] + b"\xff" * (len(data) - 200))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:5_000])


@pytest.mark.parametrize("damage", [overwrite_all, overwrite_pages, cut_short])
def test_a_damaged_file_is_refused_left_as_it_is_and_can_be_moved_aside(folder, damage):
    ledger = Ledger(folder)
    write(ledger, *(entry(number) for number in range(1_000)))
    ledger.close()
    path = folder / "ledger.db"
    damage(path)
    before = path.read_bytes()
    ledger = Ledger(folder)
    for use in (lambda: found(ledger, 1), lambda: write(ledger, entry(1))):
        with pytest.raises(LedgerError, match=r"ledger\.db' is damaged .* Restore it from a backup, or move it"):
            use()
    assert path.read_bytes() == before
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (folder / name).unlink(missing_ok=True)
    write(ledger, entry(2))
    assert found(ledger, 1, 2) == expected(2)
    ledger.close()


def test_a_file_of_a_newer_aiquery_is_left_alone(folder, ledger):
    write(ledger, entry(1))
    ledger.close()
    connection = sqlite3.connect(folder / "ledger.db")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = (folder / "ledger.db").read_bytes()
    ledger = Ledger(folder)
    with pytest.raises(LedgerError, match=r"newer aiquery \(schema 2.* Upgrade aiquery"):
        write(ledger, entry(2))
    with pytest.raises(LedgerError, match="newer aiquery"):
        found(ledger, 1)
    ledger.close()
    assert (folder / "ledger.db").read_bytes() == before


# Places that cannot be written.


@pytest.fixture
def open_place():
    """A folder that another user can get at, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def said_to_an_ordinary_user(folder):
    """Ask in a child process for which modes count: root may write everywhere."""
    reading, writing = os.pipe()

    def ask():
        if os.geteuid() == 0:
            os.setuid(pwd.getpwnam("nobody").pw_uid)
        try:
            write(Ledger(folder), entry(1))
            os.write(writing, b"done")
        except LedgerError as error:
            os.write(writing, str(error).encode())

    in_a_child(ask)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return answer.read()


def test_a_folder_that_cannot_be_written_says_so(open_place):
    open_place.chmod(0o555)
    said = said_to_an_ordinary_user(open_place / "ws")
    assert f"'{open_place}/ws/ledger.db' cannot be opened for writing (Permission denied)" in said
    assert "AIQUERY_HOME" in said


def test_somebody_elses_ledger_says_so(open_place):
    ledger = Ledger(open_place)
    write(ledger, entry(1))
    ledger.close()
    (open_place / "ledger.db").chmod(0o444)
    open_place.chmod(0o555)
    assert "cannot be opened for writing" in said_to_an_ordinary_user(open_place)


def test_a_folder_that_is_a_file_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    ledger = Ledger(tmp_path / "file")
    for use in (lambda: found(ledger, 1), lambda: write(ledger, entry(1))):
        with pytest.raises(LedgerError, match=r"file/ledger\.db' cannot be opened for writing"):
            use()
    ledger.close()
