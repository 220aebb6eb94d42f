"""Says which slots of the key-value memory belong to whom, and which prefixes are in them.

Theory of operation. The memory is one row of slots, one per token, tiled by extents: held ones (a running sequence's),
kept ones (prefixes of sequences that have ended, until their room is needed) and free ones. A sequence's slots are
always contiguous, so attention needs no page table. Room is found in this order: a free extent; the kept extents that
were used longest ago and their neighbours, of which tails go before heads; last, held extents are slid together.

Blocks of `BLOCK` tokens are found by keys that name all tokens up to their end. A key leads to an extent and a place in
it, not to slots, so that nothing but its start changes when an extent moves. Everything is aligned to blocks.

Nothing is copied here: `moves` says what is to be copied, in order, before anything is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

#: Tokens of one block of a prefix; memory is given in multiples of it.
BLOCK = 16


@dataclass(frozen=True, slots=True)
class Move:
    """Keys and values to copy, as if through a buffer: the two ranges of slots may overlap."""

    source: int
    target: int
    count: int


class State(Enum):
    """To whom an extent belongs."""

    FREE = "free"
    KEPT = "kept"
    HELD = "held"


class Extent:
    """A range of slots.

    Attributes:
        start: Its first slot.
        room: How many slots it has.
        state: To whom it belongs.
        filled: Slots at its head that hold keys and values.
        used: When a kept one was last of use, in no particular unit; -1 for others.
        blocks: Keys of the blocks that are found here, by their number in this extent.
    """

    __slots__ = ("blocks", "filled", "room", "start", "state", "used")

    def __init__(self, start: int, room: int, state: State) -> None:
        self.start = start
        self.room = room
        self.state = state
        self.filled = 0
        self.used = -1
        self.blocks: dict[int, bytes] = {}

    @property
    def end(self) -> int:
        """The slot behind its last."""
        return self.start + self.room


class Pool:
    """The slots of one key-value memory.

    Attributes:
        slots: How many there are.
        held: How many belong to running sequences.
        moves: What is to be copied, in order.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots // BLOCK * BLOCK
        self.held = 0
        self.moves: list[Move] = []
        self._starts: dict[int, Extent] = {}
        self._ends: dict[int, Extent] = {}
        #: Free extents by the bits of their size. Dicts, not sets: what is chosen must not depend on addresses.
        self._free: list[dict[Extent, None]] = [{} for _ in range(self.slots.bit_length() + 1)]
        #: Kept extents, the one that was used longest ago first.
        self._kept: dict[Extent, None] = {}
        self._blocks: dict[bytes, tuple[Extent, int]] = {}
        self._uses = 0
        if self.slots:
            self._clear(0, self.slots)

    def take(self, room: int, spare: Collection[Extent] = ()) -> Extent | None:
        """Return an extent of that many slots, held from now on; None when there is none.

        Args:
            room: A multiple of `BLOCK`.
            spare: Kept extents that may not be dropped for it; then nothing is slid together either.
        """
        if room > self.slots - self.held:
            return None
        found = self._hole(room) or self._drop_oldest(room, spare)
        if found is None and not spare:
            found = self._gather(room)
        return None if found is None else self._hold(found, room)

    def grow(self, extent: Extent, least: int, wish: int) -> bool:
        """Give a held extent `wish` slots, or at least `least`; it may move. False when there is no room."""
        return (
            self._extend(extent, least, wish)
            or self._relocate(extent, wish)
            or (least - extent.room <= self.slots - self.held and self._widen(extent, least, wish))
        )

    def release(self, extent: Extent, keys: Sequence[bytes] = ()) -> None:
        """Give a held extent back. The blocks at its head, of these keys, stay until their room is needed.

        Those that are found elsewhere are not kept twice.
        """
        for number, key in enumerate(keys):
            self.publish(extent, number, key)
        self._lift(extent)
        if not extent.blocks:
            self._clear(extent.start, extent.end)
            return
        self._keep(extent, min(extent.blocks), max(extent.blocks) + 1)
        self.touch(self.find(keys))

    def publish(self, extent: Extent, number: int, key: bytes) -> None:
        """Let a computed block be found, unless one like it is already."""
        if key not in self._blocks:
            self._blocks[key] = (extent, number)
            extent.blocks[number] = key

    def find(self, keys: Iterable[bytes]) -> list[tuple[Extent, int]]:
        """Return where the blocks of these keys are, up to the first that is nowhere."""
        found = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def touch(self, found: Sequence[tuple[Extent, int]]) -> None:
        """Remember that these blocks were of use just now; heads last, as tails are of no use without them."""
        for extent in dict.fromkeys(extent for extent, _ in reversed(found)):
            if extent.state is State.KEPT:
                del self._kept[extent]
                self._use(extent)

    def copy(self, found: Iterable[tuple[Extent, int]], target: Extent) -> None:
        """Copy blocks to the head of an extent that has nothing yet."""
        for extent, number in found:
            source, goal = extent.start + number * BLOCK, target.start + target.filled
            last = self.moves[-1] if self.moves and target.filled else None
            if last and last.source + last.count == source and last.target + last.count == goal:
                self.moves[-1] = replace(last, count=last.count + BLOCK)
            else:
                self.moves.append(Move(source, goal, BLOCK))
            target.filled += BLOCK

    def _hole(self, room: int) -> Extent | None:
        """Return a free extent of at least that size, none much larger than need be."""
        for size in range(room.bit_length(), len(self._free)):
            for extent in self._free[size]:
                if extent.room >= room:
                    return extent
        return None

    def _drop_oldest(self, room: int, spare: Collection[Extent]) -> Extent | None:
        """Drop kept extents beside each other, among them the oldest with which that is possible."""
        seen: set[Extent] = set()
        for oldest in self._kept:
            if oldest in seen or oldest in spare:
                continue
            window = self._window(oldest, room, spare)
            if sum(extent.room for extent in window) >= room:
                return self._cut(window, window[-1].end - room)
            seen.update(window)
        return None

    def _window(self, extent: Extent, room: int, spare: Collection[Extent]) -> deque[Extent]:
        """Return an extent and its neighbours, older ones first, until they have room or nobody is left."""
        behind = self._starts.get(extent.end)
        window = deque([extent, behind] if behind and behind.state is State.FREE else [extent])
        total = sum(each.room for each in window)
        while total < room:
            sides = (self._ends.get(window[0].start), self._starts.get(window[-1].end))
            loose = [side for side in sides if side and side.state is not State.HELD and side not in spare]
            if not loose:
                break
            found = min(loose, key=lambda side: side.used)
            (window.appendleft if found.start < window[0].start else window.append)(found)
            total += found.room
        return window

    def _cut(self, window: Iterable[Extent], cut: int) -> Extent | None:
        """Drop what neighbouring extents have from a slot on; returns the free extent there."""
        found = None
        for extent in window:
            if extent.state is State.KEPT and extent.end > cut:
                found = self._trim(extent, max(0, cut - extent.start))
        return found

    def _trim(self, extent: Extent, room: int) -> Extent:
        """Leave a kept extent only so many slots, or none if nothing can be found in them."""
        self._forget(extent, room // BLOCK)
        end = extent.end
        if not extent.blocks:
            self._lift(extent)
            return self._clear(extent.start, end)
        del self._ends[end]
        extent.room = extent.filled = room
        self._ends[extent.end] = extent
        return self._clear(extent.end, end)

    def _keep(self, extent: Extent, first: int, last: int) -> None:
        """Make the blocks from `first` to before `last` of a lifted extent a kept one, and free the rest."""
        kept = Extent(extent.start + first * BLOCK, (last - first) * BLOCK, State.KEPT)
        kept.filled = kept.room
        for number, key in extent.blocks.items():
            kept.blocks[number - first] = key
            self._blocks[key] = (kept, number - first)
        self._put(kept)
        if kept.start > extent.start:
            self._clear(extent.start, kept.start)
        if kept.end < extent.end:
            self._clear(kept.end, extent.end)

    def _extend(self, extent: Extent, least: int, wish: int) -> bool:
        """Let an extent grow into the free one behind it."""
        behind = self._starts.get(extent.end)
        if behind is None or behind.state is not State.FREE or extent.room + behind.room < least:
            return False
        end = behind.end
        self._lift(behind)
        self._lift(extent)
        self._place(extent, extent.start, min(wish, end - extent.start), end)
        return True

    def _relocate(self, extent: Extent, room: int) -> bool:
        """Move an extent to a larger place."""
        if room > self.slots - self.held:
            return False
        place = self._hole(room) or self._drop_oldest(room, ())
        if place is None:
            return False
        start, end = extent.start, extent.end
        self._lift(place)
        self._lift(extent)
        self._place(extent, place.start, room, place.end)
        self._clear(start, end)
        return True

    def _widen(self, extent: Extent, least: int, wish: int) -> bool:
        """Slide others away from behind an extent; of what is left, it takes no more than a quarter unless it must."""
        quarter = (self.slots - self.held) // 4 // BLOCK * BLOCK
        room = max(least, min(wish, extent.room + quarter))
        self._gather(room - extent.room, extent)
        return self._extend(extent, room, room)

    def _gather(self, room: int, behind: Extent | None = None) -> Extent:
        """Slide held extents together, dropping kept ones, so that a free one has room; behind another, if need be.

        What is held leaves that much; so there is an end to it.
        """
        order = [self._starts[start] for start in sorted(self._starts)]
        middle = order.index(behind or max(order, key=lambda extent: (extent.state is not State.HELD, extent.room)))
        low, high, loose = middle, middle + 1, 0 if behind else order[middle].room
        while loose < room:
            side = min(
                [low - 1] * (low > 0) + [high] * (high < len(order)),
                key=lambda number: order[number].filled if order[number].state is State.HELD else -1,
            )
            low, high = min(low, side), max(high, side + 1)
            loose += order[side].room * (order[side].state is not State.HELD)
        return self._slide(order[low : middle + 1], order[middle + 1 : high])

    def _slide(self, lower: list[Extent], upper: list[Extent]) -> Extent:
        """Move the held ones of neighbouring extents to both ends; returns the free one between them."""
        low, high = lower[0].start, (upper or lower)[-1].end
        for extent in [*lower, *upper]:
            self._lift(extent)
            if extent.state is State.KEPT:
                self._forget(extent)
        for extent in lower:
            if extent.state is State.HELD:
                self._place(extent, low, extent.room)
                low = extent.end
        for extent in reversed(upper):
            if extent.state is State.HELD:
                high -= extent.room
                self._place(extent, high, extent.room)
        return self._clear(low, high)

    def _hold(self, place: Extent, room: int) -> Extent:
        """Make the head of a free extent a held one."""
        self._lift(place)
        extent = Extent(place.start, room, State.HELD)
        self._place(extent, place.start, room, place.end)
        return extent

    def _place(self, extent: Extent, start: int, room: int, end: int | None = None) -> None:
        """Put a lifted extent somewhere, with what is in it; what is left up to `end` is free."""
        if extent.filled and extent.start != start:
            self.moves.append(Move(extent.start, start, extent.filled))
        extent.start, extent.room = start, room
        self._put(extent)
        if end is not None and extent.end < end:
            self._clear(extent.end, end)

    def _clear(self, start: int, end: int) -> Extent:
        """Make slots that belong to nobody free, together with free ones beside them."""
        left, right = self._ends.get(start), self._starts.get(end)
        if left and left.state is State.FREE:
            self._lift(left)
            start = left.start
        if right and right.state is State.FREE:
            self._lift(right)
            end = right.end
        free = Extent(start, end - start, State.FREE)
        self._put(free)
        return free

    def _forget(self, extent: Extent, first: int = 0) -> None:
        """Let the blocks of an extent be found no more, from the given one on."""
        for number in [number for number in extent.blocks if number >= first]:
            del self._blocks[extent.blocks.pop(number)]

    def _use(self, extent: Extent) -> None:
        self._uses += 1
        extent.used = self._uses
        self._kept[extent] = None

    def _put(self, extent: Extent) -> None:
        """Enter an extent into the tables."""
        self._starts[extent.start] = self._ends[extent.end] = extent
        if extent.state is State.FREE:
            self._free[extent.room.bit_length()][extent] = None
        elif extent.state is State.KEPT:
            self._use(extent)
        else:
            self.held += extent.room

    def _lift(self, extent: Extent) -> None:
        """Take an extent out of the tables; its slots belong to nobody until they are given to somebody."""
        del self._starts[extent.start], self._ends[extent.end]
        if extent.state is State.FREE:
            del self._free[extent.room.bit_length()][extent]
        elif extent.state is State.KEPT:
            del self._kept[extent]
        else:
            self.held -= extent.room
