"""Tokens, groups and permissions as a workspace keeps them: for several processes, and for those who attack it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from aiquery_serving.access import Access, Grant
from aiquery_serving.errors import (
    ConfigurationError,
    PermissionDeniedError,
    UnauthenticatedError,
    WorkspaceError,
)
from aiquery_serving.store import Store

DAY_MS = 86_400_000


class HandClock:
    """Stands still until it is moved."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def epoch_ms(self):
        return 1_800_000_000_000 + int(self.seconds * 1000)

    async def sleep(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "ws")
    yield made
    made.close()


@pytest.fixture
def access(store, clock):
    return Access(store, clock)


@pytest.fixture
def other(store, clock):
    """Another process on the same workspace."""
    opened = Store(store.folder)
    yield Access(opened, clock)
    opened.close()


def may(access, name, level, endpoint_id="1f", creator="cid"):
    try:
        access.require("gpt", endpoint_id, creator, name, level)
    except PermissionDeniedError:
        return False
    return True


# Who asks.


def test_a_token_says_who_asks_and_in_which_groups_they_are(access):
    access.add_members("analysts", ["ann"], by="root")
    text, info = access.create_token("ann", by="root", comment="laptop")
    service, _ = access.create_token("etl", by="root", kind="service_principal")

    who = access.authenticate(text)
    assert (who.name, who.kind, who.groups, who.is_admin) == ("ann", "user", {"analysts", "users"}, False)
    assert access.authenticate(service).kind == "service_principal"
    assert access.principal("etl").kind == "service_principal"
    assert (info.principal, info.comment, info.expires_ms) == ("ann", "laptop", None)


def test_neither_the_files_nor_any_text_of_ours_holds_a_token(access, store):
    text, info = access.create_token("ann", by="root")
    secret = text.rpartition("_")[2]
    shown = [repr(each) for each in (access, store, info, access.tokens(), access.authenticate(text))]
    assert not [each for each in shown if secret in each]
    for file in store.folder.iterdir():
        assert secret.encode() not in file.read_bytes()
        assert bytes.fromhex(secret) not in file.read_bytes()


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + "g", lambda t: t[:-1] + ("0" if t[-1] != "0" else "1"), str.upper]
)
def test_who_knows_only_part_of_a_token_is_not_let_in(access, change):
    text, _ = access.create_token("ann", by="root")
    with pytest.raises(UnauthenticatedError, match="not known here") as told:
        access.authenticate(change(text))
    assert text[-32:] not in str(told.value)


def test_the_secret_of_one_token_does_not_open_with_the_id_of_another(access):
    (one, _), (two, _) = (access.create_token(name, by="root") for name in ("ann", "root"))
    forged = two[: two.rindex("_")] + one[one.rindex("_") :]
    with pytest.raises(UnauthenticatedError):
        access.authenticate(forged)


def test_a_token_opens_until_it_expires_and_says_so_then(access, clock):
    text, info = access.create_token("ann", by="root", expires_ms=clock.epoch_ms() + 30 * DAY_MS)
    clock.seconds = 30 * 86_400 - 0.001
    assert access.authenticate(text).name == "ann"
    clock.seconds = 30 * 86_400
    with pytest.raises(UnauthenticatedError, match=r"of 'ann' expired at 2027-02-14 08:00 UTC.*tokens create"):
        access.authenticate(text)
    assert info.expired(clock.epoch_ms())


def test_whether_a_token_has_expired_is_not_told_to_who_only_knows_its_id(access, clock):
    text, _ = access.create_token("ann", by="root", expires_ms=clock.epoch_ms() + 1)
    clock.seconds = 1
    with pytest.raises(UnauthenticatedError, match="not known here"):
        access.authenticate(text[: text.rindex("_") + 1] + "0" * 64)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": ""}, "The name of a user"),
        ({"name": "a\nb"}, "visible characters"),
        ({"kind": "group"}, "user, service_principal; got 'group'"),
        ({"expires_ms": 5}, "in the future"),
        ({"expires_ms": 10**18}, "in the future"),
        ({"comment": "a\x1bb"}, "one line"),
        ({"by": ""}, "gives the first token"),
    ],
)
def test_a_token_that_cannot_be_changes_nothing(access, given, told):
    with pytest.raises(ConfigurationError, match=told):
        access.create_token(**{"name": "ann", "by": "root", **given})
    assert not access.configured
    assert (access.tokens(), access.groups()) == ([], {})


def test_a_revoked_token_opens_nothing(access):
    text, info = access.create_token("ann", by="root")
    assert access.revoke_token(info.id, by="root") == info
    with pytest.raises(UnauthenticatedError):
        access.authenticate(text)
    with pytest.raises(ConfigurationError, match=f"no token '{info.id}'"):
        access.revoke_token(info.id, by="root")


@pytest.mark.parametrize("text", ["", "dapi123", "ключ", "\udcff", "aiq_\0", "a" * 100_000])
def test_what_is_no_token_opens_nothing(access, text):
    access.create_token("ann", by="root")
    with pytest.raises(UnauthenticatedError, match="not known here"):
        access.authenticate(text)


# Whose workspace it is.


def test_until_anything_is_given_everybody_may_do_everything(access):
    assert not access.configured
    assert may(access, "eve", "CAN_MANAGE")
    assert access.principal("eve").is_admin
    access.set_acl("1f", [], by="eve")
    access.forget("1f")
    assert not access.configured


@pytest.mark.parametrize(
    "first",
    [
        lambda access: access.create_token("ann", by="root"),
        lambda access: access.add_members("analysts", ["ann"], by="root"),
        lambda access: access.merge_acl("1f", [Grant("user", "ann", "CAN_QUERY")], by="root"),
        lambda access: access.set_acl("1f", [Grant("user", "ann", "CAN_QUERY")], by="root"),
    ],
    ids=["token", "group", "merge", "set"],
)
def test_whoever_gives_the_first_thing_becomes_an_admin(access, first):
    first(access)
    assert access.configured
    assert access.groups()["admins"] == ("root",)
    assert may(access, "root", "CAN_MANAGE")
    assert not may(access, "ann", "CAN_MANAGE")


def test_two_processes_that_both_begin_make_one_admin(access, other):
    assert not other.configured
    access.create_token("ann", by="root")
    with pytest.raises(PermissionDeniedError, match=r"'eve' may not make tokens.*'admins'"):
        other.create_token("eve", by="eve")
    assert other.groups() == {"admins": ("root",)}


@pytest.mark.parametrize(
    "act",
    [
        lambda access: access.create_token("eve", by="eve"),
        lambda access: access.revoke_token("x", by="eve"),
        lambda access: access.add_members("admins", ["eve"], by="eve"),
        lambda access: access.remove_members("admins", ["root"], by="eve"),
    ],
)
def test_only_admins_change_tokens_and_groups(access, act):
    access.create_token("eve", by="root")
    with pytest.raises(PermissionDeniedError, match="'eve' may not"):
        act(access)
    assert access.groups() == {"admins": ("root",)}


def test_the_last_admin_stays(access):
    access.add_members("admins", ["ann"], by="root")
    access.remove_members("admins", ["root"], by="ann")
    with pytest.raises(ConfigurationError, match="Somebody has to stay in the group 'admins'"):
        access.remove_members("admins", ["ann"], by="ann")
    assert access.groups() == {"admins": ("ann",)}


def test_who_was_an_admin_is_none_from_then_on(access):
    access.add_members("admins", ["ann"], by="root")
    text, _ = access.create_token("root", by="root")
    access.remove_members("admins", ["root"], by="ann")
    assert not access.authenticate(text).is_admin
    assert not may(access, "root", "CAN_VIEW")


# Groups.


def test_groups_come_and_go_with_their_members(access):
    access.add_members("analysts", ["ann", "bob", "ann"], by="root")
    assert access.groups() == {"admins": ("root",), "analysts": ("ann", "bob")}
    assert access.groups_of("ann") == {"analysts", "users"}
    with pytest.raises(ConfigurationError, match="'cid' is not in the group 'analysts'"):
        access.remove_members("analysts", ["ann", "cid"], by="root")
    access.remove_members("analysts", ["ann", "bob"], by="root")
    assert access.groups() == {"admins": ("root",)}
    assert access.groups_of("ann") == frozenset()


@pytest.mark.parametrize("change", ["add_members", "remove_members"])
def test_nobody_is_put_into_the_group_of_everybody_or_out_of_it(access, change):
    with pytest.raises(ConfigurationError, match="Everybody who is known is in the group 'users'"):
        getattr(access, change)("users", ["ann"], by="root")


# Permissions.


def test_a_refusal_names_who_what_and_who_can_grant_it(access):
    access.merge_acl("1f", [Grant("user", "ann", "CAN_VIEW")], by="root")
    with pytest.raises(PermissionDeniedError) as told:
        access.require("gpt", "1f", "cid", "ann", "CAN_QUERY")
    assert str(told.value) == (
        "'ann' may not query endpoint 'gpt': that takes CAN_QUERY, and they have CAN_VIEW on it. It can be granted by"
        " its creator 'cid', anybody else who manages it, or a member of the group 'admins'."
    )
    with pytest.raises(PermissionDeniedError, match=r"no permission on it. It can be granted by anybody who manages"):
        access.require("gpt", "1f", "", access.principal("bob"), "CAN_VIEW")


def test_merging_keeps_what_others_have_and_setting_does_not(access):
    access.merge_acl("1f", [Grant("user", "ann", "CAN_VIEW"), Grant("group", "g", "CAN_VIEW")], by="root")
    access.merge_acl("1f", [Grant("user", "ann", "CAN_QUERY"), Grant("user", "bob", "CAN_VIEW")], by="root")
    assert access.acl("1f") == [
        Grant("group", "g", "CAN_VIEW"),
        Grant("user", "ann", "CAN_QUERY"),
        Grant("user", "bob", "CAN_VIEW"),
    ]
    access.set_acl("1f", [Grant("user", "eve", "CAN_VIEW")], by="root")
    assert access.acl("1f") == [Grant("user", "eve", "CAN_VIEW")]
    assert access.acl("2e") == []


def test_a_revoked_permission_is_gone_and_others_stay(access):
    access.merge_acl("1f", [Grant("user", "ann", "CAN_QUERY"), Grant("user", "bob", "CAN_QUERY")], by="root")
    access.revoke("1f", "user", "ann", by="root")
    assert (may(access, "ann", "CAN_QUERY"), may(access, "bob", "CAN_QUERY")) == (False, True)
    with pytest.raises(ConfigurationError, match="User 'ann' was given no permission"):
        access.revoke("1f", "user", "ann", by="root")


def test_permissions_die_with_the_endpoint(access):
    access.merge_acl("1f", [Grant("user", "ann", "CAN_QUERY")], by="root")
    access.forget("1f")
    assert access.acl("1f") == []
    assert not may(access, "ann", "CAN_VIEW")


@pytest.mark.parametrize("change", ["merge_acl", "set_acl"])
def test_one_name_is_not_a_user_and_a_service_principal(access, change):
    access.create_token("etl", by="root", kind="service_principal")
    with pytest.raises(ConfigurationError, match="'etl' is a service principal in this workspace, not a user"):
        getattr(access, change)("1f", [Grant("user", "bob", "CAN_VIEW"), Grant("user", "etl", "CAN_QUERY")], by="root")
    assert access.acl("1f") == []
    access.merge_acl("1f", [Grant("user", "ann", "CAN_VIEW"), Grant("group", "etl", "CAN_VIEW")], by="root")
    with pytest.raises(ConfigurationError, match="'ann' is a user in this workspace, not a service principal"):
        access.create_token("ann", by="root", kind="service_principal")


def test_names_reach_no_sql(access):
    name = "x'); DELETE FROM members; --"
    access.add_members(name, [name], by="root")
    access.merge_acl(name, [Grant("user", name, "CAN_QUERY")], by="root")
    assert access.groups() == {"admins": ("root",), name: (name,)}
    assert may(access, name, "CAN_QUERY", endpoint_id=name)


# Several threads and processes.


def test_what_another_process_changes_shows_soon(access, other, clock):
    assert not other.configured
    text, info = access.create_token("ann", by="root")
    clock.seconds += 0.2
    assert other.authenticate(text).name == "ann"
    access.revoke_token(info.id, by="root")
    clock.seconds += 0.2
    with pytest.raises(UnauthenticatedError):
        other.authenticate(text)


def test_a_workspace_that_was_configured_before_is_never_open_to_everybody(access, store, clock):
    access.create_token("ann", by="root")
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with reopened.write():
            entered.set()
            leave.wait(10)

    reopened = Store(store.folder)
    again = Access(reopened, clock)
    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(10)
    try:
        # The store is busy, and nobody waits for it.
        assert again.configured
        assert not may(again, "eve", "CAN_VIEW")
    finally:
        leave.set()
        holder.join()
        reopened.close()


def test_what_is_taken_back_was_never_true(access, store, clock):
    access.create_token("ann", by="root")

    def change_and_fail():
        with store.write():
            access.add_members("admins", ["eve"], by="root")
            assert not access.principal("eve").is_admin
            raise KeyError

    with pytest.raises(KeyError):
        change_and_fail()
    clock.seconds += 1
    assert not access.principal("eve").is_admin
    access.add_members("analysts", ["bob"], by="root")
    assert not access.principal("eve").is_admin


def test_what_a_transaction_around_has_changed_shows_when_it_ends(access, store):
    with store.write():
        access.merge_acl("1f", [Grant("user", "ann", "CAN_QUERY")], by="root")
    assert may(access, "ann", "CAN_QUERY")
    assert access.configured


def test_many_threads_ask_while_one_changes(access):
    text, _ = access.create_token("ann", by="root")
    wrong, ended = [], threading.Event()

    def ask():
        while not ended.is_set():
            if access.authenticate(text).name != "ann" or access.principal("eve").is_admin:
                wrong.append("let in or kept out")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(15):
        access.add_members("analysts", [f"user {number}"], by="root")
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(access.groups()["analysts"]) == 15


def test_a_closed_workspace_lets_nobody_in(access, store, clock):
    text, _ = access.create_token("ann", by="root")
    store.close()
    clock.seconds += 1
    with pytest.raises(WorkspaceError, match="closed"):
        access.authenticate(text)


def test_another_process_of_python_knows_the_token(access, store):
    text, _ = access.create_token("ann", by="root")
    program = (
        "import sys; from aiquery_serving.access import Access; from aiquery_serving.clock import SystemClock;"
        "from aiquery_serving.store import Store;"
        "print(Access(Store(sys.argv[1]), SystemClock()).authenticate(sys.stdin.read()).name)"
    )
    command = [sys.executable, "-c", program, str(store.folder)]
    answer = subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert answer.stdout.strip() == "ann"


def test_questions_are_answered_from_memory(access, store, clock):
    text, _ = access.create_token("ann", by="root")
    access.merge_acl("1f", [Grant("group", "users", "CAN_QUERY")], by="root")
    statements = []
    with store.read() as connection:
        connection.set_trace_callback(statements.append)
    for _ in range(100):
        access.require("gpt", "1f", "cid", access.authenticate(text), "CAN_QUERY")
    assert statements == ["SELECT number FROM access_revision"]
    clock.seconds += 0.2
    access.authenticate(text)
    assert len(statements) == 2
