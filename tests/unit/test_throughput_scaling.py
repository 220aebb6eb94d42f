"""The rate follows the load between the bounds, in chunks: up within seconds, down after minutes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_serving.throughput import Provision, Scaling
from aiquery_serving.throughput.scaling import DOWN_SECONDS, UP_SECONDS

CHUNK = 980


def bounds(fewest, most):
    return Provision(fewest * CHUNK, most * CHUNK, CHUNK)


def rates(scaling, given, load, *, start=0, end, step=1):
    """Look once a second (or `step`); `load(second)` says what is used since the last look, and what waits."""
    found = []
    for second in range(start, end, step):
        used, waiting = load(second, scaling.rate)
        if used:
            scaling.used(second, used)
        found.append(scaling.look(second, given, waiting=waiting) // CHUNK)
    return found


limits = st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda pair: bounds(min(pair), max(pair)))
loads = st.lists(
    st.tuples(st.floats(0, 100), st.integers(-2000, 20_000), st.integers(0, 50_000), st.booleans()), max_size=60
)


@given(limits, loads)
def test_the_rate_is_always_whole_chunks_within_the_bounds(given_, load):
    scaling, now = Scaling(given_), 0.0
    for passed, used, waiting, busy in load:
        now += passed
        scaling.used(now, used)
        rate = scaling.look(now, given_, waiting=waiting, busy=busy)
        assert given_.minimum <= rate <= given_.maximum
        assert rate % CHUNK == 0
        assert rate > 0 or not (busy or waiting)


@given(limits)
def test_a_flood_has_everything_within_seconds_and_idle_minutes_give_it_back(given_):
    scaling = Scaling(given_)
    flood = rates(scaling, given_, lambda _, rate: (rate, 200_000), end=5)
    assert flood[-1] * CHUNK == given_.maximum
    assert rates(scaling, given_, lambda *_: (0, 0), start=5, end=300)[-1] * CHUNK == given_.minimum


@given(st.integers(1, 6), st.floats(0.05, 0.75))
@settings(deadline=None)
def test_a_steady_load_settles_where_it_uses_most_of_what_there_is(most, part):
    given_ = bounds(1, most)
    load = part * most * CHUNK
    scaling = Scaling(given_)
    settled = rates(scaling, given_, lambda *_: (load, 0), end=400)
    assert len(set(settled[-100:])) == 1
    assert settled[-1] * CHUNK >= load
    assert settled[-1] == 1 or (settled[-1] - 1) * CHUNK < load / 0.8


def test_a_moment_s_peak_moves_nothing():
    scaling = Scaling(bounds(1, 6))
    found = rates(scaling, bounds(1, 6), lambda second, _: (0, 90_000 * (second == 10)), end=60)
    assert set(found) == {1}


def test_a_pause_between_two_bursts_moves_nothing():
    scaling = Scaling(bounds(0, 6))
    found = rates(scaling, bounds(0, 6), lambda second, rate: (rate, 90_000 * (second % 100 < 50)), end=500)
    assert set(found[10:]) == {6}


def test_it_goes_up_after_seconds_and_down_after_minutes():
    scaling, given_ = Scaling(bounds(1, 6)), bounds(1, 6)
    found = rates(scaling, given_, lambda second, rate: (0, 90_000 * (10 <= second < 100)), end=300)
    assert found.index(6) == 10 + UP_SECONDS
    assert 100 + DOWN_SECONDS - 1 <= len(found) - found[::-1].index(6) <= 100 + DOWN_SECONDS


def test_from_nothing_it_rises_at_once_and_nobody_has_to_look_for_it_to_fall():
    scaling, given_ = Scaling(bounds(0, 6)), bounds(0, 6)
    assert scaling.look(1000.0, given_, waiting=100) == CHUNK
    assert scaling.look(1060.0, given_) == CHUNK
    assert scaling.look(1061.0 + DOWN_SECONDS, given_) == 0


def test_a_call_under_way_keeps_the_last_chunk():
    scaling, given_ = Scaling(bounds(0, 6)), bounds(0, 6)
    scaling.look(0.0, given_, waiting=100)
    assert scaling.look(5000.0, given_, busy=True) == CHUNK


def test_changed_bounds_count_at_once_and_what_it_has_seen_stays():
    scaling = Scaling(bounds(1, 6))
    rates(scaling, bounds(1, 6), lambda _, rate: (rate, 90_000), end=10)
    assert scaling.look(10.0, bounds(1, 3)) == 3 * CHUNK
    assert scaling.look(10.0, bounds(5, 8)) >= 5 * CHUNK


def test_model_units_are_fixed():
    fixed = Provision(1470, 1470, CHUNK)
    scaling = Scaling(fixed)
    assert [scaling.look(second, fixed, waiting=90_000) for second in range(9)] == [1470] * 9
