"""A throughput is never exceeded, is used up where there is work, and is shared as promised."""

import math
from collections import deque
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_serving.throughput import Sharing
from aiquery_serving.throughput.sharing import BATCH_SHARE, DEPTH, HEADROOM

SLACK = 1e-3


class Call(NamedTuple):
    at: float
    tokens: int
    batch: bool


class Went(NamedTuple):
    at: float
    tokens: int
    batch: bool
    waited: float


def play(sharing, calls, *, until=math.inf, used=lambda call: call.tokens, seconds=0.0):
    """Let calls go through two lines; each is settled `seconds` after it went."""
    ahead, lines, went, settling = deque(sorted(calls)), {False: deque(), True: deque()}, [], deque()
    now = 0.0
    while now < until and (ahead or any(lines.values()) or settling):
        while ahead and ahead[0].at <= now:
            call = ahead.popleft()
            lines[call.batch].append(call)
        while settling and settling[0][0] <= now:
            _, taken, actual = settling.popleft()
            sharing.settle(taken, now, actual)
        waits = {}
        for batch in (False, True, False):
            line, rivals = lines[batch], lines[not batch]
            while line:
                rival = rivals[0].tokens if rivals else None
                waits[batch] = sharing.wait(now, line[0].tokens, batch=batch, rival=rival)
                if waits[batch] > 0:
                    break
                call = line.popleft()
                taken = sharing.take(now, call.tokens, batch=batch)
                settling.append((now + seconds, taken, used(call)))
                went.append(Went(now, call.tokens, batch, now - call.at))
        due = [now + waits[batch] for batch, line in lines.items() if line]
        due += [ahead[0].at] if ahead else []
        due += [settling[0][0]] if settling else []
        now = max(now, min(due, default=now))
    return went


def most_in_a_window(went, rate, room):
    """The most by which any window had more than the rate allows, and the room of a bucket."""
    worst = -math.inf
    for first in range(len(went)):
        tokens = 0
        for last in range(first, len(went)):
            tokens += went[last].tokens
            worst = max(worst, tokens - rate * (went[last].at - went[first].at) - room)
    return worst


calls = st.lists(
    st.builds(Call, at=st.floats(0, 20), tokens=st.integers(1, 3000), batch=st.booleans()), min_size=1, max_size=60
)


@given(calls, st.sampled_from([0.0, 2000.0]))
@settings(deadline=None)
def test_no_window_has_more_than_the_rate_a_bucket_and_what_was_saved(asked, burst):
    rate = 980
    went = play(Sharing(0.0, rate, burst=burst), asked)
    assert sorted(went_.tokens for went_ in went) == sorted(call.tokens for call in asked)
    largest = max(call.tokens for call in asked)
    assert most_in_a_window(went, rate, rate * DEPTH + burst + max(0, largest - rate * DEPTH)) <= SLACK


@given(st.lists(st.integers(1, 3000), min_size=5, max_size=60), st.booleans())
@settings(deadline=None)
def test_whoever_is_alone_uses_all_of_it(sizes, batch):
    rate = 980
    went = play(Sharing(0.0, rate), [Call(0.0, size, batch) for size in sizes])
    # All but the last have been earned when the last goes.
    assert went[-1].at <= sum(sizes) / rate + SLACK
    for earlier, later in pairwise(range(len(went))):
        gone = sum(one.tokens for one in went[: earlier + 1])
        assert went[later].at <= (gone + min(rate, went[later].tokens)) / rate + SLACK


@given(
    st.lists(st.integers(100, 500), min_size=5, max_size=10),
    st.lists(st.integers(100, 500), min_size=5, max_size=10),
    st.sampled_from([300, 980, 5880]),
)
@settings(deadline=None, max_examples=40)
def test_together_they_use_all_of_it_and_each_has_its_part(interactive, batch, rate):
    asked = [Call(0.0, size, False) for size in interactive * 40] + [Call(0.0, size, True) for size in batch * 40]
    until = 20.0 if rate < 5000 else 2.0
    went = play(Sharing(0.0, rate), asked, until=until)
    of = {kind: sum(one.tokens for one in went if one.batch is kind) for kind in (False, True)}
    assert of[True] + of[False] >= rate * until - 2 * 500
    assert of[True] >= BATCH_SHARE * rate * until - 500 - SLACK
    assert of[False] >= (1 - BATCH_SHARE) * rate * until - 2 * 500 - SLACK


@given(
    st.lists(st.tuples(st.floats(0.1, 3), st.integers(1, 490)), min_size=1, max_size=30),
    st.lists(st.integers(1, 490), min_size=100, max_size=100),
)
@settings(deadline=None)
def test_interactive_callers_hardly_wait_however_much_batch_work_does(gaps, batch):
    rate, at, asked = 980, 2.0, [Call(0.0, size, True) for size in batch * 3]
    for gap, size in gaps:
        # Interactive work that is at most a third of the rate, in calls of at most half a second's worth.
        at += max(gap, 3 * size / rate)
        asked.append(Call(at, size, False))
    went = play(Sharing(0.0, rate), asked)
    interactive = [one.waited for one in went if not one.batch]
    assert max(interactive) <= 2 * 490 / rate
    # The lower half of the bucket is theirs: with nobody of theirs just before, they go at once unless batch work is owed.
    assert HEADROOM * rate >= 490


def test_an_interactive_call_goes_at_once_when_only_batch_work_waits():
    sharing = Sharing(0.0, 980)
    batch = [Call(0.0, 100, True) for _ in range(500)]
    went = play(sharing, [*batch, Call(7.05, 400, False)])
    assert [one.waited for one in went if not one.batch] == [0.0]


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 2)), min_size=30, max_size=60),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 4.0]),
)
@settings(deadline=None)
def test_settling_keeps_the_sums_right(sizes, batch, seconds):
    rate = 980
    asked = [Call(index * 1e-6, tokens, batch) for index, (tokens, _) in enumerate(sizes)]
    factors = dict(zip(asked, (factor for _, factor in sizes), strict=True))
    used = {}

    def actual(call):
        return used.setdefault(call, call.tokens * factors[call])

    sharing = Sharing(0.0, rate)
    went = play(sharing, asked, used=actual, seconds=seconds)
    # What was used in all, and what may still be: the bucket, and calls that used more than was known.
    over = sum(max(0.0, actual(call) - call.tokens) for call in asked)
    assert sum(actual(call) for call in asked) <= rate * (went[-1].at + DEPTH) + over + SLACK
    if seconds == 0:
        assert went[-1].at <= max(sum(map(actual, asked)), 1) / rate + 400 / rate + SLACK


def test_tokens_that_were_not_used_go_to_the_next_at_once():
    sharing = Sharing(0.0, 1000)
    taken = sharing.take(0.0, 1000, batch=False)
    assert sharing.wait(0.0, 600, batch=False) == pytest.approx(0.6)
    sharing.settle(taken, 0.0, 100)
    assert sharing.wait(0.0, 600, batch=False) == 0.0


def test_a_call_larger_than_a_second_goes_when_the_bucket_is_full_and_leaves_a_debt():
    sharing = Sharing(0.0, 1000)
    assert sharing.wait(0.0, 5000, batch=True) == 0.0
    sharing.take(0.0, 5000, batch=True)
    assert sharing.wait(0.0, 1, batch=False) == pytest.approx(4.001)


def test_idle_times_are_saved_for_spikes_of_interactive_callers_alone():
    def spike(burst, *, batch):
        sharing = Sharing(0.0, 1000, burst=burst)
        went = play(sharing, [Call(60.0, 500, batch) for _ in range(20)])
        return sum(one.at == 60.0 for one in went)

    assert spike(5000, batch=False) == 12
    assert spike(0, batch=False) == 2
    assert spike(5000, batch=True) == 1  # the lower half of the bucket is not for it


def test_what_was_saved_is_a_gift_and_leaves_no_debt():
    sharing = Sharing(0.0, 1000, burst=5000)
    sharing.wait(60.0, 1, batch=False)
    for _ in range(12):
        sharing.take(60.0, 500, batch=False)
    assert sharing.wait(60.0, 500, batch=False) == sharing.wait(60.0, 500, batch=True) == pytest.approx(0.5)


def test_what_batch_work_had_while_nobody_else_wanted_it_is_not_held_against_it():
    rate = 980
    batch = [Call(0.0, 100, True) for _ in range(1000)]
    went = play(Sharing(0.0, rate), [*batch, *(Call(40.0, 100, False) for _ in range(500))], until=60.0)
    late = sum(one.tokens for one in went if one.batch and one.at >= 40.0)
    assert late == pytest.approx(BATCH_SHARE * rate * 20, abs=500)


def test_small_batch_calls_do_not_pass_a_large_interactive_one():
    asked = [Call(0.0, 10, True) for _ in range(3000)] + [Call(0.0, 900, False) for _ in range(30)]
    went = play(Sharing(0.0, 980), asked, until=20.0)
    interactive = sum(one.tokens for one in went if not one.batch)
    assert interactive == pytest.approx((1 - BATCH_SHARE) * 980 * 20, abs=1000)


def test_nothing_fills_while_the_model_is_not_there():
    sharing = Sharing(0.0, 1000)
    sharing.flow(0.0, flowing=False)
    sharing.take(0.0, 800, batch=True)
    assert sharing.wait(50.0, 300, batch=True) == math.inf
    assert sharing.wait(50.0, 200, batch=False) == 0.0
    sharing.flow(50.0, flowing=True)
    assert sharing.wait(50.0, 300, batch=False) == pytest.approx(0.1)


def test_another_rate_takes_effect_at_once_and_from_nothing_the_bucket_is_full():
    sharing = Sharing(0.0, 1000)
    sharing.take(0.0, 1000, batch=False)
    sharing.scale(0.0, 4000)
    assert sharing.wait(0.0, 1000, batch=False) == pytest.approx(0.25)
    sharing.scale(10.0, 0)
    assert sharing.wait(10.0, 1, batch=False) == math.inf
    sharing.scale(10.0, 500)
    assert sharing.wait(10.0, 500, batch=False) == 0.0


def test_it_says_how_long_interactive_calls_will_take_to_go():
    sharing = Sharing(0.0, 1000)
    assert sharing.delay(800, rival=False) == 0.0
    assert sharing.delay(2500, rival=False) == pytest.approx(1.5)
    assert sharing.delay(2500, rival=True) == pytest.approx(2.0)
