"""How many processes answer for a custom model, and when: pure decisions, told the time (contract C.4)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from aiquery_serving.endpoint import ServedEntity

#: Requests at once that call for a process: as many as the smallest workload promises.
REQUESTS_EACH = 4
#: Seconds for which one more process must have been needed on end before it is started.
MOMENT = 0.5
#: Seconds after which a process that only a rush needed is ended, if an idle one is not ended earlier.
SPARE_SECONDS = 300.0
#: Requests in flight below which each workload size never goes.
_LEAST_CONCURRENCY = {"small": 4, "medium": 8, "large": 16}


@dataclass(frozen=True, slots=True)
class Replicas:
    """Between `least` and `most` processes answer, each of them `each` requests at once."""

    least: int = 1
    most: int = 1
    each: int = 16

    def needed(self, requests: int) -> int:
        """Return how many processes so many requests at once need.

        Examples:
            >>> [Replicas(1, 3, 4).needed(requests) for requests in (0, 4, 5, 100)]
            [1, 1, 2, 3]
        """
        return min(max(ceil(requests / self.each), self.least), self.most)


def replicas_of(entity: ServedEntity, *, cores: int) -> Replicas:
    """Return the bounds that a served entity's size declares.

    There are never more processes than cores, which would only share them, and one for a GPU, whose memory would
    hold the model that often; each process takes more requests then, so that as many are in flight as declared.

    Examples:
        >>> replicas_of(ServedEntity(name="m", workload_size="Large"), cores=32)
        Replicas(least=4, most=16, each=4)
        >>> replicas_of(ServedEntity(name="m", workload_size="Large", scale_to_zero_enabled=True), cores=2)
        Replicas(least=0, most=2, each=32)
    """
    useful = 1 if "GPU" in entity.workload_type else max(cores, 1)
    most = min(ceil(entity.concurrency / REQUESTS_EACH), useful)
    each = ceil(entity.concurrency / most)
    return Replicas(least=ceil(_least_concurrency(entity) / each), most=most, each=each)


def _least_concurrency(entity: ServedEntity) -> int:
    if entity.scale_to_zero_enabled:
        return 0
    if entity.max_provisioned_concurrency:
        return 1 if entity.min_provisioned_concurrency is None else entity.min_provisioned_concurrency
    return _LEAST_CONCURRENCY[(entity.workload_size or "small").lower()]


class Scaling:
    """Says how many processes should run, from how many requests there are.

    One more should run once it has been needed for a moment on end, and no more once it has not been needed for
    long. The very first one is for whoever asks to start: that does not wait for a moment.

    Args:
        replicas: The bounds.
        idle_seconds: How long the last process, where none has to run, outlasts the last request. Others go after
            `SPARE_SECONDS` if that is earlier.
        now: The time at which the first process runs, in seconds of any clock that never goes back.
    """

    def __init__(self, replicas: Replicas, *, idle_seconds: float, now: float) -> None:
        self._replicas = replicas
        self._idle_seconds = idle_seconds
        # By number of processes: since when that many are needed on end, and when that many were needed last.
        self._since = dict.fromkeys(range(1, replicas.least + 1), now)
        self._last = dict.fromkeys(range(1, max(replicas.least, 1) + 1), now)

    def note(self, requests: int, *, now: float) -> bool:
        """Take notice of how many requests there are; returns whether a further process may soon be wanted."""
        before, needed = len(self._since), self._replicas.needed(requests)
        for count in range(before, needed):
            self._since[count + 1] = now
        for count in range(before, needed, -1):
            del self._since[count]
            self._last[count] = now
        return needed > max(before, 1)

    def wanted(self, running: int, *, now: float) -> int:
        """Return how many processes should run, of which so many do."""
        least = self._replicas.least
        grown = [count for count, since in self._since.items() if count <= least or now - since >= MOMENT]
        kept = [count for count in range(1, running + 1) if count in self._since or self._ends_in(count, now) > 0]
        return max(grown + kept, default=0)

    def look_again(self, running: int, *, now: float) -> float | None:
        """Return the seconds after which `wanted` may say something else, if no request comes or goes."""
        grow = [since + MOMENT - now for count, since in self._since.items() if count > running]
        end = [self._ends_in(count, now) for count in range(self._replicas.least + 1, running + 1)]
        return min((seconds for seconds in grow + end if seconds > 0), default=None)

    def _ends_in(self, count: int, now: float) -> float:
        """Return the seconds for which that many processes stay, if that many are not needed again."""
        patience = self._idle_seconds if count == 1 else min(self._idle_seconds, SPARE_SECONDS)
        last = now if count in self._since else self._last.get(count, now - patience)
        return last + patience - now
