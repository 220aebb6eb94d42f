"""The ledger: what was written is found again, exactly, by everybody; what it says, gives back and keeps secret."""

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiquery_serving.errors import LedgerError, WorkspaceError
from aiquery_serving.ledger import Entry, Failure, Ledger

CIPHER_KEY = bytes(range(32))
SECRET = "a very recognisable answer"


def key(number):
    return number.to_bytes(16, "big")


def entry(number=1, answer="yes", **others):
    return Entry(**{"key": key(number), "endpoint": "e", "served_entity": "m", "answer": answer, **others})


def write(ledger, *entries):
    async def all_at_once():
        await asyncio.gather(*map(ledger.write, entries))

    asyncio.run(all_at_once())


def answers(ledger, *numbers, **options):
    return {int.from_bytes(k, "big"): found.answer for k, found in ledger.find([*map(key, numbers)], **options).items()}


def same(one, other):
    """Compare entries, vectors by their bytes: NaNs have to come back too."""
    if isinstance(one.answer, np.ndarray):
        assert (other.answer.dtype, other.answer.tobytes()) == (one.answer.dtype, one.answer.tobytes())
        one, other = replace(one, answer=None), replace(other, answer=None)
    return one == other


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ws"


@pytest.fixture
def ledger(folder):
    made = Ledger(folder)
    yield made
    made.close()


PLACES = {"file": (True, None), "memory": (False, None), "sealed file": (True, CIPHER_KEY)}


@pytest.fixture(params=PLACES)
def anywhere(request, folder):
    on_disk, cipher_key = PLACES[request.param]
    made = Ledger(folder if on_disk else None, cipher_key=cipher_key)
    yield made
    made.close()


@pytest.mark.parametrize(
    "written",
    [
        entry(answer=None),
        entry(answer=""),
        entry(answer='{"a": [1, null, "\\u0000"]}'),
        entry(answer="\0 and \ud83d alone, 🦆"),
        entry(answer="ten million" * 1_000_000),
        entry(answer=np.array([], "float32")),
        entry(answer=np.array([0.1, -0.0, np.nan, np.inf], "float32")),
        entry(answer=np.arange(10_000, dtype="float32")[::3]),
        entry(answer=None, failure=Failure("ProviderTimeoutError", "slow \udcff")),
        entry(answer=None, failure=Failure("", "")),
        entry(prompt_tokens=2**62, completion_tokens=7, attempts=3, written_ms=1),
    ],
    ids=lambda written: repr(written.answer)[:20] if written.failure is None else "failure",
)
def test_what_was_written_is_found(anywhere, written):
    write(anywhere, replace(written, written_ms=5))
    assert same(replace(written, written_ms=5), anywhere.find([written.key])[written.key])


ANY_TEXT = st.text(st.characters(exclude_categories=()))
VECTORS = hnp.arrays("float32", st.integers(0, 50))
ENTRIES = st.builds(
    Entry,
    key=st.binary(min_size=16, max_size=16),
    endpoint=st.text(),
    served_entity=st.text(),
    answer=st.none() | ANY_TEXT | VECTORS,
    prompt_tokens=st.integers(0, 2**63 - 1),
    completion_tokens=st.integers(0, 2**63 - 1),
    attempts=st.integers(0, 2**63 - 1),
    written_ms=st.integers(1, 2**63 - 1),
) | st.builds(
    Entry,
    key=st.binary(min_size=16, max_size=16),
    endpoint=st.text(),
    served_entity=st.text(),
    answer=st.none(),
    failure=st.builds(Failure, st.text(), ANY_TEXT),
    written_ms=st.integers(1),
).filter(lambda made: made.written_ms < 2**63)


@given(written=st.lists(ENTRIES, max_size=5, unique_by=lambda made: made.key), sealed=st.booleans())
def test_any_entries_come_back_exactly(written, sealed):
    ledger = Ledger(None, cipher_key=CIPHER_KEY if sealed else None)
    write(ledger, *written)
    found = ledger.find([one.key for one in written])
    ledger.close()
    assert found.keys() == {one.key for one in written}
    assert all(same(one, found[one.key]) for one in written)


def test_it_is_there_after_opening_again_with_the_time_it_was_written(folder, ledger):
    before = time.time_ns() // 1_000_000
    write(ledger, *(entry(number, f"answer {number}") for number in range(5)))
    ledger.close()
    again = Ledger(folder)
    assert answers(again, *range(9)) == {number: f"answer {number}" for number in range(5)}
    assert before <= again.find([key(1)])[key(1)].written_ms <= time.time_ns() // 1_000_000
    again.close()


def test_the_latest_entry_of_a_key_counts_and_may_be_too_old(anywhere):
    write(anywhere, entry(1, "old", written_ms=10), entry(2, "alone", written_ms=10))
    assert answers(anywhere, 1, 2) == {1: "old", 2: "alone"}
    write(anywhere, entry(1, "new", written_ms=20))
    assert answers(anywhere, 1, 2) == {1: "new", 2: "alone"}
    assert answers(anywhere, 1, 2, since_ms=20) == {1: "new"}
    assert answers(anywhere, 1, 2, since_ms=21) == {}


def test_a_ledger_that_nobody_writes_to_makes_nothing(folder):
    ledger = Ledger(folder)
    assert (ledger.find([key(1)]), ledger.stats(), ledger.prune(), ledger.damaged) == ({}, [], 0, 0)
    ledger.flush()
    ledger.close()
    assert not folder.exists()


def test_the_file_waits_for_the_disk_and_is_its_owners_alone(folder, ledger):
    write(ledger, entry())
    with ledger._opened.writer.file.write() as connection:
        settings = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == [b"wal", 2]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(["ledger.db", "ledger.db-wal", "ledger.db-shm"], 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# Writing.


def count_commits(ledger, monkeypatch):
    commits, real = [], ledger._opened.writer._commit
    monkeypatch.setattr(ledger._opened.writer, "_commit", lambda rows: commits.append(len(rows)) or real(rows))
    return commits


def test_entries_that_wait_together_are_committed_together(ledger, monkeypatch):
    commits = count_commits(ledger, monkeypatch)
    write(ledger, *(entry(number) for number in range(5_000)))
    assert sum(commits) == 5_000
    assert len(commits) < 50
    assert len(answers(ledger, *range(5_000))) == 5_000


class Held:
    """Another process that is in the middle of a write."""

    def __init__(self, folder):
        self._connection = sqlite3.connect(folder / "ledger.db", isolation_level=None)
        self._connection.execute("BEGIN IMMEDIATE")

    def release(self):
        self._connection.execute("ROLLBACK")
        self._connection.close()


def test_the_loop_goes_on_while_the_disk_does_not_and_a_cancelled_entry_is_stored(folder, ledger):
    async def write_while_held():
        await ledger.write(entry(1))
        held = Held(folder)
        writes = [asyncio.ensure_future(ledger.write(entry(number))) for number in (2, 3)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(one.done() for one in writes)
        assert answers(ledger, 1, 2) == {1: "yes"}
        writes[0].cancel()
        held.release()
        return await asyncio.gather(*writes, return_exceptions=True)

    first, second = asyncio.run(write_while_held())
    assert isinstance(first, asyncio.CancelledError)
    assert second is None
    ledger.flush()
    assert answers(ledger, 2, 3) == {2: "yes", 3: "yes"}


def test_a_loop_that_ends_early_harms_nobody(folder, ledger):
    async def leave_early(held_by):
        writing = asyncio.ensure_future(ledger.write(entry(2)))
        await asyncio.sleep(0)
        writing.cancel()

    write(ledger, entry(1))
    held = Held(folder)
    asyncio.run(leave_early(held))
    held.release()
    write(ledger, entry(3))
    assert answers(ledger, 1, 2, 3).keys() == {1, 2, 3}


def test_closing_stores_what_waits_and_ends_the_thread(folder):
    before = set(threading.enumerate())
    ledger = Ledger(folder)

    async def write_and_close():
        writing = asyncio.ensure_future(ledger.write(entry(1)))
        await asyncio.sleep(0)
        ledger.close()
        await writing

    asyncio.run(write_and_close())
    assert "aiquery-ledger" not in {thread.name for thread in set(threading.enumerate()) - before}
    again = Ledger(folder)
    assert answers(again, 1) == {1: "yes"}
    again.close()


def test_a_closed_ledger_says_so(anywhere):
    write(anywhere, entry())
    anywhere.close()
    anywhere.close()
    with pytest.raises(LedgerError, match=r"is closed\. Open it again"):
        write(anywhere, entry())
    with pytest.raises(LedgerError, match=r"is closed\. Open it again"):
        anywhere.prune()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": b"short"}, "has 16 bytes, not 5"),
        ({"failure": Failure("E", "m")}, "not both"),
        ({"answer": np.zeros(3)}, "one dimension of float32"),
        ({"answer": np.zeros((2, 2), "float32")}, "one dimension of float32"),
        ({"prompt_tokens": 10**30}, "cannot hold an entry of the endpoint 'e'"),
        ({"attempts": 1.5}, "cannot hold an entry"),
        ({"endpoint": "\ud800"}, "cannot hold an entry"),
    ],
)
def test_an_entry_that_cannot_be_stored_fails_alone(anywhere, wrong, said):
    async def write_both():
        return await asyncio.gather(
            anywhere.write(entry(1)), anywhere.write(replace(entry(2), **wrong)), return_exceptions=True
        )

    good, bad = asyncio.run(write_both())
    assert good is None
    assert isinstance(bad, LedgerError)
    assert said in str(bad)
    assert answers(anywhere, 1, 2) == {1: "yes"}


# Several of them.


@pytest.fixture
def other(folder):
    made = Ledger(folder)
    yield made
    made.close()


def test_two_see_what_each_other_writes_and_prunes(ledger, other):
    write(ledger, entry(1, "a"))
    assert answers(other, 1, 2) == {1: "a"}
    write(other, entry(2, "b"))
    assert answers(ledger, 1, 2) == {1: "a", 2: "b"}
    assert other.prune() == 2
    write(other, entry(3, "c"))  # its row takes the place of one that is gone
    assert answers(ledger, 1, 2, 3) == {3: "c"}


def test_those_in_memory_share_nothing():
    one, other = Ledger(None), Ledger(None)
    write(one, entry())
    assert (answers(one, 1), answers(other, 1)) == ({1: "yes"}, {})
    one.close()
    other.close()


def test_a_file_that_is_moved_aside_is_followed_by_a_new_one(folder, ledger, tmp_path):
    write(ledger, entry(1))
    assert answers(ledger, 1) == {1: "yes"}
    folder.rename(tmp_path / "aside")
    assert answers(ledger, 1) == {}
    write(ledger, entry(2))
    assert answers(ledger, 1, 2) == {2: "yes"}
    ledger.close()
    old = Ledger(tmp_path / "aside")
    assert answers(old, 1, 2) == {1: "yes"}
    old.close()


# SQLite keeps the lock that says "this file is in use" as long as a connection is open.
IN_USE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
"""


def test_one_more_in_a_process_leaves_the_locks_of_the_first_alone(folder, ledger):
    write(ledger, entry(1))
    assert answers(ledger, 1) == {1: "yes"}
    more = Ledger(folder)
    write(more, entry(2))
    done = subprocess.run(
        [sys.executable, "-c", IN_USE, str(folder / "ledger.db")], check=False, capture_output=True, text=True
    )
    assert "BlockingIOError" in done.stderr
    more.close()


def test_a_forked_process_uses_connections_of_its_own(folder, ledger):
    write(ledger, entry(1))
    assert answers(ledger, 1) == {1: "yes"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.alarm(20)
        write(ledger, entry(2))
        os._exit(0 if answers(ledger, 1, 2) == {1: "yes", 2: "yes"} else 1)
    assert os.waitpid(child, 0)[1] == 0
    write(ledger, entry(3))
    assert answers(ledger, 1, 2, 3).keys() == {1, 2, 3}


def test_threads_find_while_others_write(anywhere):
    write(anywhere, entry(0))
    found, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            found.append(answers(anywhere, 0, 199).get(0))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(200):
        write(anywhere, entry(number))
    stop.set()
    for thread in threads:
        thread.join()
    assert set(found) == {"yes"}
    assert len(answers(anywhere, *range(200))) == 200


# Secrets.


def contents(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def hidden(folder):
    return SECRET.encode() not in contents(folder)


@pytest.mark.parametrize("cipher_key", [CIPHER_KEY, None], ids=["sealed", "clear"])
def test_no_file_shows_an_answer_or_an_error_text_when_there_is_a_key(folder, cipher_key):
    ledger = Ledger(folder, cipher_key=cipher_key)
    write(ledger, entry(1, SECRET), entry(2, None, failure=Failure("ModelError", SECRET)))
    assert {"ledger.db", "ledger.db-wal", "ledger.db-shm"} <= {path.name for path in folder.iterdir()}
    assert hidden(folder) is (cipher_key is not None)
    ledger.close()
    assert hidden(folder) is (cipher_key is not None)
    assert CIPHER_KEY not in contents(folder)
    assert str(CIPHER_KEY) not in repr(ledger)


@pytest.mark.parametrize(
    ("begun_with", "opened_with"), [(CIPHER_KEY, b"x" * 32), (CIPHER_KEY, None), (None, CIPHER_KEY)]
)
def test_another_key_than_at_the_beginning_is_refused_and_harms_nothing(folder, begun_with, opened_with):
    first = Ledger(folder, cipher_key=begun_with)
    write(first, entry(1))
    second = Ledger(folder, cipher_key=opened_with)
    for use in (lambda: second.find([key(1)]), lambda: write(second, entry(2)), second.stats):
        with pytest.raises(LedgerError, match=r"begun with another key.*aside to begin a new one"):
            use()
    second.close()
    assert answers(first, 1, 2) == {1: "yes"}
    first.close()


def test_a_key_has_32_bytes():
    with pytest.raises(LedgerError, match="needs 32 bytes, got 5"):
        Ledger(None, cipher_key=b"short")
    assert issubclass(LedgerError, WorkspaceError)


# What is in it.


@pytest.fixture
def filled(anywhere):
    write(
        anywhere,
        entry(1, "old", written_ms=1_000, prompt_tokens=3, completion_tokens=1),
        entry(2, "new", written_ms=2_000, prompt_tokens=4),
        entry(3, None, written_ms=3_000, failure=Failure("ModelError", "oh \ud800"), attempts=2),
        entry(4, np.array([0.5, 1.5], "float32"), written_ms=4_000, endpoint="d"),
    )
    return anywhere


def test_stats_add_up_per_endpoint_and_served_entity(filled):
    first, second = filled.stats()
    assert first["endpoint"] == "d"
    assert second.pop("bytes") > 0
    assert second == {
        "endpoint": "e",
        "served_entity": "m",
        "answers": 2,
        "failures": 1,
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "oldest_ms": 1_000,
        "newest_ms": 3_000,
    }


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        ({}, {1, 2, 3, 4}),
        ({"before_ms": 2_000}, {1}),
        ({"endpoint": "d"}, {4}),
        ({"endpoint": "e", "before_ms": 3_000}, {1, 2}),
        ({"endpoint": "nobody"}, set()),
    ],
)
def test_what_is_pruned_is_gone_and_nothing_else(filled, wanted, gone):
    assert filled.prune(**wanted) == len(gone)
    assert answers(filled, 1, 2, 3, 4).keys() == {1, 2, 3, 4} - gone
    assert filled.prune(**wanted) == 0


def test_pruning_gives_the_disk_back_and_leaves_no_trace(folder, ledger, monkeypatch):
    monkeypatch.setattr("aiquery_serving.ledger._ROWS_DELETED", 100)
    write(ledger, *(entry(number, SECRET * 200, written_ms=number + 1) for number in range(1_000)))
    write(ledger, *(entry(number, "kept", written_ms=number + 1) for number in range(1_000, 2_000)))
    assert ledger.prune(before_ms=1_001) == 1_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    assert hidden(folder)
    assert len(answers(ledger, *range(2_000))) == 1_000


EXPORTED = {
    "key": key(3).hex(),
    "endpoint": "e",
    "served_entity": "m",
    "answer": None,
    "vector": None,
    "failure_kind": "ModelError",
    "failure_message": "oh \\ud800",
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "attempts": 2,
}


def test_it_can_be_exported_as_parquet(filled, tmp_path, monkeypatch):
    monkeypatch.setattr("aiquery_serving.ledger._ROWS_READ", 3)
    assert filled.export(tmp_path / "all.parquet") == 4
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [(row["answer"], row["vector"]) for row in rows] == [
        ("old", None),
        ("new", None),
        (None, None),
        (None, [0.5, 1.5]),
    ]
    assert rows[2].pop("written_at").isoformat() == "1970-01-01T00:00:03+00:00"
    assert rows[2] == EXPORTED
    assert stat.S_IMODE((tmp_path / "all.parquet").stat().st_mode) == 0o600


def test_it_can_be_exported_as_json_lines_in_place_of_an_older_file(filled, tmp_path):
    (tmp_path / "all.jsonl").write_text("something older")
    assert filled.export(tmp_path / "all.jsonl") == 4
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["old", "new", None, None]
    assert rows[2].pop("written_at") == "1970-01-01T00:00:03Z"
    assert rows[2] == EXPORTED
    assert rows[3]["vector"] == [0.5, 1.5]


@pytest.mark.parametrize("place", ["missing/all.parquet", "file/all.parquet", "folder"])
def test_an_export_to_nowhere_says_so_and_leaves_nothing(filled, tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("[!l]*"))
    with pytest.raises(LedgerError, match=f"cannot be exported to '{tmp_path}/{place}'.*another place"):
        filled.export(tmp_path / place)
    assert sorted(tmp_path.rglob("[!l]*")) == before


def test_an_export_of_nothing_is_an_empty_table(ledger, tmp_path):
    assert ledger.export(tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
