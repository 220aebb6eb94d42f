"""`aiquery tokens`, `groups` and `permissions`: a token is seen once, and admins alone change who may do what."""

from __future__ import annotations

import time

import pytest

import aiquery
from aiquery_serving.access import Access
from aiquery_serving.clock import SystemClock
from aiquery_serving.store import Store

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def as_root(monkeypatch):
    monkeypatch.setenv("AIQUERY_USER", "root")


@pytest.fixture
def as_eve(cli, monkeypatch):
    """Root has configured access; from now on it is Eve who types."""
    cli("groups", "add", "analysts", "eve")
    monkeypatch.setenv("AIQUERY_USER", "eve")


def told(result):
    return " ".join(result.stderr.replace("│", " ").split())


def test_a_token_is_printed_once_and_alone(cli, ask_json, home):
    made = cli("tokens", "create", "--user", "ann", "--comment", "laptop")
    token = made.stdout.removesuffix("\n")

    assert "\n" not in token
    assert "it is not shown again" in made.stderr
    assert "'root' is in the group 'admins' now" in made.stderr
    assert Access(Store(home), SystemClock()).authenticate(token).name == "ann"
    (listed,) = ask_json("tokens", "list")
    assert (listed["principal"], listed["comment"], listed["expired"]) == ("ann", "laptop", False)
    assert token.rpartition("_")[2] not in made.stderr + cli("tokens", "list").output + str(listed)


@pytest.mark.parametrize(
    ("given", "days"), [((), 90), (("--expires", "30d"), 30), (("--expires", "2h"), 1 / 12), (("--expires", "never"), None)]
)  # fmt: skip
def test_a_token_ends_when_it_was_said_to(ask_json, given, days):
    now_ms = time.time() * 1000
    ends_ms = ask_json("tokens", "create", "--service-principal", "etl", *given)["expires_ms"]
    assert ends_ms is days if days is None else abs(ends_ms - now_ms - days * DAY_MS) < 60_000


def test_a_token_may_end_on_a_day(ask_json):
    assert (
        ask_json("tokens", "create", "--user", "ann", "--expires", "2099-01-01T00:00+00:00")["expires_ms"]
        == 4070908800000
    )


def test_a_revoked_token_is_gone(cli, ask_json):
    token_id = ask_json("tokens", "create", "--user", "ann")["id"]
    assert f"Revoked token '{token_id}' of 'ann'" in cli("tokens", "revoke", token_id).stderr
    assert "There are no tokens" in cli("tokens", "list").stdout
    assert "There is no token" in cli("tokens", "revoke", token_id, code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("tokens", "create", "--comment", "x"), 2, "name one: --user, --service-principal"),
        (("tokens", "create", "--user", "a", "--service-principal", "b"), 2, "name one"),
        (("tokens", "create", "--user", ""), 1, "The name of a user has 1 to 256"),
        (("tokens", "create", "--user", "a", "--expires", "soon"), 2, "neither a span of time"),
        (("tokens", "create", "--user", "a", "--expires", "2020-01-01"), 1, "expires in the future"),
        (("tokens", "create", "--user", "a", "--expires", "0s"), 1, "expires in the future"),
        (("groups", "add", "users", "a"), 1, "Everybody who is known"),
        (("groups", "remove", "analysts", "a"), 1, "'a' is not in the group 'analysts'"),
        (
            ("permissions", "grant", "gpt", "CAN_FLY", "--user", "a"),
            1,
            "CAN_VIEW, CAN_QUERY, CAN_MANAGE; got 'CAN_FLY'",
        ),
        (("permissions", "grant", "gpt", "CAN_VIEW"), 2, "name one: --user, --group, --service-principal"),
        (("permissions", "grant", "gpt", "CAN_VIEW", "--user", "a"), 3, "'gpt' does not exist"),
        (("permissions", "revoke", "gpt", "--user", "a"), 3, "'gpt' does not exist"),
        (("permissions", "show", "gpt"), 3, "'gpt' does not exist"),
    ],
)
def test_what_cannot_be_is_told_and_changes_nothing(cli, home, arguments, code, words):
    assert words in told(cli(*arguments, code=code))
    with aiquery.Workspace(home) as workspace:
        assert not workspace.access.configured


def test_groups_are_listed_with_their_members(cli, ask_json):
    assert "There are no groups" in cli("groups", "list").stdout
    cli("groups", "add", "analysts", "ann", "bob")
    cli("groups", "remove", "analysts", "bob")
    assert ask_json("groups", "list") == [
        {"group": "admins", "members": ["root"]},
        {"group": "analysts", "members": ["ann"]},
    ]
    assert "Somebody has to stay" in cli("groups", "remove", "admins", "root", code=1).stderr


def test_permissions_are_given_shown_and_taken_away(cli, ask_json, gpt):
    assert "everybody who opens the workspace" in cli("permissions", "show", "gpt").stderr
    cli("permissions", "grant", "gpt", "can_query", "--group", "analysts")
    cli("permissions", "grant", "gpt", "--user", "ann", "CAN_VIEW")
    cli("permissions", "grant", "gpt", "--user", "ann", "CAN_MANAGE")
    shown = {
        (row["kind"], row["principal"]): (row["level"], row["why"]) for row in ask_json("permissions", "show", "gpt")
    }
    assert shown == {
        ("user", "root"): ("CAN_MANAGE", "creator"),
        ("user", "ann"): ("CAN_MANAGE", "granted"),
        ("group", "analysts"): ("CAN_QUERY", "granted"),
        ("group", "admins"): ("CAN_MANAGE", "admins"),
    }
    cli("permissions", "revoke", "gpt", "--user", "ann")
    assert "ann" not in cli("permissions", "show", "gpt").output
    assert "'ann' was given no permission" in cli("permissions", "revoke", "gpt", "--user", "ann", code=1).stderr


@pytest.mark.usefixtures("as_eve")
@pytest.mark.parametrize(
    "arguments",
    [
        ("tokens", "create", "--user", "eve"),
        ("groups", "add", "admins", "eve"),
        ("groups", "remove", "admins", "root"),
    ],
)
def test_who_is_no_admin_changes_no_tokens_and_no_groups(cli, arguments):
    assert "'eve' may not" in cli(*arguments, code=1).stderr


def test_who_may_not_manage_an_endpoint_changes_no_permissions_on_it(cli, gpt, monkeypatch):
    cli("permissions", "grant", "gpt", "--user", "eve", "CAN_QUERY")
    monkeypatch.setenv("AIQUERY_USER", "eve")
    assert (
        "'eve' may not manage endpoint 'gpt'"
        in cli("permissions", "grant", "gpt", "--user", "eve", "CAN_MANAGE", code=1).stderr
    )
    assert "'eve' may not manage endpoint 'gpt'" in cli("permissions", "revoke", "gpt", "--user", "eve", code=1).stderr
