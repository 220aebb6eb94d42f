"""The processes of one custom model: who answers which request, and how many there are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from aiquery_serving.entities.workers.place import Place, State, out_of_service
from aiquery_serving.entities.workers.process import About, ModelProcess, Program
from aiquery_serving.entities.workers.replicas import Replicas, Scaling
from aiquery_serving.errors import AiQueryError


class Crew:
    """Lends processes to requests, and has as many of them as the requests need (`replicas.Scaling`).

    A request goes to the process with the fewest, and waits while all have as many as they take. When a process
    has ended, its place is closed until another runs there. Suspects, which were in flight as one ended, get a
    process alone, one after the other, at a place that is guarded meanwhile.

    Attributes:
        about: What the model says of itself.
        closed: Whether it was taken out of service.
    """

    def __init__(self, program: Program, replicas: Replicas, idle_seconds: float) -> None:
        """Start the fewest processes there may be, one at least, and load the model in all of them.

        Raises:
            ModelError: It does not load; with the last lines that the process wrote.
        """
        self._program, self._each = program, replicas.each
        self._places = [Place(program) for _ in range(replicas.most)]
        self._changed = threading.Condition()
        self._guarded: Place | None = None
        self._suspects = self._waiting = self._requests = 0
        self._retired = self.closed = False
        self._look = threading.Event()
        self.about = self._started(self._places[: max(replicas.least, 1)])
        self._scaling = Scaling(replicas, idle_seconds=idle_seconds, now=time.monotonic())
        self._thread(self._watch)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request for as long as the block lasts, wherever it waits."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @contextmanager
    def lent(self, *, alone: bool) -> Iterator[ModelProcess]:
        """Have a process, with others or alone.

        Raises:
            ModelError: It had to be started, and the model does not load.
            OverloadedError: The model was taken out of service.
        """
        place = self._entered_alone() if alone else self._entered()
        try:
            yield place.running()
            place.crashes = 0
        finally:
            self._give_back(place, alone=alone)

    def retire(self, *, at_once: bool = False) -> None:
        """End the processes as soon as they have answered what they were asked, or within a second."""
        with self._changed:
            self._retired = True
            busy = self._requests > 0
        if at_once or not busy:
            self.close()

    def close(self) -> None:
        """End the processes within a second; who waits for an answer gets an error."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._look.set()
        for place in self._places:
            place.stop()

    # Who goes where. All of this is asked with the lock held.

    def _with_room(self) -> Place | None:
        """Return the place with the fewest requests that takes one more; one is opened where there is none."""
        places = [place for place in self._places if place.state is State.OPEN] or self._opened()
        shared = [place for place in places if place is not self._guarded]
        fewest = min(shared, key=lambda place: place.in_flight, default=None)
        return fewest if fewest is not None and fewest.in_flight < self._each else None

    def _opened(self) -> list[Place]:
        """Open a place, whose process whoever asks first starts."""
        places = [place for place in self._places if place.state is not State.ENDING][:1]
        for place in places:
            place.state = State.OPEN
            self._look.set()
        return places

    def _empty(self) -> Place | None:
        """Return the guarded place once nobody is there."""
        if self._guarded is None or self._guarded.state is not State.OPEN:
            places = [place for place in self._places if place.state is State.OPEN] or self._opened()
            self._guarded = min(places, key=lambda place: place.in_flight, default=None)
        return None if self._guarded is None or self._guarded.in_flight else self._guarded

    def _entered(self) -> Place:
        with self._changed:
            self._waiting += 1
            try:
                return self._waited(self._with_room)
            finally:
                self._waiting -= 1

    def _entered_alone(self) -> Place:
        with self._changed:
            self._suspects += 1
            try:
                return self._waited(self._empty)
            except BaseException:
                self._acquit()
                raise

    def _waited(self, free: Callable[[], Place | None]) -> Place:
        while not self.closed:
            if (place := free()) is not None:
                place.in_flight += 1
                return place
            if self._guarded is not None:
                self._look.set()
            self._changed.wait()
        raise out_of_service(self._program.name)

    def _acquit(self) -> None:
        self._suspects -= 1
        if not self._suspects:
            self._guarded = None
            self._look.set()

    def _give_back(self, place: Place, *, alone: bool) -> None:
        with self._changed:
            place.in_flight -= 1
            if place.state is State.OPEN and not place.runs:
                place.state = State.CLOSED
            if place.state is not State.OPEN:
                self._look.set()
            if alone:
                self._acquit()
            self._changed.notify_all()

    def _count(self, change: int) -> None:
        with self._changed:
            self._requests += change
            if self._scaling.note(self._requests, now=time.monotonic()):
                self._look.set()
            done = self._retired and not self._requests
        if done:
            self.close()

    # How many there are.

    def _started(self, places: list[Place]) -> About:
        try:
            with ThreadPoolExecutor(len(places)) as starters:
                about, *_ = starters.map(Place.start, places)
        except BaseException:
            self.close()
            raise
        for place in places:
            place.state = State.OPEN
        assert about is not None  # noqa: S101 - nobody has stopped them yet
        return about

    def _thread(self, work: Callable[..., None], *arguments: object) -> None:
        name = f"aiquery-crew-{self._program.name}"
        threading.Thread(target=work, args=arguments, name=name, daemon=True).start()

    def _watch(self) -> None:
        while not self.closed:
            self._look.clear()
            with self._changed:
                starts, ends, seconds = self._due()
            for place in starts:
                self._thread(self._bring_up, place)
            for place in ends:
                place.rest()
                self._settle(place, State.CLOSED)
            self._look.wait(seconds)

    def _due(self) -> tuple[list[Place], list[Place], float | None]:
        """Return the places that get a process now, those that lose theirs, and the seconds until the next look."""
        now = time.monotonic()
        up = [place for place in self._places if place.state in (State.OPEN, State.STARTING)]
        missing = self._scaling.wanted(len(up), now=now) - len(up)
        if self._guarded is not None and self._waiting:
            missing += 1  # it is as good as none to the others
        starts = [place for place in self._places if place.state is State.CLOSED][: max(missing, 0)]
        for place in starts:
            place.state = State.STARTING
        for place in self._spare(up)[: max(-missing, 0)]:
            place.state = State.ENDING
        ends = [place for place in self._places if place.state is State.ENDING and not place.in_flight]
        return starts, ends, self._scaling.look_again(len(up) + missing, now=now)

    def _spare(self, up: list[Place]) -> list[Place]:
        """Return the places that may lose their process, the idlest first; none while another process starts."""
        if any(place.state is State.STARTING for place in up):
            return []
        others = [place for place in reversed(up) if place is not self._guarded]
        return sorted(others, key=lambda place: place.in_flight)

    def _bring_up(self, place: Place) -> None:
        try:
            place.running()
        except AiQueryError as error:
            if not self.closed:
                self._program.on_line(logging.WARNING, f"One more process did not start: {error}")
        finally:
            self._settle(place, State.OPEN if place.runs else State.CLOSED)

    def _settle(self, place: Place, state: State) -> None:
        with self._changed:
            if place.state is not State.OPEN:  # whoever asks may have opened it meanwhile
                place.state = state
            self._changed.notify_all()
        self._look.set()
