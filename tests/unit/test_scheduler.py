"""Continuous batching: whatever comes, every answer is computed from its own tokens, and everybody gets theirs."""

from collections import Counter
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_serving.errors import ContextLengthError
from aiquery_serving.llm.scheduler import Scheduler, Sequence

SMALL = {"slots": 1024, "max_sequences": 8, "max_batch_tokens": 64}


class World:
    """An engine without a model: in its memory, a slot holds what its token's keys and values depend on."""

    def __init__(self, **sizes):
        self.sizes = SMALL | sizes
        self.scheduler = Scheduler(**self.sizes)
        self.memory = [None] * self.sizes["slots"]
        self.sequences = []
        self.finished = []
        self.steps = []

    def add(self, tokens, answer=1, *, batch=False):
        sequence = Sequence(list(tokens), len(tokens) + answer, batch)
        self.scheduler.add(sequence)
        self.sequences.append(sequence)
        return sequence

    def remove(self, sequence):
        if sequence in self.sequences:
            self.sequences.remove(sequence)
            self.scheduler.remove(sequence)

    def step(self):
        step = self.scheduler.step()
        self.steps.append([(row.sequence, row.count) for row in step.rows])
        for move in step.moves:
            moved = self.memory[move.source : move.source + move.count]
            assert len(moved) == move.count
            self.memory[move.target : move.target + move.count] = moved
        self.check_running()
        for row in step.rows:
            self.compute(row)
        return step

    def compute(self, row):
        sequence = row.sequence
        assert sequence.start >= 0
        assert row.start == sequence.computed
        assert 0 < row.count <= sequence.room - row.start
        assert row.samples == (row.start + row.count == len(sequence.token_ids))
        begin = sequence.start + row.start
        self.memory[begin : begin + row.count] = meanings(sequence.token_ids, row.start, row.start + row.count)

    def check_running(self):
        running = sorted((s for s in self.sequences if s.start >= 0), key=lambda sequence: sequence.start)
        assert len(running) == self.scheduler.running <= self.sizes["max_sequences"]
        assert self.scheduler.running + self.scheduler.waiting == len(self.sequences)
        assert sum(sequence.room for sequence in running) == self.scheduler.slots_used <= self.scheduler.slots
        assert all(one.start + one.room <= other.start for one, other in pairwise(running))
        for sequence in running:
            known = self.memory[sequence.start : sequence.start + sequence.computed]
            assert known == meanings(sequence.token_ids, 0, sequence.computed)

    def finish(self, step):
        self.scheduler.done(step)
        for row in step.rows:
            if row.samples and row.sequence in self.sequences:
                self.scheduler.append(row.sequence, len(row.sequence.token_ids) % 3)
                if len(row.sequence.token_ids) == row.sequence.limit:
                    self.remove(row.sequence)
                    self.finished.append(row.sequence)

    def once(self):
        """One step; returns how many tokens of whom were computed."""
        self.finish(self.step())
        return dict(self.steps[-1])

    def run(self, steps=10_000):
        for _ in range(steps):
            if not self.sequences:
                return
            assert self.once()
        assert not self.sequences, "somebody has not finished"


def meanings(tokens, start, end):
    """What tokens mean where they stand: all that is before them counts."""
    return list(accumulate(tokens[:end], lambda before, token: hash((before, token)), initial=0))[start + 1 :]


def prompt(*parts):
    """A prompt of parts (token, how many)."""
    return [token for token, count in parts for _ in range(count)]


families = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=3)
requests = st.tuples(
    families, st.integers(1, 130), st.booleans(), st.integers(0, 4), st.sampled_from([0, 0, 0, 1, 5, 20])
)
programs = st.lists(requests, min_size=1, max_size=24)
sizes = st.fixed_dictionaries(
    {
        "slots": st.integers(256, 700),
        "max_sequences": st.integers(1, 8),
        "max_batch_tokens": st.integers(2, 80),
        "share_prefixes": st.booleans(),
    }
)


@given(programs, sizes)
@settings(max_examples=60, deadline=None)
def test_every_answer_is_computed_from_its_own_tokens_and_all_of_them_end(program, sizes):
    world, cancels, asked = World(**sizes), {}, []
    for parts, answer, batch, pause, cancel in program:
        asked.append(world.add(prompt(*parts), answer, batch=batch))
        if cancel:
            cancels[asked[-1]] = len(world.steps) + cancel
        for _ in range(pause if world.sequences else 0):
            once(world, cancels)
    while world.sequences:
        once(world, cancels)
        assert len(world.steps) < 10_000
    assert set(world.finished) | set(cancels) == set(asked)
    assert world.scheduler.slots_used == world.scheduler.running == world.scheduler.waiting == 0
    assert_nothing_is_left(world)


def once(world, cancels):
    """One step, within its budget; who is cancelled is so while it is computed."""
    if not world.sequences:
        return
    step = world.step()
    counts = Counter(row.sequence for row in step.rows)
    assert step.rows
    assert set(counts.values()) == {1}
    assert sum(row.count for row in step.rows) <= world.sizes["max_batch_tokens"]
    for sequence, at in cancels.items():
        if at <= len(world.steps):
            world.remove(sequence)
    world.finish(step)
    if len(world.steps) % 5 == 0:
        check_prefixes(world)


def check_prefixes(world):
    """What can be found is what it says to be, and the extents are the whole memory."""
    pool = world.scheduler._pool
    tiles = [pool._starts[start] for start in sorted(pool._starts)]
    assert [tile.start for tile in tiles] + [pool.slots] == [0] + [tile.end for tile in tiles]
    for sequence in world.sequences:
        meant = meanings(sequence.token_ids, 0, len(sequence.token_ids))
        for number, key in enumerate(sequence.keys):
            for extent, place in pool.find([key]):
                begin = extent.start + place * 16
                assert world.memory[begin : begin + 16] == meant[number * 16 : number * 16 + 16]


def assert_nothing_is_left(world):
    scheduler = world.scheduler
    assert not scheduler._computing
    assert not scheduler._waiting._parked
    assert not scheduler._waiting._parked_at
    assert scheduler._pool.take(scheduler.slots).room == scheduler.slots


def test_short_prompts_share_a_step_and_long_ones_take_several():
    world = World(share_prefixes=False)
    short = [world.add([token] * 10) for token in range(3)]
    long = world.add([9] * 150)
    assert world.once() == {**dict.fromkeys(short, 10), long: 34}
    assert [world.once(), world.once()] == [{long: 64}, {long: 52}]
    assert world.finished == [*short, long]


def test_answers_go_on_while_prompts_are_computed_and_both_have_their_share():
    world = World(max_batch_tokens=8, max_sequences=9)
    answers = [world.add([token], 50) for token in range(8)]
    world.once()
    long = world.add([9] * 21)
    steps = [world.once() for _ in range(20)]
    assert all(step[long] == 1 and len(step) == 8 for step in steps)
    assert all(17 <= sum(one in step for step in steps) <= 18 for one in answers)


def test_more_answers_than_a_step_has_tokens_take_turns():
    world = World(max_batch_tokens=3, max_sequences=8)
    answers = [world.add([token], 40) for token in range(7)]
    for _ in range(5):
        world.once()
    given = Counter(one for _ in range(7) for one in world.once())
    assert given == dict.fromkeys(answers, 3)


def test_urgent_prompts_go_before_batch_work():
    world = World(share_prefixes=False)
    batch = world.add([1] * 150, batch=True)
    assert world.once() == {batch: 64}
    urgent = world.add([2] * 60)
    assert world.once() == {urgent: 60, batch: 4}


def test_what_is_larger_than_the_memory_is_refused():
    world = World(slots=250)
    with pytest.raises(ContextLengthError, match=r"A prompt of 40 tokens and its answer may come to 241.* 240 in all"):
        world.add([1] * 40, 201)
    world.sequences.clear()
    world.add([1] * 40, 200)
    world.add([2] * 239, 1)
    world.run()


def test_nobody_holds_room_for_all_it_may_come_to():
    world = World(slots=4096)
    world.add([1] * 10, 4000)
    world.once()
    assert world.scheduler.slots_used == 80


def test_a_prompt_that_is_in_memory_computes_its_last_token_only():
    world = World()
    world.add([1] * 33)
    world.run()
    again = world.add([1] * 33)
    assert world.once() == {again: 1}
    part = world.add(prompt((1, 32), (2, 8)))
    assert world.once() == {part: 8}
    assert (again.cached, part.cached) == (32, 32)
    assert (world.scheduler.prompt_tokens, world.scheduler.cached_tokens) == (33 + 33 + 40, 64)


def test_answers_are_found_by_who_goes_on_from_them():
    world = World()
    first = world.add([1] * 20, 30)
    world.run()
    after = world.add([*first.token_ids, 7, 7])
    world.run()
    assert after.cached == 48


def test_nothing_is_taken_over_unless_prefixes_are_shared():
    world = World(share_prefixes=False)
    world.add([1] * 40)
    world.run()
    again = world.add([1] * 40)
    assert world.once() == {again: 40}
    assert world.scheduler.cached_tokens == 0


def test_who_shares_a_prefix_waits_until_one_has_computed_it():
    world = World()
    kin = [world.add(prompt((1, 48), (token, 5))) for token in (2, 3, 4)]
    other = world.add([5] * 5)
    assert world.once() == {kin[0]: 53, other: 5}
    assert world.once() == {kin[1]: 5, kin[2]: 5}


def test_who_waited_for_one_that_was_cancelled_goes_on_from_what_it_had_computed():
    world = World()
    leader = world.add([1] * 200, batch=True)
    assert world.once() == {leader: 64}
    follower = world.add([1] * 200)
    assert world.once() == {leader: 64}
    world.remove(leader)
    assert world.once() == {follower: 64}
    assert follower.cached == 128


def test_who_computes_for_an_urgent_one_is_urgent():
    world = World()
    leader = world.add([1] * 128, batch=True)
    world.once()
    follower = world.add([1] * 128)
    rival = world.add([2] * 64)
    assert world.once() == {leader: 64}
    assert world.once() == {rival: 64}
    assert world.once() == {follower: 16}


def test_batch_work_makes_room_for_urgent_ones_once():
    world = World(max_sequences=2)
    batch = [world.add([token] * 20, 60, batch=True) for token in (1, 2)]
    world.once()
    urgent = [world.add([token] * 20, 5) for token in (3, 4)]
    assert world.once() == dict.fromkeys(urgent, 20)
    for _ in range(5):
        world.once()
    late = world.add([5] * 20, 5)
    world.run()
    assert world.finished == [*urgent, *batch, late]
    assert (world.scheduler.preempted, world.scheduler.prompt_tokens) == (2, 100)


def test_the_youngest_makes_room_when_there_is_none():
    world = World(slots=288)
    old, young = world.add([1] * 60, 190), world.add([2] * 60, 100)
    world.run()
    assert world.scheduler.preempted == 1
    assert world.finished == [old, young]
    assert young.token_ids[:60] == [2] * 60


def test_the_youngest_makes_room_for_itself_when_it_is_the_one_that_grows():
    world = World(slots=976)
    old, young = world.add([1] * 500, 140), world.add([2] * 208, 200)
    world.run()
    assert world.scheduler.preempted == 1
    assert world.finished == [old, young]


def test_batch_work_does_not_make_room_for_what_would_not_fit_all_the_same():
    world = World(slots=512)
    urgent, batch = world.add([1] * 200, 50), world.add([2] * 60, 30, batch=True)
    while batch.start < 0:
        world.once()
    large = world.add([3] * 300, 50)
    world.run()
    assert world.scheduler.preempted == 0
    assert world.finished == [batch, urgent, large]


def test_who_begins_leaves_room_for_others_to_grow():
    world = World(slots=256)
    world.add([1] * 60, 100)
    world.add([2] * 60, 100)
    world.once()
    assert (world.scheduler.running, world.scheduler.slots_used) == (1, 128)


def test_kin_are_computed_together_when_memory_is_short():
    world = World(slots=512, max_sequences=2)
    for row in range(10):
        for family in range(8):
            world.add(prompt((family, 96), (100 + row, 5)), batch=True)
    world.run()
    assert world.scheduler.cached_tokens >= 0.75 * world.scheduler.prompt_tokens


@pytest.mark.parametrize("batch", [True, False])
def test_nobody_waits_forever_behind_urgent_ones_and_kin(batch):
    world = World(max_sequences=4, slots=512)
    for number in range(20):
        world.add(prompt((1, 32), (number + 10, 2)), 8)
    world.once()
    odd = world.add([2] * 30, 8, batch=batch)
    for number in range(200):
        world.add(prompt((1, 32), (number + 100, 2)), 8)
        world.once()
    assert odd in world.finished


def test_a_batch_prompt_goes_on_though_urgent_ones_fill_every_step():
    world = World(slots=2048)
    batch = world.add([1] * 256, 2, batch=True)
    world.once()
    for number in range(60):
        world.add([number + 2] * 70, 1)
        world.once()
    assert batch in world.finished


def test_after_a_failure_nothing_in_memory_is_trusted():
    world = World()
    one, other = world.add([1] * 40, 10), world.add([2] * 40, 10)
    world.once()
    world.step()
    world.scheduler.abandon()
    world.memory = ["rubbish"] * 1024
    assert (world.scheduler.running, world.scheduler.waiting, world.scheduler.slots_used) == (0, 2, 0)
    world.remove(other)
    assert world.once() == {one: 41}
    world.run()
    assert world.finished == [one]


def test_removing_what_is_not_there_does_nothing():
    world = World()
    one = world.add([1] * 5)
    world.run()
    world.scheduler.remove(one)
    world.scheduler.remove(Sequence([1], 2))
    assert_nothing_is_left(world)
    assert world.scheduler.step().rows == []
