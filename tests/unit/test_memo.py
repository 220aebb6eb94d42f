"""The memo of running queries: nothing is forgotten while there is room, and room is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiquery_udfs.memo import Memo

#: Room for two answers of 100 characters.
SMALL = 800


def test_a_query_remembers_and_its_connections_next_one_does_not():
    memo = Memo()
    memo.put((1, 10), b"k", "answer")

    assert memo.get((1, 10), b"k") == "answer"
    assert memo.get((2, 10), b"k") is None
    assert memo.get((1, 11), b"k") is None
    assert memo.get((1, 10), b"k") is None


def test_a_straggler_of_a_query_that_has_ended_changes_nothing():
    memo = Memo()
    memo.put((1, 11), b"k", "answer")
    memo.put((1, 10), b"k", "late")

    assert memo.get((1, 10), b"k") is None
    assert memo.get((1, 11), b"k") == "answer"


def test_the_oldest_answers_go_first_when_a_query_alone_is_too_large():
    memo = Memo(SMALL)
    for key in (b"a", b"b", b"c"):
        memo.put((1, 1), key, "x" * 100)

    assert [memo.get((1, 1), key) is not None for key in (b"a", b"b", b"c")] == [False, True, True]


def test_a_query_that_finds_answers_elsewhere_keeps_fewer():
    memo = Memo()
    for key in (b"a", b"b", b"c"):
        memo.put((1, 1), key, "x" * 100, most=SMALL)

    assert [memo.get((1, 1), key) is not None for key in (b"a", b"b", b"c")] == [False, True, True]


def test_a_query_that_has_ended_is_forgotten():
    memo = Memo()
    memo.put((1, 1), b"k", "answer")
    memo.end((1, 2))
    assert memo.get((1, 1), b"k") == "answer"

    memo.end((1, 1))
    assert memo.get((1, 1), b"k") is None


def test_the_query_that_has_most_gives_way():
    memo = Memo(SMALL)
    memo.put((1, 1), b"k", "x" * 100)
    for key in (b"a", b"b"):
        memo.put((2, 1), key, "x" * 100)

    assert memo.get((1, 1), b"k") is not None
    assert [memo.get((2, 1), key) is not None for key in (b"a", b"b")] == [False, True]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.binary(max_size=1), st.text(max_size=300)), max_size=60)
)
def test_what_was_put_last_is_there_and_the_bytes_add_up(puts):
    memo = Memo(2000)
    for connection, transaction, key, answer in sorted(puts, key=lambda put: put[1]):
        known = memo.get((connection, transaction), key)
        memo.put((connection, transaction), key, answer)
        assert memo.get((connection, transaction), key) == (answer if known is None else known)

    held = [answer for query in memo._queries.values() for answer in query.answers.values()]
    assert memo._bytes == sum(250 + len(answer) for answer in held) <= 2000
    assert memo._bytes == sum(query.bytes for query in memo._queries.values())
