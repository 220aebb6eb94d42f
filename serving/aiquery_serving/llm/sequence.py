"""One prompt and what was given to it so far, as the scheduler knows it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

from aiquery_serving.llm.pool import BLOCK, Extent


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt on its way to an answer. Its owner reads it; only a Scheduler changes it.

    Attributes:
        token_ids: The prompt, then what was given.
        limit: The most tokens it may come to.
        batch: Whether it may wait for others.
        prompt_length: Tokens of the prompt.
        cached: Of these, tokens whose keys and values were taken over when it began.
        arrival: How many came before it.
        urgent: Whether it goes before batch work: it is none, has waited too long, or computes for one that is urgent.
        preempted: Whether it has had to make room for others.
        begun: Whether it has ever had a place.
        extent: Where its keys and values are; None while it waits.
        published: Blocks at its head that others can find.
        keys: What names its blocks, as far as they were needed.
    """

    token_ids: list[int]
    limit: int
    batch: bool = False
    prompt_length: int = field(init=False)
    cached: int = field(default=0, init=False)
    arrival: int = field(default=-1, init=False)
    urgent: bool = field(default=True, init=False)
    preempted: bool = field(default=False, init=False, repr=False)
    begun: bool = field(default=False, init=False, repr=False)
    extent: Extent | None = field(default=None, init=False, repr=False)
    published: int = field(default=0, init=False, repr=False)
    keys: list[bytes] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.token_ids)
        self.urgent = not self.batch

    @property
    def start(self) -> int:
        """The first slot of its keys and values; -1 while it waits. A step's moves may change it."""
        return -1 if self.extent is None else self.extent.start

    @property
    def room(self) -> int:
        """How many slots are its own."""
        return 0 if self.extent is None else self.extent.room

    @property
    def computed(self) -> int:
        """How many of its tokens have their keys and values in memory."""
        return 0 if self.extent is None else self.extent.filled

    def name_blocks(self, blocks: int) -> None:
        """Know the keys of that many whole blocks; each names the block and all before it.

        They are cryptographic, so that nobody can make a prompt that takes over another one's memory.
        """
        known = len(self.keys)
        ends = range(known * BLOCK, blocks * BLOCK + 1, BLOCK)
        key = self.keys[-1] if known else b""
        for begin, end in pairwise(ends):
            key = blake2b(key + array("q", self.token_ids[begin:end]).tobytes(), digest_size=16).digest()
            self.keys.append(key)
