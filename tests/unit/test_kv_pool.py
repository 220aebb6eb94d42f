"""The slots of the key-value memory: never given twice, never lost, and what was computed is kept while it can be."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_serving.llm.pool import BLOCK, Pool, State

SLOTS = 20 * BLOCK


class Memory:
    """A pool and what is in its slots: pairs of a name and a place, so that a wrong copy shows."""

    def __init__(self, slots=SLOTS):
        self.pool = Pool(slots)
        self.slots = [None] * slots
        self.held = {}

    def take(self, name, blocks, spare=()):
        extent = self.pool.take(blocks * BLOCK, spare)
        if extent:
            self.held[name] = extent
            self.fill(name)
        return extent

    def fill(self, name):
        """Compute all that there is room for, and let it be found."""
        self.replay()
        extent = self.held[name]
        extent.filled = extent.room
        self.slots[extent.start : extent.end] = [(name, place) for place in range(extent.room)]
        for number, key in enumerate(self.keys(name)):
            self.pool.publish(extent, number, key)

    def release(self, name, *, keep=True):
        extent = self.held[name]
        self.pool.release(self.held.pop(name), self.keys(name, extent) if keep else ())

    def keys(self, name, extent=None):
        return [f"{name}/{number}".encode() for number in range((extent or self.held[name]).room // BLOCK)]

    def replay(self):
        for move in self.pool.moves:
            self.slots[move.target : move.target + move.count] = self.slots[move.source : move.source + move.count]
        self.pool.moves.clear()

    def found(self, name, blocks=20):
        """How many blocks of a name are still found at its head."""
        return len(self.pool.find(f"{name}/{number}".encode() for number in range(blocks)))

    def check(self):
        tiles = sorted(self.pool._starts.values(), key=lambda extent: extent.start)
        assert [tile.start for tile in tiles] + [self.pool.slots] == [0] + [tile.end for tile in tiles]
        assert not any(one.state is other.state is State.FREE for one, other in pairwise(tiles))
        assert {tile for tile in tiles if tile.state is State.HELD} == set(self.held.values())
        assert self.pool.held == sum(extent.room for extent in self.held.values())
        for name, extent in self.held.items():
            begin = extent.start
            assert self.slots[begin : begin + extent.filled] == [(name, place) for place in range(extent.filled)]
        for key, (extent, number) in self.pool._blocks.items():
            name, place = key.decode().split("/")
            begin = extent.start + number * BLOCK
            assert self.slots[begin : begin + BLOCK] == [(int(name), int(place) * BLOCK + at) for at in range(BLOCK)]


actions = st.tuples(st.sampled_from(["take", "take", "grow", "keep", "free"]), st.integers(0, 9), st.integers(1, 12))


@given(st.lists(actions, max_size=60))
@settings(max_examples=150, deadline=None)
def test_slots_belong_to_one_and_what_is_in_them_goes_where_they_go(program):
    memory = Memory()
    for number, (action, which, blocks) in enumerate(program):
        names = list(memory.held)
        name = names[which % len(names)] if names else None
        if action == "take":
            fits = blocks * BLOCK <= SLOTS - memory.pool.held
            assert bool(memory.take(number, blocks)) == fits
        elif action == "grow" and names:
            least, wish = memory.held[name].room + BLOCK, memory.held[name].room + blocks * BLOCK
            fits = memory.pool.held < SLOTS
            assert memory.pool.grow(memory.held[name], least, wish) == fits
            memory.replay()
            memory.check()
            assert (least <= memory.held[name].room <= wish) == fits
            memory.fill(name)
        elif names:
            memory.release(name, keep=action == "keep")
        memory.replay()
        memory.check()
    for name in list(memory.held):
        memory.release(name)
    assert memory.pool.take(SLOTS).room == SLOTS


def test_slots_are_whole_blocks():
    assert Pool(100).slots == 96
    assert Pool(10).take(BLOCK) is None


def test_free_slots_are_given_before_prefixes_are_dropped():
    memory = Memory()
    memory.take(1, 10)
    memory.release(1)
    memory.take(2, 10)
    assert memory.found(1) == 10


def test_what_was_used_longest_ago_is_dropped_first_and_its_tail_before_its_head():
    memory = Memory()
    for name in (1, 2):
        memory.take(name, 10)
    for name in (1, 2):
        memory.release(name)
    memory.take(3, 4)
    assert (memory.found(1), memory.found(2)) == (6, 10)
    memory.pool.touch(memory.pool.find([b"1/0"]))
    memory.take(4, 4)
    assert (memory.found(1), memory.found(2)) == (6, 6)


def test_a_prefix_is_kept_once_and_its_head_as_long_as_its_tail():
    memory = Memory()
    memory.take(1, 8)
    other = memory.pool.take(12 * BLOCK)
    memory.release(1)
    memory.pool.release(other, [*(f"1/{number}".encode() for number in range(8)), b"2/8", b"2/9"])
    kept = list(memory.pool._kept)
    assert [extent.room // BLOCK for extent in kept] == [2, 8]
    ((extent, number),) = memory.pool.find([b"2/9"])
    assert extent.start + number * BLOCK == 17 * BLOCK
    assert sum(len(free) for free in memory.pool._free) == 2


def test_neighbours_of_the_oldest_are_dropped_to_make_room():
    memory = Memory()
    for name in range(5):
        memory.take(name, 4)
    for name in (2, 3, 1):
        memory.release(name)
    memory.take(9, 6)
    assert [memory.found(name) for name in range(5)] == [4, 4, 2, 0, 4]


def test_what_is_to_be_taken_over_is_spared_though_it_is_beside_the_oldest():
    memory = Memory()
    for name in (1, 2):
        memory.take(name, 10)
    for name in (1, 2):
        memory.release(name)
    assert memory.take(3, 12, {extent for extent, _ in memory.pool.find([b"2/0"])}) is None
    assert memory.found(2) == 10


def test_what_is_to_be_taken_over_is_spared():
    memory = Memory()
    memory.take(1, 12)
    memory.release(1)
    spare = {extent for extent, _ in memory.pool.find([b"1/0"])}
    assert memory.take(2, 10, spare) is None
    assert memory.found(1) == 12
    assert memory.take(2, 10)
    assert memory.found(1) == 10


@pytest.mark.parametrize(("gone", "moved"), [((0, 2, 4), 8), ((1, 3), 4)])
def test_held_slots_are_slid_together_when_no_hole_is_large_enough(gone, moved):
    memory = Memory()
    for name in range(5):
        memory.take(name, 4)
    for name in gone:
        memory.release(name, keep=False)
    assert memory.pool.take(len(gone) * 4 * BLOCK)
    assert sum(move.count for move in memory.pool.moves) == moved * BLOCK
    memory.replay()
    for name, extent in memory.held.items():
        assert memory.slots[extent.start : extent.end] == [(name, place) for place in range(extent.room)]


def test_who_grows_stays_where_it_is_if_there_is_room_behind():
    memory = Memory()
    extent = memory.take(1, 4)
    assert memory.pool.grow(extent, 5 * BLOCK, 8 * BLOCK)
    assert (extent.start, extent.room, memory.pool.moves) == (0, 8 * BLOCK, [])


def test_who_grows_goes_where_there_is_room():
    memory = Memory()
    extent, _ = memory.take(1, 4), memory.take(2, 4)
    assert memory.pool.grow(extent, 5 * BLOCK, 8 * BLOCK)
    assert (extent.start, extent.room) == (8 * BLOCK, 8 * BLOCK)
    assert [(move.source, move.target, move.count) for move in memory.pool.moves] == [(0, 8 * BLOCK, 4 * BLOCK)]


def test_who_grows_takes_the_last_slots_there_are():
    memory = Memory()
    for name, blocks in enumerate((3, 8, 1, 8)):
        memory.take(name, blocks)
    memory.release(2, keep=False)
    assert memory.pool.grow(memory.held[0], 4 * BLOCK, 9 * BLOCK)
    memory.replay()
    memory.check()
    assert memory.held[0].room == 4 * BLOCK
    assert not memory.pool.grow(memory.held[1], 9 * BLOCK, 9 * BLOCK)
    memory.check()
