"""Who has which level, by table; and what the text of a token gives away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.access import LEVELS, Grant, Principal
from aiquery_serving.access.snapshot import Snapshot, Written, includes
from aiquery_serving.access.token_text import id_of, is_text_of, new_token
from aiquery_serving.errors import ConfigurationError

MEMBERS = (("admins", "root"), ("analysts", "ann"), ("analysts", "bob"), ("writers", "bob"))


def snapshot(*grants, members=MEMBERS):
    return Snapshot(Written(1, (), members, tuple(("1f", Grant(*grant)) for grant in grants)))


@pytest.mark.parametrize(
    ("grants", "levels"),
    [
        ([], {"root": "CAN_MANAGE", "cid": "CAN_MANAGE", "ann": None, "eve": None, "": None}),
        ([("user", "ann", "CAN_VIEW")], {"ann": "CAN_VIEW", "bob": None}),
        ([("service_principal", "etl", "CAN_QUERY")], {"etl": "CAN_QUERY", "ann": None}),
        ([("group", "analysts", "CAN_QUERY")], {"ann": "CAN_QUERY", "bob": "CAN_QUERY", "eve": None}),
        ([("user", "analysts", "CAN_QUERY")], {"ann": None, "analysts": "CAN_QUERY"}),
        ([("group", "ann", "CAN_QUERY")], {"ann": None}),
        (
            [("group", "analysts", "CAN_VIEW"), ("group", "writers", "CAN_MANAGE"), ("user", "bob", "CAN_QUERY")],
            {"ann": "CAN_VIEW", "bob": "CAN_MANAGE"},
        ),
        ([("group", "users", "CAN_QUERY")], {"ann": "CAN_QUERY", "root": "CAN_MANAGE", "stranger": None}),
        ([("user", "cid", "CAN_VIEW"), ("user", "root", "CAN_VIEW")], {"cid": "CAN_MANAGE", "root": "CAN_MANAGE"}),
    ],
)
def test_the_highest_level_of_oneself_and_of_ones_groups_counts(grants, levels):
    held = snapshot(*grants)
    assert {name: held.level("1f", "cid", name) for name in levels} == levels
    assert held.level("2e", "", "ann") is None


def test_before_anything_is_given_everybody_may_do_everything():
    empty = Snapshot(Written())
    assert not empty.configured
    assert empty.level("1f", "cid", "eve") == "CAN_MANAGE"


@pytest.mark.parametrize("creator", ["", "eve"])
def test_an_endpoint_without_a_creator_belongs_to_nobody(creator):
    assert snapshot().level("1f", creator, "") is None


names = st.sampled_from(["ann", "bob", "cid", "etl"])
grants = st.lists(
    st.tuples(st.sampled_from(["user", "group"]), st.sampled_from(["ann", "bob", "analysts", "users"]), st.sampled_from(LEVELS))
)  # fmt: skip


@given(grants, grants, names)
def test_what_is_given_more_never_takes_anything_away(first, more, name):
    # The table keeps one level a principal: a second one would be in place of the first.
    more = [each for each in more if each[:2] not in {given[:2] for given in first}]
    before, after = (snapshot(*given).level("1f", "cid", name) for given in (first, first + more))
    assert before is None or includes(after, before)


def test_a_token_carries_its_id_and_opens_with_nothing_but_its_text():
    token, other = new_token(), new_token()
    assert id_of(token.text) == token.id
    assert is_text_of(token.text, token.digest)
    assert not is_text_of(other.text, token.digest)
    assert not is_text_of(token.text, None)
    assert token.text not in repr((token.id, token.digest))
    assert len({new_token().text for _ in range(100)}) == 100


TEXT = new_token().text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dapi123",
        TEXT[:-1],
        TEXT + "0",
        TEXT + "\n",
        f" {TEXT}",
        TEXT.upper(),
        TEXT.replace("aiq_", "aiq-"),
        "aiq_\0_",
    ],
    ids=range(9),
)
def test_what_is_no_token_has_no_id(text):
    assert id_of(text) is None


@pytest.mark.parametrize(
    ("kind", "name", "level", "told"),
    [
        ("user", "", "CAN_VIEW", "1 to 256 visible characters"),
        ("user", "a" * 257, "CAN_VIEW", "1 to 256 visible characters"),
        ("user", "ann\n", "CAN_VIEW", "visible characters"),
        ("user", " ann", "CAN_VIEW", "no space around"),
        ("group", "a\x1b[2Jb", "CAN_VIEW", "The name of a group"),
        ("service_principal", "a\u202eb", "CAN_VIEW", "The name of a service principal"),
        ("robot", "a", "CAN_VIEW", "user, group, service_principal; got 'robot'"),
        ("user", "a", "can_view", "CAN_VIEW, CAN_QUERY, CAN_MANAGE; got 'can_view'"),
        ("user", "a", "NO_PERMISSIONS", "got 'NO_PERMISSIONS'"),
    ],
)
def test_a_grant_that_cannot_be_is_refused(kind, name, level, told):
    with pytest.raises(ConfigurationError, match=told):
        Grant(kind, name, level)


@pytest.mark.parametrize("name", ["ann@example.com", "Jürgen Müller", "4c1e0b7a-0000-4000-8000-000000000000", "田中"])
def test_names_that_people_have_are_allowed(name):
    assert Grant("user", name, "CAN_VIEW").principal == name


def test_only_members_of_admins_are_admins():
    assert [Principal("a", "user", frozenset(groups)).is_admin for groups in ({"admins"}, {"Admins"}, ())] == [
        True, False, False,
    ]  # fmt: skip
