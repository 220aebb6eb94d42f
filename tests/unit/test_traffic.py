"""Traffic is split as declared: evenly by turn, stably by key."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.endpoint import Route
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.traffic import choose, positions, schedule, split


def routes(*shares):
    return tuple(Route(f"model-{index}", share) for index, share in enumerate(shares))


@st.composite
def splits(draw, least=1, most=6):
    """Shares that add up to 100, with 0 and 1 % among them."""
    cuts = st.one_of(st.sampled_from([0, 1, 50, 99, 100]), st.integers(0, 100))
    inner = sorted(draw(st.lists(cuts, min_size=least - 1, max_size=most - 1)))
    return routes(*np.diff([0, *inner, 100]).tolist())


def window_error(split_):
    """The most calls by which any window of any length strays from any route's share."""
    turns = np.array(schedule(split_))
    worst = 0.0
    for index, route in enumerate(split_):
        share = route.traffic_percentage / 100
        ahead = np.concatenate([[0.0], np.cumsum((turns == index) - share)])
        worst = max(worst, float(ahead.max() - ahead.min()))
    return worst


@given(st.integers(0, 100))
def test_any_window_of_two_routes_is_within_one_call_of_the_split(share):
    assert window_error(routes(share, 100 - share)) <= 1 + 1e-9


@given(splits(least=3))
def test_any_window_of_k_routes_is_within_the_stated_bound(split_):
    k = sum(route.traffic_percentage > 0 for route in split_)
    assert window_error(split_) <= 2 - 1 / max(1, k - 1) + 1e-9


@given(splits())
def test_every_prefix_is_within_one_call_of_the_split(split_):
    given_ = Counter()
    for calls, turn in enumerate(schedule(split_) * 2, start=1):
        given_[turn] += 1
        for index, route in enumerate(split_):
            assert abs(given_[index] - calls * route.traffic_percentage / 100) < 1


@given(splits())
def test_a_hundred_calls_have_exactly_the_shares(split_):
    counted = np.bincount(positions(split_, 0, 100), minlength=len(split_))
    assert counted.tolist() == [route.traffic_percentage for route in split_]


@given(splits(), st.integers(0, 500), st.integers(0, 300))
def test_positions_are_the_schedule_repeated(split_, start, count):
    turns = schedule(split_)
    expected = [turns[call % len(turns)] for call in range(start, start + count)]
    assert positions(split_, start, count).tolist() == expected


def test_windows_counted_one_by_one_agree_with_the_bound():
    turns = positions(routes(90, 10), 0, 400)
    for start in range(100):
        for size in range(1, 300):
            assert abs((turns[start : start + size] == 1).sum() - size * 0.1) <= 1 + 1e-9


@given(splits(), st.binary(max_size=40))
def test_a_route_without_traffic_is_never_chosen(split_, key):
    assert split_[choose(split_, key)].traffic_percentage > 0


def test_no_traffic_at_all_is_refused():
    with pytest.raises(ConfigurationError, match="must add up to 100"):
        choose(routes(0, 0), b"key")
    with pytest.raises(ConfigurationError, match="must add up to 100"):
        schedule(routes(0, 0))


@given(splits(least=2), splits(least=2), st.lists(st.binary(max_size=20), max_size=30))
def test_a_new_split_moves_a_key_only_to_a_route_that_gained_on_the_one_it_leaves(before, after, keys):
    was = {route.served_entity_name: route.traffic_percentage for route in before}
    is_ = {route.served_entity_name: route.traffic_percentage for route in after}
    for key in keys:
        old = before[choose(before, key)].served_entity_name
        new = after[choose(after, key)].served_entity_name
        if new != old:
            assert is_[new] * was[old] > was.get(new, 0) * is_.get(old, 0)


@given(st.integers(0, 100), st.integers(0, 100), st.lists(st.binary(max_size=20), max_size=50))
def test_between_two_routes_no_key_moves_to_the_one_that_shrank(before, after, keys):
    for key in keys:
        old, new = (choose(routes(share, 100 - share), key) for share in (before, after))
        if new != old:
            assert new == (0 if after > before else 1)


def test_the_order_of_the_routes_does_not_matter_to_a_key():
    there, back = routes(20, 30, 50), routes(20, 30, 50)[::-1]
    for number in range(200):
        key = str(number).encode()
        assert there[choose(there, key)] == back[choose(back, key)]


@pytest.mark.parametrize("share", [1, 10, 50, 90])
def test_keys_keep_the_split_as_well_as_chance_does(share):
    n = 20_000
    hits = sum(choose(routes(share, 100 - share), b"row %d" % row) == 0 for row in range(n))
    p = share / 100
    assert abs(hits - n * p) < 4.5 * (n * p * (1 - p)) ** 0.5


def test_only_the_rows_that_must_move_do():
    n = 5_000
    moved = sum(choose(routes(90, 10), b"%d" % row) != choose(routes(50, 50), b"%d" % row) for row in range(n))
    assert moved / n == pytest.approx(0.40, abs=0.03)


def test_another_process_makes_the_same_choices():
    code = (
        "from aiquery_serving.endpoint import Route\n"
        "from aiquery_serving.traffic import choose\n"
        "r = (Route('model-0', 30), Route('model-1', 70))\n"
        "print([choose(r, b'%d' % i) for i in range(50)])"
    )
    path = [entry for entry in sys.path if entry]
    there = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert there.stdout.strip() == str([choose(routes(30, 70), b"%d" % i) for i in range(50)])


@given(st.lists(st.integers(0, 5), max_size=50))
def test_split_places_every_row_once_and_in_order(drawn):
    parts = split(np.array(drawn, dtype=np.uint8))
    assert [route for route, _ in parts] == sorted(set(drawn))
    for route, places in parts:
        assert places.tolist() == [row for row, its in enumerate(drawn) if its == route]
