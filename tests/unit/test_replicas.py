"""How many processes a custom model has: what its size declares, and what the last requests called for."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.endpoint import ServedEntity
from aiquery_serving.entities.workers.replicas import MOMENT, SPARE_SECONDS, Replicas, Scaling, replicas_of

IDLE = 1800.0


@pytest.mark.parametrize(
    ("declared", "cores", "bounds"),
    [
        ({}, 16, (1, 1, 4)),
        ({"workload_size": "Small"}, 16, (1, 1, 4)),
        ({"workload_size": "Medium"}, 16, (2, 4, 4)),
        ({"workload_size": "Large"}, 64, (4, 16, 4)),
        ({"workload_size": "Large"}, 8, (2, 8, 8)),  # fewer processes, as many requests
        ({"workload_size": "Medium"}, 1, (1, 1, 16)),
        ({"workload_size": "Large", "workload_type": "GPU_SMALL"}, 64, (1, 1, 64)),
        ({"workload_size": "Large", "workload_type": "MULTIGPU_MEDIUM"}, 64, (1, 1, 64)),
        ({"workload_size": "Medium", "scale_to_zero_enabled": True}, 16, (0, 4, 4)),
        ({"max_provisioned_concurrency": 8}, 16, (1, 2, 4)),
        ({"max_provisioned_concurrency": 8, "min_provisioned_concurrency": 8}, 16, (2, 2, 4)),
        ({"max_provisioned_concurrency": 8, "min_provisioned_concurrency": 0}, 16, (0, 2, 4)),
        ({"max_provisioned_concurrency": 1}, 16, (1, 1, 1)),
        ({"max_provisioned_concurrency": 5}, 16, (1, 2, 3)),
    ],
)
def test_sizes_are_so_many_processes(declared, cores, bounds):
    assert replicas_of(ServedEntity(name="m", **declared), cores=cores) == Replicas(*bounds)


@given(most=st.integers(1, 200), least=st.integers(0, 200), cores=st.integers(0, 64))
def test_all_processes_together_take_what_is_declared_and_none_is_useless(most, least, cores):
    low = min(least, most)
    entity = ServedEntity(name="m", max_provisioned_concurrency=most, min_provisioned_concurrency=low)
    found = replicas_of(entity, cores=cores)
    assert found.most * found.each >= most
    assert 1 <= found.most <= max(cores, 1)
    assert low <= found.least * found.each
    assert 0 <= found.least <= found.most
    assert (found.least == 0) == (low == 0)


def scaling(*bounds, idle=IDLE):
    return Scaling(Replicas(*bounds), idle_seconds=idle, now=0.0)


def test_a_second_process_is_wanted_once_the_first_has_been_full_for_a_moment():
    one = scaling(1, 2, 4)
    assert not one.note(4, now=1.0)
    assert one.wanted(1, now=9.0) == 1
    assert one.note(5, now=10.0)
    assert one.wanted(1, now=10.0 + MOMENT / 2) == 1
    assert one.look_again(1, now=10.0 + MOMENT / 2) == MOMENT / 2
    assert one.wanted(1, now=10.0 + MOMENT) == 2


def test_a_short_rush_starts_nothing():
    one = scaling(1, 2, 4)
    for second in range(10):
        one.note(8, now=second)
        one.note(4, now=second + MOMENT / 2)
        assert one.wanted(1, now=second + MOMENT) == 1


def test_a_great_rush_wants_all_at_once_and_never_more_than_there_may_be():
    one = scaling(1, 3, 4)
    one.note(100, now=0.0)
    assert one.wanted(1, now=MOMENT) == 3


def test_the_second_process_outlasts_the_rush_by_some_minutes_and_the_first_stays():
    one = scaling(1, 2, 4)
    one.note(5, now=0.0)
    one.note(1, now=100.0)
    assert one.wanted(2, now=100.0 + SPARE_SECONDS - 1) == 2
    assert one.look_again(2, now=100.0 + SPARE_SECONDS - 1) == 1
    assert one.wanted(2, now=100.0 + SPARE_SECONDS) == 1
    assert one.wanted(1, now=1e9) == 1


def test_the_last_process_ends_after_idle_where_none_has_to_run():
    one = scaling(0, 2, 4)
    assert one.wanted(1, now=IDLE - 1) == 1
    one.note(1, now=IDLE)
    assert one.wanted(1, now=9 * IDLE) == 1, "it is busy"
    one.note(0, now=10 * IDLE)
    assert one.look_again(1, now=10 * IDLE) == IDLE
    assert one.wanted(1, now=11 * IDLE) == 0
    assert one.look_again(0, now=11 * IDLE) is None


def test_one_that_crashed_is_wanted_again_at_once():
    one = scaling(2, 4, 4)
    assert one.wanted(1, now=0.0) == 2
    one.note(9, now=0.0)
    one.note(0, now=MOMENT)
    assert one.wanted(2, now=MOMENT) == 2, "the third was not needed any more"


def test_one_that_nobody_ever_needed_goes_at_once():
    assert scaling(1, 3, 4).wanted(2, now=0.0) == 1


STEPS = st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0.0, 0.1, MOMENT, 1.0, 5.0, 299.0, 301.0])))


@given(least=st.integers(0, 3), more=st.integers(0, 3), each=st.integers(1, 5), steps=STEPS)
def test_whoever_follows_its_advice_is_within_the_bounds_and_neither_starves_nor_idles(least, more, each, steps):
    bounds = Replicas(least, max(least + more, 1), each)
    one, now, running = Scaling(bounds, idle_seconds=10.0, now=0.0), 0.0, max(least, 1)
    for requests, seconds in steps:
        one.note(requests, now=now)
        running = max(running, min(requests, 1))  # whoever asks starts the first
        end = now + seconds
        while (pause := one.look_again(running, now=now)) is not None and now + pause <= end:
            now += max(pause, 1e-6)
            running = one.wanted(running, now=now)
            assert bounds.least <= running <= bounds.most
        now = end
        running = one.wanted(running, now=now)
        assert bounds.least <= running <= bounds.most
        enough = min(max(ceil(requests / each), least), bounds.most)
        if seconds > MOMENT:
            assert running >= enough
        if seconds > SPARE_SECONDS:
            assert running == enough
