"""Limits are never exceeded in any rolling window, and waits are enough and not too much."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery.testing import ManualClock
from aiquery_serving.admission import Admission
from aiquery_serving.endpoint import RateLimit
from aiquery_serving.errors import InvalidRequestError, TooManyRequestsError
from aiquery_serving.leases import Leases
from aiquery_serving.limits import LearnedLimit, Limits, RollingLimit, refusal
from aiquery_serving.messages import Allowance

# Evenly spread gaps almost never put a burst right after a renewal; these do.
gaps = st.lists(st.sampled_from([0, 0, 0.01, 0.5, 20, 59.5, 59.97, 60, 61]), max_size=40)
sizes = st.lists(st.sampled_from([0, 1, 3, 10]), min_size=40, max_size=40)
used = st.lists(st.sampled_from([0, 1, 2, 3, 10]), min_size=40, max_size=40)
lags = st.lists(st.sampled_from([0, 1, 3]), min_size=40, max_size=40)


def in_window(stamps, start):
    return sum(amount for at, amount in stamps if at >= start and not start + 60 <= at)


@given(st.integers(1, 4), gaps)
def test_no_period_admits_more_than_calls(calls, gaps):
    limit, now, admitted = RollingLimit(calls=calls, period=60), 0.0, []
    for gap in gaps:
        now += gap
        if limit.wait(now) == 0:
            limit.take(now)
            admitted.append((now, 1))
    for start, _ in admitted:
        assert in_window(admitted, start) <= calls


@pytest.mark.parametrize("calls", [None, 100_000, 3])
@given(gaps=gaps, sizes=sizes, used=used, lags=lags)
def test_no_period_settles_more_than_tokens(calls, gaps, sizes, used, lags):
    limit, now = RollingLimit(calls=calls, tokens=10, period=60), 0.0
    admitted, open_ = [], []
    for number, gap in enumerate(gaps):
        now += gap
        if limit.wait(now, sizes[number]) == 0:
            entry = limit.take(now, sizes[number])
            admitted.append([now, sizes[number]])
            open_.append((len(admitted) - 1, entry, sizes[number], used[number], number + lags[number]))
        for at, entry, reserved, actual, _ in [call for call in open_ if call[4] <= number]:
            limit.settle(entry, reserved, min(reserved, actual), now)
            admitted[at][1] = min(reserved, actual)
        open_ = [call for call in open_ if call[4] > number]
    for start, _ in admitted:
        assert in_window(admitted, start) <= 10


@given(st.integers(1, 4), gaps, sizes)
def test_the_wait_named_is_enough_and_not_too_much(calls, gaps, sizes):
    limit, now = RollingLimit(calls=calls, tokens=10, period=60), 0.0
    for number, gap in enumerate(gaps):
        now += gap
        wait = limit.wait(now, sizes[number])
        if wait > 1e-6:
            assert limit.wait(now + wait - 1e-6, sizes[number]) > 0
        if wait > 0:
            now += wait
            assert limit.wait(now, sizes[number]) == 0
        limit.take(now, sizes[number])


def test_what_was_reserved_but_not_used_is_free_at_once():
    limit = RollingLimit(tokens=10, period=60)
    entry = limit.take(0, 10)
    assert limit.wait(5, 4) == 55
    limit.settle(entry, 10, 6, 5)
    assert limit.wait(5, 4) == 0


def test_what_was_used_beyond_the_reservation_is_paid_by_later_calls():
    limit = RollingLimit(tokens=10, period=60)
    entry = limit.take(0, 5)
    limit.settle(entry, 5, 25, 30)
    assert limit.wait(60, 1) == 30
    assert limit.wait(90, 10) == 0


def test_an_answer_after_the_period_corrects_nothing():
    limit = RollingLimit(tokens=10, period=60)
    entry = limit.take(0, 10)
    assert limit.wait(70, 10) == 0
    limit.take(70, 10)
    limit.settle(entry, 10, 0, 71)
    assert limit.wait(71, 1) == 59


def test_a_call_that_was_not_sent_leaves_no_trace():
    limits = Limits([minute(calls=1, tokens=9)])
    reservation = limits.take("", 0.0, 9)
    assert limits.wait("", 1.0, 9) == 59.0
    reservation.undo()
    assert limits.wait("", 1.0, 9) == 0.0
    late = limits.take("", 1.0, 9)
    limits.take("", 62.0, 9)
    late.undo()
    assert limits.wait("", 62.0, 1) == 60.0


def test_a_call_larger_than_the_limit_has_no_wait_that_helps():
    assert RollingLimit(tokens=10, period=60).wait(0, 11) == math.inf


@pytest.mark.parametrize("limit", [RollingLimit(tokens=10**9, period=60), RollingLimit(calls=10**6, period=60)])
def test_many_small_calls_are_kept_in_bounded_memory(limit):
    for call in range(20_000):
        limit.take(call * 0.003, 1)
    assert len(limit._entries) <= 1_001


def test_merged_calls_leave_together_and_late_rather_than_early():
    limit = RollingLimit(calls=5_000, period=60)
    for call in range(5_000):
        limit.take(call * 1e-5)
    assert limit.wait(1) == pytest.approx(59 + 4_999e-5)


def minute(**rule):
    return RateLimit(renewal_period="minute", **rule)


def calls_until_refused(limits, caller, now=0.0, tokens=0):
    taken = 0
    while limits.wait(caller, now, tokens) == 0 and taken < 100:
        limits.take(caller, now, tokens)
        taken += 1
    return taken


@pytest.mark.parametrize(
    ("declared", "ann", "bob"),
    [
        ([minute(calls=5)], 5, 0),
        ([minute(calls=5, key="user")], 5, 5),
        ([minute(calls=8), minute(calls=5, key="user")], 5, 3),
        ([minute(calls=3, key="user", principal="ann")], 3, 100),
        ([minute(calls=9, key="user"), minute(calls=2, key="user", principal="ann")], 2, 9),
        ([minute(calls=4, key="service_principal", principal="bob")], 100, 4),
        ([minute(tokens=12, key="user")], 6, 6),
        ([minute(calls=7), minute(calls=5), minute(tokens=6)], 3, 0),
        ([], 100, 100),
    ],
)
def test_the_strictest_limit_of_each_caller_wins(declared, ann, bob):
    limits = Limits(declared)
    assert calls_until_refused(limits, "ann", tokens=2) == ann
    assert calls_until_refused(limits, "bob", tokens=2) == bob


def test_new_limits_remember_what_was_spent():
    limits = Limits([minute(calls=10)])
    assert calls_until_refused(limits, "") == 10
    limits.declare([minute(calls=12), minute(calls=50, key="user")])
    assert calls_until_refused(limits, "") == 2


def test_callers_are_forgotten_after_their_period():
    limits = Limits([minute(calls=1, key="user")])
    for number in range(5_000):
        limits.take(f"caller {number}", now=float(number))
    assert len(limits._windows) <= 2_048


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"calls": 1}, "Requests-per-minute (RPM) rate limit exceeded for endpoint"),
        ({"calls": 1, "key": "user"}, "Requests-per-minute (RPM) rate limit exceeded for user"),
        ({"tokens": 5}, "Tokens-per-minute (TPM) rate limit exceeded for endpoint"),
    ],
)
def test_a_refusal_says_which_limit_and_for_how_long(rule, text):
    limits = Limits([minute(**rule)])
    limits.take("ann", 10.0, 3)
    error = refusal("chat", limits.strictest("ann", 25.0, 3))
    assert str(error) == f"User defined rate limit(s) exceeded for 'chat'. {text}"
    assert error.retry_after == 45.0


GROUPS = {"ann": {"analysts"}, "bob": {"analysts", "writers"}, "cid": set()}


def of_groups(name):
    return frozenset(GROUPS.get(name, ()))


@pytest.mark.parametrize(
    ("declared", "admitted"),
    [
        ([minute(calls=5, key="user_group", principal="analysts")], {"ann": 5, "bob": 0, "cid": 100}),
        ([minute(calls=5, key="user_group", principal="ann")], {"ann": 100}),
        ([minute(calls=5, key="user", principal="analysts")], {"ann": 100}),
        ([minute(calls=5, key="user_group", principal="analysts"), minute(calls=3, key="user")], {"ann": 3, "bob": 2, "cid": 3}),
        (
            [minute(calls=n, key="user_group", principal=group) for group, n in (("analysts", 9), ("writers", 4))],
            {"bob": 4, "ann": 5},
        ),
        ([minute(tokens=10, key="user_group", principal="analysts")], {"ann": 5, "bob": 0, "cid": 100}),
        ([minute(calls=4, key="service_principal", principal="etl")], {"etl": 4, "ann": 100}),
    ],
)  # fmt: skip
def test_the_members_of_a_group_are_counted_together(declared, admitted):
    limits = Limits(declared, of_groups)
    assert {name: calls_until_refused(limits, name, tokens=2) for name in admitted} == admitted


@given(
    st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.sampled_from([0, 0.5, 20, 59.5, 61])), max_size=60)
)
def test_no_period_admits_more_of_a_group_than_its_limit(calls):
    limits, now, admitted = Limits([minute(calls=3, key="user_group", principal="analysts")], of_groups), 0.0, []
    for name, gap in calls:
        now += gap
        if limits.wait(name, now) == 0:
            limits.take(name, now)
            admitted += [(now, 1)] if "analysts" in of_groups(name) else []
        else:
            assert name != "cid"
    assert all(in_window(admitted, start) <= 3 for start, _ in admitted)


def test_who_leaves_a_group_is_counted_with_it_no_more():
    groups = {"analysts"}
    limits = Limits([minute(calls=1, key="user_group", principal="analysts")], lambda _: frozenset(groups))
    limits.take("ann", 0.0)
    assert limits.wait("ann", 1.0) == 59.0
    groups.clear()
    assert limits.wait("ann", 1.0) == 0.0
    assert limits.strictest("ann", 1.0, 0) is None


def test_a_member_of_a_group_is_refused_as_a_user():
    limits = Limits([minute(calls=1, key="user_group", principal="analysts")], of_groups)
    limits.take("ann", 0.0)
    error = refusal("chat", limits.strictest("bob", 15.0, 0))
    assert str(error).endswith("Requests-per-minute (RPM) rate limit exceeded for user")
    assert error.retry_after == 45.0


class Office:
    """One process's admission to an endpoint, and who was let in when."""

    def __init__(self, clock, declared, folder=None, groups_of=of_groups):
        self.clock, self.log = clock, []
        leases = Leases(folder, clock) if folder else None
        self.admission = Admission("chat", "id", tuple(declared), clock=clock, leases=leases, groups_of=groups_of)

    async def call(self, caller, tokens=0, *, patient=True):
        await self.admission.enter(caller, tokens, patient=patient)
        self.log.append((self.clock.now(), caller))

    async def many(self, **counts):
        await asyncio.gather(*(self.call(name) for name, count in counts.items() for _ in range(count)))

    def when(self, caller):
        return [at for at, name in self.log if name == caller]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def per_group(*groups, calls=2):
    return [minute(calls=calls, key="user_group", principal=group) for group in groups]


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_group_that_has_used_up_its_limit_holds_up_nobody_else(shared, tmp_path):
    office = Office(ManualClock(), per_group("analysts"), tmp_path if shared else None)
    run(office.many(ann=3, bob=3, cid=50))
    assert office.when("cid") == [0.0] * 50
    members = sorted([*office.when("ann"), *office.when("bob")])
    assert [sum(start <= at < start + 60 for at in members) for start in (0, 60, 120)] == [2, 2, 2]


def test_processes_keep_the_limit_of_a_group_together_whoever_asks_where(tmp_path):
    clock = ManualClock()
    one, other = (Office(clock, per_group("analysts", calls=30), tmp_path) for _ in range(2))

    async def both():
        await asyncio.gather(one.many(ann=60, cid=5), other.many(bob=60))

    run(both())
    stamps = sorted(at for at, name in one.log + other.log if name != "cid")
    assert max(sum(start <= at < start + 60 for at in stamps) for start in stamps) == 30
    assert clock.now() <= 180 * 1.03
    assert max(one.when("cid")) == 0.0


def test_who_joins_a_group_is_counted_with_it_by_all_processes(tmp_path):
    clock, groups = ManualClock(), {"bob": {"analysts"}, "ann": set()}
    declared = [*per_group("analysts"), minute(calls=50)]
    one, other = (Office(clock, declared, tmp_path, lambda name: frozenset(groups[name])) for _ in range(2))

    async def join():
        await one.many(ann=5)
        await other.many(bob=2)
        groups["ann"].add("analysts")
        with pytest.raises(TooManyRequestsError, match="exceeded for user"):
            await one.call("ann", patient=False)
        groups["ann"].clear()
        await one.call("ann", patient=False)

    run(join())
    assert one.when("ann") == [0.0] * 6


def test_what_can_never_be_admitted_is_refused_rather_than_waited_for():
    with pytest.raises(InvalidRequestError, match=r"about 11 tokens.*allows 10 per minute"):
        Limits([minute(tokens=10)]).check("chat", "", 11)


class RollingProvider:
    """Allows `limit` calls in any `period` seconds; resets when a call is free again."""

    def __init__(self, limit, period):
        self.limit, self.period, self.stamps = limit, period, []

    def arrive(self, now):
        """Return the headers, or None for a 429."""
        self.stamps = [stamp for stamp in self.stamps if stamp + self.period > now]
        if len(self.stamps) >= self.limit:
            return None
        self.stamps.append(now)
        free = self.limit - len(self.stamps)
        return Allowance(limit=self.limit, remaining=free, reset_after=self.stamps[0] + self.period - now)


class BucketProvider:
    """Refills `limit` calls over `period` seconds; resets when it is full again."""

    def __init__(self, limit, period):
        self.limit, self.rate, self.level, self.at = limit, limit / period, float(limit), 0.0

    def arrive(self, now):
        self.level = min(self.limit, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            return None
        self.level -= 1
        reset = (self.limit - self.level) / self.rate
        return Allowance(limit=self.limit, remaining=int(self.level), reset_after=reset)


def run_against(provider, calls, *, concurrency=64, travel=0.03, service=0.07):
    """Send calls through one learned limit; returns when it ended and how many were refused."""
    learned, now, refused = LearnedLimit(), 0.0, 0
    events, in_flight, sent = [], 0, 0  # (time, order, what, entry, headers)
    while sent < calls or events:
        wait = learned.wait(now) if sent < calls and in_flight < concurrency else math.inf
        if wait == 0:
            events.append((now + travel * (1 + sent % 3), sent, "arrives", learned.sent(now), None))
            sent, in_flight = sent + 1, in_flight + 1
            continue
        upcoming = min(events, default=(math.inf,))
        if now + wait < upcoming[0]:
            now += wait
            continue
        events.remove(upcoming)
        now, order, what, entry, headers = upcoming
        if what == "arrives":
            headers = provider.arrive(now)
            events.append((now + service, order, "returns", entry, headers))
        else:
            in_flight -= 1
            learned.finish(entry, now)
            if headers is None:
                refused, sent = refused + 1, sent - 1
            else:
                learned.observe(headers, now, in_flight)
    return now, refused


@pytest.mark.parametrize("concurrency", [1, 16, 64])
def test_a_rolling_provider_that_tells_sees_no_call_too_many_and_little_idle_time(concurrency):
    ended, refused = run_against(RollingProvider(300, 10.0), 500, concurrency=concurrency)
    # The first 300 calls take their time; the rest may follow them at ten seconds' distance.
    ideal = max(500 / concurrency * 0.14, 10 + 200 / concurrency * 0.14)
    assert refused == 0
    assert ended <= ideal + 0.3


def test_a_bucket_provider_that_tells_sees_no_call_too_many():
    ended, refused = run_against(BucketProvider(300, 10.0), 900)
    assert refused == 0
    assert ended <= 31


def test_small_limits_tell_every_instant_apart():
    limit = RollingLimit(calls=2, period=60)
    limit.take(0.0)
    limit.take(0.05)
    assert limit.wait(1.0) == 59.0


def test_a_call_counts_from_its_answer_when_that_came_soon():
    learned = LearnedLimit()
    learned.observe(Allowance(limit=1, reset_after=10.0), 0.0, in_flight=0)
    entry = learned.sent(1.0)
    assert learned.wait(1.0) == 11.0  # it may count a second from now
    learned.finish(entry, 1.25)
    assert learned.wait(2.0) == 9.25
    late = learned.sent(11.25)
    learned.finish(late, 15.0)
    assert learned.wait(15.0) == pytest.approx(11.25 + 0.5 + 10 - 15)


def test_the_longest_reset_seen_is_the_period():
    learned = LearnedLimit()
    learned.observe(Allowance(limit=1, reset_after=10.0), 0.0, in_flight=0)
    learned.finish(learned.sent(0.0), 0.0)
    learned.observe(Allowance(limit=1, reset_after=0.5), 0.0, in_flight=0)
    assert learned.wait(1.0) == 9.0


def test_nothing_is_known_before_the_first_answer():
    learned = LearnedLimit()
    for _ in range(256):
        assert learned.wait(0.0) == 0.0
        learned.sent(0.0)


def test_what_is_left_is_shared_with_what_is_still_in_flight():
    learned = LearnedLimit()
    learned.observe(Allowance(limit=100, remaining=5, reset_after=8.0), 0.0, in_flight=3)
    assert [learned.sent(0.0) and learned.wait(0.0) for _ in range(2)] == [0.0, 8.0]
    learned.observe(Allowance(remaining=4), 1.0, in_flight=2)
    assert learned.wait(1.0) == 0.0


def test_a_call_that_was_not_sent_teaches_nothing():
    learned = LearnedLimit()
    learned.observe(Allowance(limit=2, remaining=1, reset_after=8.0), 0.0, in_flight=0)
    entry = learned.sent(0.0)
    assert learned.wait(0.0) == 8.0
    learned.unsent(entry)
    assert learned.wait(0.0) == 0.0


def test_tokens_are_corrected_by_what_an_answer_used():
    learned = LearnedLimit()
    learned.observe(Allowance(limit=100, reset_after=10.0), 0.0, in_flight=0)
    entry = learned.sent(0.0, 90)
    assert learned.wait(0.0, 20) > 0
    learned.finish(entry, 0.0, 50)
    assert learned.wait(0.0, 20) == 0


def test_a_call_larger_than_a_learned_limit_goes_alone_rather_than_never():
    learned = LearnedLimit()
    learned.observe(Allowance(limit=100, remaining=100, reset_after=10.0), 0.0, in_flight=0)
    learned.sent(0.0, 100)
    assert 0 < learned.wait(0.0, 500) <= 11
    assert learned.wait(12.0, 500) == 0
