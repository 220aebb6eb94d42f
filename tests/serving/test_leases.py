"""Processes that share a folder share its rate limits: never exceeded together, and shared out evenly."""

import asyncio
import logging
import math
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery.testing import ManualClock
from aiquery_serving import leases as leases_module
from aiquery_serving.admission import Admission
from aiquery_serving.endpoint import RateLimit
from aiquery_serving.errors import TooManyRequestsError
from aiquery_serving.lease_file import VERSION
from aiquery_serving.leases import Leases
from aiquery_serving.shares import Demand, Grant, Rule, award, water_level


def most_in_any(stamps, period):
    """Return the most that `(instant, amount)` pairs amount to in any rolling period."""
    return max(sum(n for at, n in stamps if start <= at < start + period) for start, _ in stamps)


# The decision.


@dataclass
class Sharer:
    """A process as the decision sees it: what it waits for, and what it holds."""

    name: str
    sizes: list[int]
    tidy: bool
    since: int = 0
    held: list[Grant] = field(default_factory=list)
    #: What has become of each of them, once it is written down.
    spent: list[Grant] = field(default_factory=list)

    def give_back(self):
        if self.tidy:
            self.held = list(self.spent)

    def ask(self, rule, sharers, now):
        """Return the sizes of the calls that may go."""
        grants = [grant for one in sharers for grant in one.held]
        demands = {one.name: one.demand() for one in sharers if one.sizes}
        mine = demands.pop(self.name)
        given = award(rule, grants, mine, self.sizes, others=list(demands.values()), now_ms=now, spare=2)
        taken, self.sizes = self.sizes[: given.calls], self.sizes[given.calls :]
        if taken:
            self.since = now
            self.held.append(Grant(self.name, len(taken) + given.spare, sum(taken) + given.spare * taken[0], now + 3))
            self.spent.append(Grant(self.name, len(taken), sum(taken), now))
        return taken

    def demand(self):
        return Demand(self.name, self.since, len(self.sizes), sum(self.sizes), self.sizes[0])


PERIOD = 10
rules = st.sampled_from([Rule(3, None, PERIOD), Rule(1, None, PERIOD), Rule(None, 10, PERIOD), Rule(5, 12, PERIOD)])
sharers = st.lists(
    st.tuples(st.lists(st.sampled_from([0, 1, 4, 10]), max_size=12), st.booleans()), min_size=1, max_size=4
)
moves = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 1, 2, 5, 9, 10, 11])), max_size=60)


@given(rules, sharers, moves)
def test_no_interleaving_exceeds_a_limit_and_everybody_gets_everything(rule, sharers, moves):
    everybody = [Sharer(f"p{number}", *plan) for number, plan in enumerate(sharers)]
    left = sum(len(one.sizes) for one in everybody)
    in_turn = [(number, int(number == 0)) for _ in range((PERIOD + 4) * (left + 1)) for number in range(len(everybody))]
    now, stamps = 100, []
    for number, gap in moves + in_turn:
        now += gap
        me = everybody[number % len(everybody)]
        me.give_back()
        if me.sizes:
            stamps += [(now, size) for size in me.ask(rule, everybody, now)]
    assert len(stamps) == left
    if stamps:
        assert rule.calls is None or most_in_any([(at, 1) for at, _ in stamps], PERIOD) <= rule.calls
        assert rule.tokens is None or most_in_any(stamps, PERIOD) <= rule.tokens


def waits(owner, calls, *, since=0, first=0, tokens=0):
    return Demand(owner, since, calls, tokens, first)


@pytest.mark.parametrize(
    ("used", "others", "calls"),
    [
        ({}, [], 100),  # alone
        ({"b": 30}, [], 70),  # the other has what it wants
        ({}, [waits("b", 200)], 50),
        ({}, [waits("b", 10)], 90),
        ({}, [waits("b", 200), waits("c", 200)], 33),
        ({}, [waits("b", 20), waits("c", 200)], 40),
        ({"b": 60}, [waits("b", 200)], 40),
        ({"a": 60}, [waits("b", 200)], 0),  # above its share
        ({"a": 60}, [], 40),
        ({"b": 100}, [], 0),
    ],
)
def test_what_is_free_is_shared_out_by_what_everybody_holds_and_wants(used, others, calls):
    held = [Grant(owner, amount, 0, 1_000) for owner, amount in used.items()]
    given = award(Rule(100, None, 60_000), held, waits("a", 200), [0] * 200, others=others, now_ms=1_000)
    assert given.calls == calls


def test_a_large_call_is_not_passed_by_small_ones_for_ever():
    held = [Grant("c", 1, 60, 1_000)]
    rule = Rule(None, 100, 60_000)
    large = waits("a", 1, since=1_000, first=50, tokens=50)
    small = waits("b", 9, since=2_000, first=10, tokens=90)
    assert award(rule, held, small, [10] * 9, others=[large], now_ms=3_000).calls == 0
    assert award(rule, held, large, [50], others=[small], now_ms=3_000) == (0, 0, 58_000, "tokens")
    assert award(rule, held, small, [10] * 9, now_ms=3_000).calls == 4


def test_some_to_spare_is_given_only_when_nobody_waits_and_much_is_free():
    rule, mine = Rule(160, None, 60_000), waits("a", 1)
    assert award(rule, [], mine, [0], now_ms=0, spare=99).spare == 9
    assert award(rule, [], mine, [0], others=[waits("b", 1)], now_ms=0, spare=99).spare == 0
    assert award(rule, [Grant("b", 150, 0, 0)], mine, [0], now_ms=0, spare=99).spare == 0


@given(st.integers(1, 100), st.lists(st.integers(0, 200), min_size=1))
def test_the_water_level_uses_up_the_limit_or_meets_every_want(limit, wants):
    level = water_level(limit, wants)
    met = sum(min(want, level) for want in wants)
    assert met == pytest.approx(min(limit, sum(wants)))


# Processes on one folder: each has leases of its own, and all have one clock.


class Process:
    """What one process has of an endpoint: its admission, and when it let calls go."""

    def __init__(self, folder, clock, declared, log=None):
        self.clock, self.log = clock, log if log is not None else []
        self.leases = Leases(folder, clock)
        self.admission = Admission("chat", "chat", tuple(declared), clock=clock, leases=self.leases)

    async def call(self, tokens=0, *, used=None, patient=True, caller=""):
        admitted = await self.admission.enter(caller, tokens, patient=patient)
        self.log.append((self.clock.now(), tokens if used is None else used))
        if used is not None:
            self.admission.settle(admitted, used)
        return self.clock.now()

    async def many(self, count, tokens=0, **more):
        return await asyncio.gather(*(self.call(tokens, **more) for _ in range(count)))


def minute(**rule):
    return RateLimit(renewal_period="minute", **rule)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def lock(tmp_path):
    """Another program that can hold the file."""
    run(Process(tmp_path, ManualClock(), [minute(calls=1_000)]).call())
    connection = sqlite3.connect(tmp_path / "limits.db", isolation_level=None)
    yield connection
    connection.close()


def both(*coroutines):
    async def gathered():
        return await asyncio.gather(*coroutines)

    return run(gathered())


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_together_keep_a_limit_and_lose_no_time(tmp_path, clock, processes):
    log = []
    sharers = [Process(tmp_path, clock, [minute(calls=300)], log) for _ in range(processes)]
    both(*(one.many(900 // processes) for one in sharers))
    assert most_in_any([(at, 1) for at, _ in log], 60) == 300
    assert sum(at == 0 for at, _ in log) == 300
    assert 120 <= clock.now() <= 120 * 1.02


def test_alone_a_process_is_as_quick_as_without_others(tmp_path):
    ended = []
    for folder in (None, tmp_path):
        clock = ManualClock()
        one = Process(tmp_path, clock, [minute(calls=30)])
        if folder is None:
            one.admission = Admission("chat", "chat", (minute(calls=30),), clock=clock)

        async def trickle(one=one, clock=clock):
            for _ in range(150):
                await one.call()
                await clock.sleep(1.3)
            await one.many(60)

        run(trickle())
        ended.append(clock.now())
    assert ended[1] == pytest.approx(ended[0], rel=0.02)


def test_those_who_wait_share_evenly_and_who_wants_less_leaves_the_rest(tmp_path, clock):
    first, second, modest = (Process(tmp_path, clock, [minute(calls=100)]) for _ in range(3))

    async def staggered():
        began = asyncio.ensure_future(first.many(400))
        await clock.sleep(5.0)
        await asyncio.gather(second.many(400), modest.many(10))
        await began

    run(staggered())
    sent = [[sum(start <= at < start + 60 for at, _ in one.log) for start in (0, 60, 120)] for one in (first, second)]
    assert sent == [[100, 45, 50], [0, 45, 50]]
    assert {round(at) for at, _ in modest.log} == {60}


def test_others_learn_of_a_process_that_alone_has_used_up_a_limit(tmp_path, clock):
    process = Process(tmp_path, clock, [minute(calls=3)])

    async def look():
        waiting = asyncio.ensure_future(process.many(5))
        await clock.sleep(30.0)
        with closing(sqlite3.connect(tmp_path / "limits.db")) as opened:
            found = opened.execute("SELECT calls, seen_ms FROM demands").fetchone()
        await waiting
        return found

    calls, seen_ms = run(look())
    assert calls == 2
    assert clock.EPOCH_MS + 30_000 - seen_ms <= 200


def test_tokens_are_shared_and_what_was_not_used_goes_to_the_other_soon(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(tokens=100)]) for _ in range(2))

    async def give_back():
        admitted = await one.admission.enter("", 90, patient=True)
        waiting = asyncio.ensure_future(other.call(50))
        await clock.sleep(10.0)
        assert not waiting.done()
        one.admission.settle(admitted, 20)
        return await waiting

    assert 10 < run(give_back()) <= 10.4


def test_tokens_used_beyond_their_reservation_are_paid_by_all(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(tokens=100)]) for _ in range(2))

    async def overdraw():
        await one.call(10, used=70)
        await clock.sleep(1.0)
        return await other.call(40)

    assert 60 < run(overdraw()) <= 60.5


@pytest.mark.parametrize("locked", [False, True])
def test_a_process_that_ends_leaves_at_once_what_it_did_not_use(tmp_path, clock, lock, locked):
    one, other = (Process(tmp_path, clock, [minute(calls=64, tokens=100)]) for _ in range(2))

    async def end():
        await one.many(2)  # the second takes one to spare along
        await one.call(90, used=20)
        if locked:
            lock.execute("BEGIN IMMEDIATE")
        ending = asyncio.ensure_future(one.leases.close())
        await clock.sleep(0.05)
        if locked:
            lock.execute("ROLLBACK")
        await ending
        return [await other.call(80), max(await other.many(59))]

    assert max(run(end())) < 0.1


def test_a_call_that_was_not_sent_is_free_for_others(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(calls=1, tokens=9)]) for _ in range(2))

    async def undo():
        admitted = await one.admission.enter("", 9, patient=True)
        one.admission.unused(admitted)
        return await other.call(9)

    assert run(undo()) <= 0.5


def test_what_a_killed_process_held_counts_until_it_leaves_the_window(tmp_path, clock):
    dead, alive = (Process(tmp_path, clock, [minute(calls=10)]) for _ in range(2))

    async def killed():
        await dead.many(6)
        dead.leases._settling.cancel()  # it writes nothing down any more
        return await alive.many(10)

    ended = run(killed())
    assert ended[:4] == [0.0] * 4
    assert all(60 <= at <= 60.5 for at in ended[4:])


@settings(deadline=None, max_examples=8)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([0, 0, 0.1, 20, 59.9, 61]), st.sampled_from([1, 5, 30, 60])), max_size=7),
        min_size=2,
        max_size=3,
    )
)
def test_whatever_processes_send_and_use_the_limits_hold(tmp_path_factory, plans):
    folder, clock, log = tmp_path_factory.mktemp("ws"), ManualClock(), []
    declared = [minute(calls=4), minute(tokens=60, key="user")]

    async def work(process, plan):
        calls = []
        for gap, tokens in plan:
            await clock.sleep(gap)
            calls.append(asyncio.ensure_future(process.call(tokens, used=tokens // 2)))
        await asyncio.gather(*calls)

    both(*(work(Process(folder, clock, declared, log), plan) for plan in plans))
    assert len(log) == sum(map(len, plans))
    if log:
        assert most_in_any([(at, 1) for at, _ in log], 60) <= 4
        assert most_in_any(log, 60) <= 60


def test_callers_have_their_own_share_of_a_limit_by_user(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(calls=2, key="user")]) for _ in range(2))

    async def by_caller():
        await asyncio.gather(one.call(caller="ann"), other.call(caller="ann"), other.call(caller="bob"))
        assert clock.now() == 0.0
        return await one.call(caller="ann")

    assert run(by_caller()) >= 60


def test_who_does_not_wait_is_refused_by_what_others_have_sent(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(calls=3)]) for _ in range(2))

    async def refused():
        await one.many(3)
        await clock.sleep(20.0)
        with pytest.raises(TooManyRequestsError, match=r"\(RPM\)") as error:
            await other.call(patient=False)
        return error.value.retry_after

    assert run(refused()) == pytest.approx(40.0, abs=0.01)


def test_who_waits_for_others_says_so(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(calls=3)]) for _ in range(2))

    async def look():
        await one.many(3)
        waiting = asyncio.ensure_future(other.call())
        await clock.sleep(0.0)
        said = other.admission.holdup()
        await waiting
        return said, other.admission.holdup()

    assert run(look()) == ("paced by 3 calls/min on `chat`", None)


def test_changed_limits_hold_at_once_and_remember_what_was_spent(tmp_path, clock):
    one, other = (Process(tmp_path, clock, [minute(calls=5)]) for _ in range(2))

    async def change():
        await one.many(5)
        for process in (one, other):
            process.admission.declare((minute(calls=7),))
        return await other.many(3)

    assert [at >= 60 for at in run(change())] == [False, False, True]


def test_nothing_is_written_before_a_limit_is_asked(tmp_path, clock):
    process = Process(tmp_path, clock, [minute(calls=5, key="user", principal="ann")])
    run(process.call(caller="bob"))
    assert list(tmp_path.iterdir()) == []
    run(process.call(caller="ann"))
    assert (tmp_path / "limits.db").stat().st_mode & 0o777 == 0o600


# A file that cannot be had.


@pytest.mark.parametrize("patient", [True, False])
def test_a_locked_file_is_asked_for_again_while_the_loop_goes_on(tmp_path, clock, lock, patient):
    process = Process(tmp_path, clock, [minute(calls=1_000)])

    async def unlock():
        lock.execute("BEGIN IMMEDIATE")
        call = asyncio.ensure_future(process.call(patient=patient))
        await clock.sleep(1.0)
        assert not call.done()
        lock.execute("ROLLBACK")
        return await call

    assert 1.0 <= run(unlock()) <= 1.1


def test_a_file_that_stays_locked_leaves_each_process_alone_with_one_warning(tmp_path, clock, lock, caplog):
    process = Process(tmp_path, clock, [minute(calls=2)])
    lock.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING, "aiquery.limits"):
        run(process.many(4))
    assert 70 <= clock.now() <= 81
    assert caplog.text.count("count this process alone") == 1
    assert "limits.db' is locked by another process for 10 s. End that process." in caplog.text


def damage(path):
    path.write_bytes(b"no database" * 1000)


def of_another_version(path):
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


def make_a_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damage, "not a database"),
        (of_another_version, "another version of aiquery"),
        (make_a_folder, "unable to open database file"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_the_limits_to_each_process(tmp_path, clock, caplog, spoil, reason):
    spoil(tmp_path / "limits.db")
    process = Process(tmp_path, clock, [minute(calls=2)])
    run(process.many(6))
    assert [round(at) for at, _ in process.log] == [0, 0, 60, 60, 120, 120]
    assert caplog.text.count("count this process alone") == 1
    assert reason in caplog.text


def test_a_file_that_can_be_used_again_is(tmp_path, clock):
    (tmp_path / "limits.db").mkdir()
    one, other = (Process(tmp_path, clock, [minute(calls=2)]) for _ in range(2))

    async def mend():
        await asyncio.gather(one.many(2), other.many(2))
        assert clock.now() == 0.0
        (tmp_path / "limits.db").rmdir()
        await clock.sleep(61.0)
        first, second = await asyncio.gather(one.many(2), other.many(2))
        return first + second

    assert sorted(at >= 121 for at in run(mend())) == [False, False, True, True]


def test_a_machine_whose_clock_was_set_back_does_not_stand_still(tmp_path, clock):
    process, later = (Process(tmp_path, clock, [minute(calls=2)]) for _ in range(2))

    async def set_back():
        clock.EPOCH_MS += 3_600_000
        await process.many(2)
        clock.EPOCH_MS -= 3_600_000
        return await later.call()

    assert 60 <= run(set_back()) <= 61


def test_many_waiting_calls_ask_the_file_seldom(tmp_path, clock, monkeypatch):
    asked = Counter()
    ask = Leases.ask
    monkeypatch.setattr(Leases, "ask", lambda self, *args, **more: asked.update("a") or ask(self, *args, **more))
    process = Process(tmp_path, clock, [minute(calls=300)])
    run(process.many(600))
    assert asked["a"] <= 60 / leases_module.POLL_SECONDS + 100
    assert math.isclose(clock.now(), 60, rel_tol=0.01)


def test_many_quick_calls_share_leases(tmp_path, clock, monkeypatch):
    asked = Counter()
    ask = Leases.ask
    monkeypatch.setattr(Leases, "ask", lambda self, *args, **more: asked.update("a") or ask(self, *args, **more))
    process = Process(tmp_path, clock, [minute(calls=1_000_000)])

    async def quick():
        for _ in range(2_000):
            await process.call()

    run(quick())
    assert asked["a"] <= 30
