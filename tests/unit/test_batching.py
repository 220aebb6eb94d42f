"""Rows are packed in order, as many to a request as fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.batching import UNKNOWN_OUTPUT, OutputSizes, batches, estimated_tokens, halves

costs = st.lists(st.sampled_from([0, 1, 2, 4, 5, 9, 10, 11, 99]), max_size=40)
rows = st.integers(1, 5)


@given(costs, rows)
def test_runs_cover_all_rows_once_in_order_and_none_is_empty(costs, max_rows):
    runs = list(batches(costs, max_rows=max_rows, max_cost=10))
    assert [row for run in runs for row in run] == list(range(len(costs)))
    assert all(len(run) > 0 for run in runs)


@given(costs, rows)
def test_no_run_is_larger_than_a_request(costs, max_rows):
    for run in batches(costs, max_rows=max_rows, max_cost=10):
        assert len(run) <= max_rows
        assert len(run) == 1 or sum(costs[row] for row in run) <= 10


@given(costs, rows)
def test_no_run_could_be_longer(costs, max_rows):
    for run in batches(costs, max_rows=max_rows, max_cost=10):
        if run.stop < len(costs) and len(run) < max_rows:
            assert sum(costs[row] for row in run) + costs[run.stop] > 10


@given(st.integers(0, 50), st.integers(2, 50))
def test_halves_are_shorter_than_their_run_and_cover_it(start, length):
    run = range(start, start + length)
    left, right = halves(run)
    assert [*left, *right] == list(run)
    assert abs(len(left) - len(right)) <= 1


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 0),
        ({"prompt": "abcdefg"}, 2),
        ({"prompt": ["abcdefg", "abc"], "max_tokens": 900}, 3),
        ({"input": ["abcdefg"] * 3}, 6),
        ({"messages": [{"role": "user", "content": "abcdefg"}]}, 2),
        ({"messages": [{"content": [{"type": "text", "text": "abcdefg"}]}]}, 2),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "x" * 999}}]}]}, 0),
    ],
)
def test_text_is_estimated_at_four_characters_a_token(body, tokens):
    assert estimated_tokens(body) == tokens


def test_expected_output_follows_the_answers_and_never_exceeds_what_was_asked_for():
    sizes = OutputSizes()
    assert sizes.expected({}) == UNKNOWN_OUTPUT
    for size in [10] * 95 + [50] * 5:
        sizes.learn(size)
    assert sizes.expected({}) in (10, 50)
    assert sizes.expected({"max_tokens": 5}) == 5
    for _ in range(200):
        sizes.learn(80)
    assert sizes.expected({"max_completion_tokens": 500}) == 80
