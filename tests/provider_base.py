"""What every local provider does alike: keys, limits, scripted faults, counts (see `providers`)."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any, ClassVar, Self, TypeAlias

import orjson
from loopback import LoopbackServer, Reply, Request

Json: TypeAlias = dict[str, Any]
Fault: TypeAlias = Callable[["ProviderServer", Json, Reply], Reply]

KEY = "sk-loopback-0123456789"


@dataclass(slots=True)
class Stats:
    """What a server counted."""

    paths: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)

    @property
    def too_many(self) -> int:
        """How many calls got a 429."""
        return self.statuses[429]

    @property
    def calls(self) -> int:
        """How many calls came in all."""
        return self.statuses.total()


class Window:
    """A limit that holds over every rolling window."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._taken: deque[tuple[float, int]] = deque()
        self._sum = 0

    def wait(self, cost: int, now: float) -> float:
        """Return the seconds until `cost` would fit; 0.0 when it fits now."""
        self._forget(now)
        excess = self._sum + cost - self.most
        for at, taken in self._taken:
            if excess <= 0:
                return 0.0
            excess -= taken
            if excess <= 0:
                return at + self.seconds - now
        return 0.0 if excess <= 0 else self.seconds

    def take(self, cost: int, now: float) -> None:
        """Count a call that was let in."""
        self._taken.append((now, cost))
        self._sum += cost

    def state(self, now: float) -> tuple[int, int, float]:
        """Return the limit, what remains of it, and the seconds until it is whole again."""
        self._forget(now)
        reset = self._taken[-1][0] + self.seconds - now if self._taken else 0.0
        return self.most, max(self.most - self._sum, 0), reset

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0][0] <= now - self.seconds:
            self._sum -= self._taken.popleft()[1]


class ProviderServer:
    """What all providers share: keys, models, limits, faults and counts. See the module for the knobs."""

    api: ClassVar[str] = ""
    stream_type: ClassVar[str] = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        *,
        answer: Callable[[str], str] = "echo: {}".format,
        keys: Collection[str] = (KEY,),
        models: Collection[str] | None = None,
        limit: tuple[int, float] | None = None,
        token_limit: tuple[int, float] | None = None,
        headers: bool = False,
        retry_after: str | None = "seconds",
        delay: float | Callable[[Json], float] = 0.0,
        script: Iterable[Fault] = (),
        fault: Fault | None = None,
        fault_when: Callable[[Json], bool] = lambda _body: True,
        packet: int | None = None,
        pause: float = 0.0,
        max_inputs: int = 2048,
        max_chars: int = 1_000_000,
    ) -> None:
        self.answer, self.keys, self.models, self.delay = answer, keys, models, delay
        self.headers, self.retry_after = headers, retry_after
        self.packet, self.pause = packet, pause
        self.script, self.fault, self.fault_when = deque(script), fault, fault_when
        self.max_inputs, self.max_chars = max_inputs, max_chars
        self.requests: list[Json] = []
        self.seen_headers: list[Mapping[str, str]] = []
        self.stats = Stats()
        self._calls = Window(*limit) if limit else None
        self._tokens = Window(*token_limit) if token_limit else None
        self._server = LoopbackServer(self._reply)
        self.traffic = self._server.traffic

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(*exc)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return self._server.origin

    @property
    def url(self) -> str:
        """What a client takes as the base of this provider's API."""
        return self.origin + self.api

    # What a provider fills in.

    def key_of(self, request: Request) -> str:
        """Return the key that a request carries."""
        raise NotImplementedError

    def refuse(self, request: Request, body: Json) -> Reply | None:
        """Return the error of a request that breaks the provider's rules."""
        raise NotImplementedError

    def respond(self, path: str, body: Json) -> Json:
        """Return the honest answer."""
        raise NotImplementedError

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        """Return the events of an answer that was asked for as a stream; None when it was not."""
        return None

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        """Return an error in the provider's shape."""
        raise NotImplementedError

    def error_event(self, status: int, message: str) -> bytes:
        """Return an error as an event within a streamed answer."""
        raise NotImplementedError

    def tokens(self, answer: Json) -> int:
        """Return the tokens in and out that an answer reports."""
        raise NotImplementedError

    def limit_headers(self, now: float) -> dict[str, str]:
        """Return the provider's headers for the limits."""
        raise NotImplementedError

    def has_model(self, name: object) -> bool:
        """Tell whether a model exists here."""
        if self.models is None:
            return isinstance(name, str) and not name.startswith("no-such")
        return name in self.models

    # The way of a request.

    def _reply(self, request: Request) -> Reply:
        path = request.path.split("?")[0]
        self.stats.paths[path] += 1
        reply = self._judge(path, request)
        self.stats.statuses[reply.status] += 1
        return reply

    def _judge(self, path: str, request: Request) -> Reply:
        if self.key_of(request) not in self.keys:
            return self.error(401, "the API key is not known here", "invalid_api_key")
        if request.method == "GET":
            return self.listing(path)
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError:
            return self.error(400, "the body is not JSON")
        self.requests.append(body)
        self.seen_headers.append(request.headers)
        return self._with_faults(body, self._answer(path, request, body))

    def listing(self, path: str) -> Reply:
        """Answer a GET: the list of models."""
        if not path.endswith("/models"):
            return self.error(404, f"there is nothing at {path}")
        names = sorted(self.models or ["model-a"])
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "here"} for name in names]
        return Reply(body=orjson.dumps({"object": "list", "data": data}))

    def _answer(self, path: str, request: Request, body: Json) -> Reply:
        refusal = self.refuse(request, body)
        if refusal is not None:
            return refusal
        answer = self.respond(path, body)
        now = time.monotonic()
        wait = self._wait(self.tokens(answer), now)
        if wait > 0:
            return self.limited(wait)
        self.stats.accepted.append(now)
        headers = self.limit_headers(now) if self.headers else {}
        delay = self.delay(body) if callable(self.delay) else self.delay
        reply = Reply(body=orjson.dumps(answer), headers=headers, delay=delay)
        events = self.streamed(path, answer, body)
        return reply if events is None else self._in_packets(reply, events)

    def _in_packets(self, reply: Reply, events: list[bytes]) -> Reply:
        body = b"".join(events)
        packets = events if self.packet is None else cut(body, self.packet)
        headers = {"content-type": self.stream_type, **reply.headers}
        return replace(reply, body=body, headers=headers, packets=tuple(packets), pause=self.pause)

    def _wait(self, tokens: int, now: float) -> float:
        pairs = [(window, cost) for window, cost in ((self._calls, 1), (self._tokens, tokens)) if window]
        wait = max((window.wait(cost, now) for window, cost in pairs), default=0.0)
        if wait <= 0:
            for window, cost in pairs:
                window.take(cost, now)
        return wait

    def limited(self, wait: float) -> Reply:
        """Return a 429 that says, in the manner of `retry_after`, to come back in `wait` seconds."""
        reply = self.error(429, f"rate limit reached, try again in {wait:.3f}s", "rate_limit_exceeded")
        headers = self.limit_headers(time.monotonic()) if self.headers else {}
        match self.retry_after:
            case "seconds":
                headers["retry-after"] = str(int(wait) + (wait % 1 > 0))
            case "ms":
                headers["retry-after-ms"] = str(int(wait * 1000) + 1)
                headers["retry-after"] = str(int(wait) + 1)
            case "date":
                headers["retry-after"] = formatdate(time.time() + wait + 1, usegmt=True)
        return replace(reply, headers={**reply.headers, **headers})

    def _with_faults(self, body: Json, reply: Reply) -> Reply:
        if self.script:
            return self.script.popleft()(self, body, reply)
        if self.fault is not None and self.fault_when(body):
            return self.fault(self, body, reply)
        return reply


def cut(body: bytes, size: int) -> list[bytes]:
    """Cut bytes into packets of a size."""
    return [body[start : start + size] for start in range(0, len(body), size)]


# Faults.


def status(code: int, message: str = "something broke here") -> Fault:
    """Answer with an error of the provider's shape."""
    return lambda server, _body, _reply: server.error(code, message)


def too_many(wait: float = 1.0) -> Fault:
    """Answer 429 although no limit was reached."""
    return lambda server, _body, _reply: server.limited(wait)


def slow(seconds: float) -> Fault:
    """Answer honestly, but late."""
    return lambda _server, _body, reply: replace(reply, delay=seconds)


def out_of_quota(server: ProviderServer, _body: Json, _reply: Reply) -> Reply:
    """Say that the account has no credit left."""
    return server.error(429, "the account has no credit left", "insufficient_quota")


def drop(_server: ProviderServer, _body: Json, reply: Reply) -> Reply:
    """Close the connection without an answer."""
    return replace(reply, dropped=True)


def truncate(_server: ProviderServer, _body: Json, reply: Reply) -> Reply:
    """Send half of the JSON, or of the packets, as if it were all of it."""
    half = None if reply.packets is None else reply.packets[: len(reply.packets) // 2]
    return replace(reply, body=reply.body[: len(reply.body) // 2], packets=half)


def cut_off(_server: ProviderServer, _body: Json, reply: Reply) -> Reply:
    """Close the connection in the middle of the body."""
    return replace(reply, keep=len(reply.body) // 2)


def breaks(code: int, message: str = "something broke on the way", *, after: int = 3) -> Fault:
    """Report an error within a streamed answer, after some of its packets."""

    def fault(server: ProviderServer, _body: Json, reply: Reply) -> Reply:
        return replace(reply, packets=(*(reply.packets or ())[:after], server.error_event(code, message)))

    return fault


def html(_server: ProviderServer, _body: Json, _reply: Reply) -> Reply:
    """Answer 200 with a page, as a captive portal does."""
    page = b"<!doctype html><html><body>Please log in</body></html>"
    return Reply(body=page, headers={"content-type": "text/html"})


def no_choices(_server: ProviderServer, _body: Json, reply: Reply) -> Reply:
    """Answer with an empty list of choices (or content blocks, or vectors)."""
    answer = orjson.loads(reply.body)
    empty = {name: [] for name in ("choices", "content", "data") if name in answer}
    return replace(reply, body=orjson.dumps({**answer, **empty}))


def wrong_count(_server: ProviderServer, _body: Json, reply: Reply) -> Reply:
    """Leave out the last of the choices or vectors."""
    answer = orjson.loads(reply.body)
    fewer = {name: answer[name][:-1] for name in ("choices", "content", "data") if name in answer}
    return replace(reply, body=orjson.dumps({**answer, **fewer}))
