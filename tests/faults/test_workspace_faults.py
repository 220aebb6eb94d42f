"""A damaged file, a folder that cannot be written, a full disk: a clear sentence, and nothing lost."""

import os
import pwd
import shutil
import sqlite3
import tempfile
import warnings
from pathlib import Path

import pytest

from aiquery_serving.errors import SecretError, WorkspaceError
from aiquery_serving.secrets import Secrets
from aiquery_serving.store import MIGRATIONS, Store
from aiquery_serving.usage import Invocation, UsageLog

CALL = Invocation("e", "m", 1, 1, 1.0, 1, 0, 0, "ok", 1, "me")


@pytest.fixture
def folder(tmp_path):
    """A workspace with one secret in it."""
    store = Store(tmp_path / "ws")
    Secrets(store, key=None).put("prod", "openai", "v" * 20)
    store.close()
    return tmp_path / "ws"


def overwrite_all(path):
    path.write_bytes(b"this is no database, but long enough to be looked at" * 100)


def overwrite_header(path):
    path.write_bytes(bytes(100) + path.read_bytes()[100:])


def overwrite_pages(path):
    data = path.read_bytes()
    path.write_bytes(data[:200] + b"\xff" * (len(data) - 200))


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [overwrite_all, overwrite_header, overwrite_pages, cut])
def test_a_damaged_file_is_named_and_left_as_it_is(folder, damage):
    path = folder / "workspace.db"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(WorkspaceError, match=r"workspace\.db' is damaged .* Restore it from a backup"):
        Secrets(Store(folder), key=None).get("prod", "openai")
    assert path.read_bytes() == before


def test_a_file_of_a_newer_aiquery_is_left_alone(folder):
    connection = sqlite3.connect(folder / "workspace.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(WorkspaceError, match=r"newer aiquery .* Upgrade aiquery"):
        Store(folder)


@pytest.mark.parametrize("below", ["", "deeper/ws"])
def test_a_folder_that_is_a_file_is_named(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match=f"{tmp_path}/file.* is not a folder"):
        Store(tmp_path / "file" / below)


def delete_everything(folder):
    """Return what the workspace says to somebody who wants to write."""
    try:
        store = Store(folder)
        with store.write() as connection:
            connection.execute("DELETE FROM secrets")
    except WorkspaceError as error:
        return str(error)
    return "done"


@pytest.fixture
def open_place():
    """A folder that another user can get at, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_ordinary_user(place):
    """Ask in a child process for which modes count: root may write everywhere."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no thread
        child = os.fork()
    if not child:
        if os.geteuid() == 0:
            os.setuid(pwd.getpwnam("nobody").pw_uid)
        os.write(writing, delete_everything(place).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def hand_over(folder):
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)


def test_a_read_only_place_for_a_new_workspace_says_so(open_place):
    open_place.chmod(0o555)
    said = as_ordinary_user(open_place / "ws")
    assert f"'{open_place}/ws' cannot be written (Permission denied)" in said
    assert "AIQUERY_HOME" in said
    open_place.chmod(0o755)


def test_a_workspace_in_a_read_only_folder_says_so_and_keeps_its_rows(open_place, folder):
    shutil.copytree(folder, open_place / "ws")
    hand_over(open_place / "ws")
    (open_place / "ws" / "workspace.db").chmod(0o444)
    (open_place / "ws").chmod(0o555)
    said = as_ordinary_user(open_place / "ws")
    (open_place / "ws").chmod(0o755)
    (open_place / "ws" / "workspace.db").chmod(0o644)
    assert f"'{open_place}/ws' cannot be written" in said
    store = Store(open_place / "ws")
    assert Secrets(store, key=None).list() == (("prod", "openai"),)
    store.close()


def fill_up(store):
    """Let the database grow no further, as on a full disk."""
    with store.read() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_says_so_and_keeps_what_was_stored(folder):
    store = Store(folder)
    secrets = Secrets(store, key=None)
    fill_up(store)
    with pytest.raises(WorkspaceError, match=r"disk that holds .*workspace\.db' is full .* Free some space"):
        secrets.put("prod", "large", "v" * 100_000)
    assert secrets.list() == (("prod", "openai"),)
    assert secrets.get("prod", "openai") == "v" * 20
    store.close()


def test_a_full_disk_never_fails_an_invocation_nor_its_totals(folder, caplog):
    store = Store(folder)
    usage = UsageLog(store)
    fill_up(store)
    for _ in range(1000):
        usage.record(CALL)
    assert usage.totals()[0]["calls"] == 1000
    assert "is full" in caplog.text
    usage.close()
    store.close()


def fill_with_secrets(secrets):
    for number in range(100):
        secrets.put("prod", f"large-{number}", "v" * 20_000)


def test_a_disk_that_really_is_full_says_so_and_works_again_with_room(small_disk):
    store = Store(small_disk / "ws")
    secrets = Secrets(store, key=None)
    secrets.put("prod", "openai", "v")
    (small_disk / "ballast").write_bytes(bytes(40_000))
    with pytest.raises(WorkspaceError, match="is full"):
        fill_with_secrets(secrets)
    assert secrets.get("prod", "openai") == "v"
    with pytest.raises(WorkspaceError, match="is full"):
        secrets.put("prod", "late", "v" * 20_000)
    (small_disk / "ballast").unlink()
    secrets.put("prod", "late", "v" * 20_000)
    assert ("prod", "late") in secrets.list()
    store.close()


def test_a_key_file_without_room_says_so_and_stores_nothing(small_disk):
    store = Store(small_disk / "ws")
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(bytes(400_000))
    with pytest.raises(SecretError, match=r"secret\.key' cannot be written: .*No space"):
        Secrets(store, key=None).put("a", "b", "v")
    assert not (small_disk / "ws" / "secret.key").exists()
    (small_disk / "ballast").unlink()
    assert Secrets(store, key=None).list() == ()
    store.close()


def test_another_process_that_holds_the_file_is_waited_for_and_then_named(folder, monkeypatch):
    monkeypatch.setattr("aiquery_serving.store.BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(folder / "workspace.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    store = Store(folder)
    with pytest.raises(WorkspaceError, match="locked by another process"), store.write():
        pass
    holder.execute("ROLLBACK")
    with store.write() as connection:
        connection.execute("DELETE FROM usage")
    store.close()
    holder.close()
