"""Decides, before each run of a model, whose tokens are computed in it and where their keys and values are.

Theory of operation. A step gives one token to every sequence that is being answered, then what is left of its budget of
tokens to prompts, in chunks; an eighth is for prompts in any case, so neither starves the other. Sequences have as many
slots as they have tokens, and some more; who needs more grows or moves. When there is no room, the youngest gives its
own back, batch work first, and waits again with all its tokens as its prompt. Batch work does so once; from then on it
is as safe as others are, of whom the oldest is never asked to. So everybody ends.

Who waits takes over the slots of the longest prefix that is in memory. Who waits for a prefix that a running sequence
is about to compute waits for that (`Waiting.park`) rather than to compute it twice.

An engine asks for a `step`, does its moves in order, runs the model over its rows, calls `done`, chooses a token for
every row with `samples` and calls `append`, or `remove` when that was the last. `add` and `remove` come when they will.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiquery_serving.errors import ContextLengthError
from aiquery_serving.llm.pool import BLOCK, Extent, Move, Pool
from aiquery_serving.llm.sequence import Sequence
from aiquery_serving.llm.waiting import Waiting

__all__ = ["Move", "Row", "Scheduler", "Sequence", "Step"]

#: Of every step's budget, one of so many tokens is for prompts; every so many steps the oldest prompt is first.
_SHARE = 8
#: How many that wait are looked at in one step, most of them to let them wait for another's prefix.
_LOOKS = 64
#: Slots that a sequence gets beyond its tokens, at least, as far as it may come to need them.
_SPARE = 64
#: One of so many slots is left for running sequences to grow into rather than given to a new one; with none left, they
#: would make each other wait, and compute their tokens again.
_SLACK = 16


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence to compute: `count` from `start` on, behind the `start` that are in its slots already.

    `samples` says that they end what is known, so that a next token is to be chosen.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What to do in one run of the model: the moves, in order, then the rows.

    Rows of one token of sequences that are being answered come first, those of prompts behind them. Without rows there
    is nothing to run; moves are to be done all the same.
    """

    moves: list[Move]
    rows: list[Row]


class Scheduler:
    """Decides for one model. Not for several threads at once.

    Args:
        slots: Tokens that the key-value memory has room for; rounded down to whole blocks of 16.
        max_sequences: The most that are computed at once.
        max_batch_tokens: The most tokens of one step, at least 2.
        share_prefixes: Whether prompts take over what is in memory.

    Attributes:
        slots: Tokens that there is room for.
        preempted: How often a sequence had to make room and wait again.
        prompt_tokens: Tokens of the prompts that have begun.
        cached_tokens: Of these, tokens that were taken over.
    """

    def __init__(self, *, slots: int, max_sequences: int, max_batch_tokens: int, share_prefixes: bool = True) -> None:
        self._pool = Pool(slots)
        self._max_sequences = max_sequences
        self._budget = max(2, max_batch_tokens)
        self._share_prefixes = share_prefixes
        self._running: dict[Sequence, None] = {}
        self._waiting = Waiting()
        #: Who is about to compute the block of a key.
        self._computing: dict[bytes, Sequence] = {}
        self._arrivals = self._steps = 0
        self.slots = self._pool.slots
        self.preempted = self.prompt_tokens = self.cached_tokens = 0

    @property
    def running(self) -> int:
        """How many are being computed."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    @property
    def slots_used(self) -> int:
        """How many slots belong to running sequences."""
        return self._pool.held

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait for its place.

        Raises:
            ContextLengthError: It may come to more tokens than there are slots.
        """
        most = max(sequence.limit, len(sequence.token_ids))
        if most > self.slots:
            raise ContextLengthError(
                f"A prompt of {sequence.prompt_length} tokens and its answer may come to {most}, but the engine has "
                f"memory for {self.slots} in all: shorten the prompt, lower max_tokens, or give the engine more memory."
            )
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._wait(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended or was cancelled, whatever it is doing; its slots are free at once.

        What it has computed may be taken over by others until its slots are needed.
        """
        if sequence in self._running:
            self._leave(sequence)
        else:
            self._waiting.discard(sequence)

    def append(self, sequence: Sequence, token: int) -> None:
        """Take note of the token that was chosen."""
        sequence.token_ids.append(token)

    def step(self) -> Step:
        """Decide what is to be done next. The one before must be `done`, or `abandon`ed."""
        self._steps += 1
        self._grow()
        self._admit()
        rows = self._rows()
        moves, self._pool.moves = self._pool.moves, []
        return Step(moves, rows)

    def done(self, step: Step) -> None:
        """Take note that a step was computed; who was removed meanwhile does not matter."""
        for row in step.rows:
            sequence = row.sequence
            if sequence.extent is not None:
                sequence.extent.filled = row.start + row.count
                if self._share_prefixes:
                    self._publish(sequence, sequence.extent)

    def abandon(self) -> None:
        """Take note that a step failed: nothing in memory can be trusted, and who is running begins anew."""
        self._pool = Pool(self.slots)
        for sequence in list(self._running):
            sequence.extent = None
            self._withdraw(sequence)
            self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        if self._share_prefixes:
            sequence.name_blocks(len(sequence.token_ids) // BLOCK)
        self._waiting.add(sequence)

    def _grow(self) -> None:
        """Give room for their next token to those who have none, the oldest first."""
        full = [sequence for sequence in self._running if sequence.room < len(sequence.token_ids)]
        for sequence in sorted(full, key=_safety):
            while sequence.extent and not self._pool.grow(sequence.extent, *_rooms(sequence)):
                self._preempt(max(self._running, key=_safety))

    def _preempt(self, sequence: Sequence) -> None:
        self.preempted += 1
        self._leave(sequence)
        sequence.preempted = True
        self._wait(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Give the place and the slots of a running sequence back."""
        extent, blocks = sequence.extent, sequence.computed // BLOCK
        if self._share_prefixes:
            sequence.name_blocks(blocks)
        sequence.extent = None
        if extent:
            self._pool.release(extent, sequence.keys[:blocks])
        self._withdraw(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        """Let nobody wait for what a sequence was about to compute."""
        del self._running[sequence]
        for key in sequence.keys[sequence.published :]:
            if self._computing.get(key) is sequence:
                del self._computing[key]
                self._waiting.wake(key)

    def _admit(self) -> None:
        """Let those begin that wait, while there is something left of the step for their prompts."""
        urgent, batch = self._left()
        for _ in range(_LOOKS):
            sequence = self._waiting.next()
            if sequence is None or (urgent if sequence.urgent else batch) <= 0:
                return
            if self._follows(sequence):
                continue
            extent = self._make_room(sequence)
            if extent is None:
                return
            tokens = self._begin(sequence, extent)
            urgent, batch = urgent - tokens * sequence.urgent, batch - tokens

    def _left(self) -> tuple[int, int]:
        """Return how much of the step is left for prompts when running ones have had their share.

        The first number is for urgent ones, which do not wait until batch work's prompts are computed.
        """
        counts = [(len(sequence.token_ids) - sequence.computed, sequence.urgent) for sequence in self._running]
        prompts = [(count, urgent) for count, urgent in counts if count > 1]
        left = self._budget - min(sum(count == 1 for count, _ in counts), self._budget - self._reserved)
        urgent = left - sum(count for count, is_urgent in prompts if is_urgent)
        return urgent, left - sum(count for count, _ in prompts)

    @property
    def _reserved(self) -> int:
        return max(1, self._budget // _SHARE)

    def _follows(self, sequence: Sequence) -> bool:
        """Let a sequence wait for a running one that is about to compute the next of its blocks."""
        keys = _to_take_over(sequence)
        found = len(self._pool.find(keys))
        shared = found
        while shared < len(keys) and keys[shared] in self._computing:
            shared += 1
        if shared == found:
            return False
        key = keys[shared - 1]
        leader = self._computing[key]
        leader.urgent = leader.urgent or sequence.urgent
        self._waiting.park(sequence, key)
        return True

    def _make_room(self, sequence: Sequence) -> Extent | None:
        """Find a place and slots for a sequence; batch work gives its own to an urgent one."""
        room = _rooms(sequence)[1]
        while len(self._running) >= self._max_sequences or not self._take(sequence, room):
            batch = [running for running in self._running if _gives_way(running)]
            if not sequence.urgent or not batch or not self._fits(room, sum(running.room for running in batch)):
                return None
            self._preempt(max(batch, key=_safety))
        return sequence.extent

    def _take(self, sequence: Sequence, room: int) -> bool:
        """Find slots, sparing what can be taken over if possible."""
        if self._fits(room):
            spare = {extent for extent, _ in self._pool.find(_to_take_over(sequence))}
            sequence.extent = self._pool.take(room, spare) or self._pool.take(room)
        return sequence.extent is not None

    def _fits(self, room: int, given_up: int = 0) -> bool:
        """Say whether there is room for one more if others give up that much, and slack for who is running."""
        held = self._pool.held - given_up
        return room <= self.slots - held - (self.slots // _SLACK if held else 0)

    def _begin(self, sequence: Sequence, extent: Extent) -> int:
        """Take over what is known of a sequence that has got slots; returns how many tokens are not."""
        found = self._pool.find(_to_take_over(sequence))
        self._pool.touch(found)
        self._pool.copy(found, extent)
        self._waiting.take(sequence)
        self._running[sequence] = None
        sequence.published = len(found)
        for key in sequence.keys[len(found) :]:
            self._computing.setdefault(key, sequence)
        if not sequence.begun:
            sequence.begun, sequence.cached = True, extent.filled
            self.prompt_tokens += sequence.prompt_length
            self.cached_tokens += sequence.cached
        return len(sequence.token_ids) - extent.filled

    def _rows(self) -> list[Row]:
        """Share the step out: one token each to whom it lacks only one, the rest to prompts."""
        known = [(sequence, sequence.computed, len(sequence.token_ids)) for sequence in self._running]
        rows = [Row(sequence, start, 1, True) for sequence, start, end in known if end - start == 1]
        prompts = [sequence for sequence, start, end in known if end - start > 1]
        share = self._budget - (self._reserved if prompts else 0)
        if len(rows) > share:
            rows = self._rotate(rows, share)
        prompts.sort(key=_urgency if self._steps % _SHARE else _arrival)
        return rows + _chunks(prompts, self._budget - len(rows))

    def _rotate(self, rows: list[Row], share: int) -> list[Row]:
        """Take only so many rows; those sequences are the last next time."""
        for row in rows[:share]:
            del self._running[row.sequence]
            self._running[row.sequence] = None
        return rows[:share]

    def _publish(self, sequence: Sequence, extent: Extent) -> None:
        """Let others find the blocks that were computed, and those go on that waited for them."""
        blocks = extent.filled // BLOCK
        sequence.name_blocks(blocks)
        for number in range(sequence.published, blocks):
            key = sequence.keys[number]
            self._pool.publish(extent, number, key)
            if self._computing.pop(key, None):
                self._waiting.wake(key)
        sequence.published = blocks


def _chunks(prompts: list[Sequence], left: int) -> list[Row]:
    """Give prompts what is left of a step, in order."""
    rows = []
    for sequence in prompts:
        start, end = sequence.computed, len(sequence.token_ids)
        count = min(end - start, left)
        if count:
            rows.append(Row(sequence, start, count, start + count == end))
        left -= count
    return rows


def _gives_way(sequence: Sequence) -> bool:
    return not (sequence.urgent or sequence.preempted)


def _safety(sequence: Sequence) -> tuple[bool, int]:
    """Order those that run: the last is the first to make room."""
    return _gives_way(sequence), sequence.arrival


def _urgency(sequence: Sequence) -> tuple[bool, int]:
    """Order those whose prompts are computed: the first goes first."""
    return not sequence.urgent, sequence.arrival


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def _rooms(sequence: Sequence) -> tuple[int, int]:
    """Return how many slots a sequence needs, and how many it should have so that it does not need more too soon."""
    tokens = len(sequence.token_ids)
    wish = min(sequence.limit, tokens + max(tokens // 4, _SPARE))
    return _whole_blocks(tokens), _whole_blocks(max(tokens, wish))


def _whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def _to_take_over(sequence: Sequence) -> list[bytes]:
    """Return the keys of all blocks before its last token, which is computed in any case: it says what is next."""
    return sequence.keys[: (len(sequence.token_ids) - 1) // BLOCK]
