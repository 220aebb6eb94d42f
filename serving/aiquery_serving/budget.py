"""Keeps a job within its budget: what it has spent, what its calls in flight may still spend, who waits for the rest.

Theory of operation. Before a request is sent, the most that it can use is held: its call, its tokens, its cost. What
is spent and what is held never exceed a maximum together, so a call that uses no more than was held for it never
crosses one. An answer turns the hold into what was really used and frees the rest. A request that does not fit waits
while others are in flight, in order; one that would not fit with nothing in flight is refused, for good. Money is
counted in whole picodollars: sums of floats drift, and a request could wait forever for a rest that nobody holds.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiquery_serving import tokens
from aiquery_serving.endpoint import ServedEntity
from aiquery_serving.errors import BudgetReachedError, ConfigurationError, InvalidRequestError
from aiquery_serving.messages import Usage
from aiquery_serving.prices import Price, Prices

_PICO = 10**12


class Amount(NamedTuple):
    """What requests use: calls, tokens in and out, and picodollars."""

    calls: int = 0
    tokens: int = 0
    cost: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(self.calls + other.calls, self.tokens + other.tokens, self.cost + other.cost)

    def minus(self, other: Amount) -> Amount:
        """Return what is left without the other, nothing less than 0."""
        return Amount(
            max(0, self.calls - other.calls), max(0, self.tokens - other.tokens), max(0, self.cost - other.cost)
        )


class Spent(NamedTuple):
    """What a job has spent so far, failed tries included.

    `cost` is in dollars. It is not known when something had no price, or a provider did not say what it counted.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    cost_known: bool = True


class Maxima(NamedTuple):
    """The most that a job may use of each thing; None for no limit."""

    calls: int | None = None
    tokens: int | None = None
    cost: int | None = None


class Spending:
    """What is spent and what is held, against the maxima. Pure.

    Examples:
        >>> spending = Spending(Maxima(tokens=10))
        >>> spending.hold(Amount(tokens=6))
        >>> spending.fits(Amount(tokens=5)), spending.never_fits(Amount(tokens=5))
        (False, False)
        >>> spending.settle(Amount(tokens=6), Amount(tokens=6))
        >>> spending.never_fits(Amount(tokens=5))
        True
    """

    __slots__ = ("held", "maxima", "spent")

    def __init__(self, maxima: Maxima) -> None:
        self.maxima = maxima
        self.spent = self.held = Amount()

    def fits(self, more: Amount) -> bool:
        """Say whether it can be used now, whatever becomes of the calls in flight."""
        return self.exceeded(self.held.plus(more)) is None

    def never_fits(self, more: Amount) -> bool:
        """Say whether it is too much even with nothing in flight."""
        return self.exceeded(more) is not None

    def exceeded(self, more: Amount) -> str | None:
        """Name what there would be too much of beside what is spent: `calls`, `tokens` or `cost`."""
        total = self.spent.plus(more)
        for name, most, amount in zip(Amount._fields, self.maxima, total, strict=True):
            if most is not None and amount > most:
                return name
        return None

    def hold(self, more: Amount) -> None:
        """Set it aside."""
        self.held = self.held.plus(more)

    def settle(self, held: Amount, used: Amount) -> None:
        """Turn what was held into what was used."""
        self.held = self.held.minus(held)
        self.spent = self.spent.plus(used)


class Worst(NamedTuple):
    """The most that one send can use, and the price that says so."""

    price: Price | None
    prompt_tokens: int
    completion_tokens: int
    amount: Amount


class Ticket:
    """The right of one request to be sent, and sent again after a failure: the gateway's meter of this request."""

    __slots__ = ("_endpoint", "_held", "_largest", "_meter")

    def __init__(self, meter: Meter, endpoint: str, largest: int, held: Amount) -> None:
        self._meter, self._endpoint, self._largest = meter, endpoint, largest
        self._held = held

    def reserve(self, served: ServedEntity, body: Mapping[str, Any]) -> Worst:
        """Count a send that is about to happen, out of what the ticket holds.

        A second try needs a call more than that, and another served entity may cost more.

        Raises:
            BudgetReachedError: What it needs beyond the ticket is not left. This cannot wait.
            ConfigurationError: A maximum cost is to be kept, and the served entity has no price.
        """
        worst = self._meter.worst(served, body, self._endpoint, self._largest)
        more = worst.amount.minus(self._held)
        if any(more):
            self._meter.take(more)
            self._held = self._held.plus(more)
        self._meter.in_flight += 1
        return worst

    def settle(self, reserved: object, usage: Usage | None) -> None:
        """Count what a send used: a failed one its call and no tokens."""
        if isinstance(reserved, Worst):
            self._meter.in_flight -= 1
            used = self._meter.charge(reserved, usage)
            left = self._held.minus(used)
            self._meter.free(self._held.minus(left), used)
            self._held = left

    def close(self) -> None:
        """Give back what is still held."""
        self._meter.free(self._held, Amount())
        self._held = Amount()


class Meter:
    """The budget of one job. Belongs to one event loop, but for `spent`, which any thread may read.

    Args:
        prices: What is served for how much.
        max_cost: Most dollars.
        max_tokens: Most tokens, in and out together.
        max_calls: Most calls, failed ones included.

    Raises:
        InvalidRequestError: A maximum is no number from 0 on.
    """

    def __init__(
        self,
        *,
        prices: Prices,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        max_calls: int | None = None,
    ) -> None:
        for name, most in {"max_cost": max_cost, "max_tokens": max_tokens, "max_calls": max_calls}.items():
            if most is not None and not 0 <= most < math.inf:
                raise InvalidRequestError(
                    f"{name} must be a number from 0 on, not {most!r}; leave it out for no limit."
                )
        self._prices = prices
        self._spending = Spending(Maxima(max_calls, max_tokens, None if max_cost is None else _pico(max_cost)))
        self._sized = max_cost is not None or max_tokens is not None
        self._line: deque[tuple[asyncio.Future[None], Amount]] = deque()
        self._largest = 0
        self.spent = Spent()
        #: Sends that are being answered now; any thread may read it.
        self.in_flight = 0

    @asynccontextmanager
    async def enter(
        self, served: ServedEntity, body: Mapping[str, Any], *, endpoint: str = ""
    ) -> AsyncIterator[Ticket]:
        """Wait until the budget has room for a request; what it does not use is given back when the block ends.

        Args:
            served: What will probably answer.
            body: The REST request body; of packed requests the whole one.
            endpoint: Its name, for the prices by endpoint.

        Yields:
            The meter to hand to the gateway with this one request.

        Raises:
            BudgetReachedError: It would not fit even when everything in flight is done.
            ConfigurationError: A maximum cost is to be kept, and the served entity has no price.
        """
        worst = self.worst(served, body, endpoint, self._largest).amount
        ticket = Ticket(self, endpoint, self._largest, worst)
        await self._stand_in_line(worst)
        try:
            yield ticket
        finally:
            ticket.close()

    def worst(self, served: ServedEntity, body: Mapping[str, Any], endpoint: str, largest: int) -> Worst:
        """Return the most that one send can use; `largest` is the largest answer that was known.

        Raises:
            ConfigurationError: A maximum cost is to be kept, and the served entity has no price.
        """
        price = self._prices.of(served, endpoint)
        if price is None and self._spending.maxima.cost is not None:
            raise ConfigurationError(
                f"max_cost cannot be kept, for nothing says what {_name(served)} costs: "
                f"{self._prices.how_to_add(served, endpoint)}, or leave max_cost out."
            )
        prompt = tokens.most(body, served) if self._sized else 0
        completion = tokens.output_bounds(body, largest).high if self._sized else 0
        return Worst(price, prompt, completion, _amount(price, prompt, completion))

    def take(self, more: Amount) -> None:
        """Hold more without waiting.

        Raises:
            BudgetReachedError: It does not fit now.
        """
        if not self._spending.fits(more):
            raise _reached(self._spending, more)
        self._spending.hold(more)

    def charge(self, worst: Worst, usage: Usage | None) -> Amount:
        """Count one send in `spent`, and return what it used.

        An answer whose tokens the provider did not count is charged what was held for it.
        """
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        counted = usage is None or usage.total_tokens > 0
        self._largest = max(self._largest, completion)
        if not counted:
            prompt, completion = worst.prompt_tokens, worst.completion_tokens
        used = _amount(worst.price, prompt, completion)
        known = worst.price is not None and (counted or not (worst.price.input or worst.price.output))
        so_far = self.spent
        cost = self._spending.spent.cost + used.cost
        self.spent = Spent(
            so_far.calls + 1,
            so_far.prompt_tokens + prompt,
            so_far.completion_tokens + completion,
            cost / _PICO,
            so_far.cost_known and known,
        )
        return used

    def free(self, held: Amount, used: Amount) -> None:
        """Turn what was held into what was used, and let go who has room now."""
        self._spending.settle(held, used)
        self._pump()

    async def _stand_in_line(self, worst: Amount) -> None:
        if not self._line and self._spending.fits(worst):
            self._spending.hold(worst)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((future, worst))
        self._pump()
        try:
            await future
        except asyncio.CancelledError:
            # Who was let through before it could hear of it gives back; the others are passed over in line.
            if not future.cancelled() and future.exception() is None:
                self._spending.settle(worst, Amount())
            self._pump()
            raise

    def _pump(self) -> None:
        """Let through who fits, in order, and refuse who never will."""
        while self._line:
            future, worst = self._line[0]
            if not future.done():
                if self._spending.fits(worst):
                    self._spending.hold(worst)
                    future.set_result(None)
                elif self._spending.never_fits(worst):
                    future.set_exception(_reached(self._spending, worst))
                else:
                    return
            self._line.popleft()


def _reached(spending: Spending, more: Amount) -> BudgetReachedError:
    held = Amount() if spending.never_fits(more) else spending.held
    name = spending.exceeded(held.plus(more)) or "calls"
    most, spent, needed = (_shown(name, getattr(one, name)) for one in (spending.maxima, spending.spent, more))
    waiting = f", held for requests in flight: {_shown(name, getattr(held, name))}" if any(held) else ""
    smaller = "" if name == "calls" else ", or bound the answers with max_tokens in modelParameters"
    return BudgetReachedError(
        f"The budget is reached: max_{name} is {most}, spent so far: {spent}{waiting}, and the next request may use "
        f"up to {needed}. Raise max_{name} to go on{smaller}."
    )


def _shown(name: str, amount: int) -> str:
    return f"${amount / _PICO:.6g}" if name == "cost" else f"{amount:,}"


class Tab:
    """What a session spends: counted, not limited. Its counters are the gateway's meters of all requests.

    Belongs to one event loop, but for `spent` and `in_flight`, which any thread may read.
    """

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._counters: dict[str, _Counter] = {}
        self.spent = Spent()
        self.in_flight = 0

    def at(self, endpoint: str) -> _Counter:
        """Return the meter of an endpoint's requests."""
        counter = self._counters.get(endpoint)
        if counter is None:
            counter = self._counters[endpoint] = _Counter(self, endpoint)
        return counter

    def price(self, served: ServedEntity, endpoint: str) -> Price | None:
        """Return what is known to be the price of a served entity."""
        return self._prices.of(served, endpoint)


class _Counter:
    """Counts the sends of one endpoint's requests on a tab."""

    def __init__(self, tab: Tab, endpoint: str) -> None:
        self._tab, self._endpoint = tab, endpoint
        self._priced: tuple[ServedEntity | None, Price | None] = (None, None)

    def reserve(self, served: ServedEntity, body: Mapping[str, Any]) -> Price | None:  # noqa: ARG002 - as meters are asked
        """Count a send as being answered."""
        self._tab.in_flight += 1
        if self._priced[0] is not served:
            self._priced = served, self._tab.price(served, self._endpoint)
        return self._priced[1]

    def settle(self, reserved: object, usage: Usage | None) -> None:
        """Count what a send used: a failed one its call and no tokens."""
        tab, price = self._tab, reserved if isinstance(reserved, Price) else None
        tab.in_flight -= 1
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        so_far = tab.spent
        tab.spent = Spent(
            so_far.calls + 1,
            so_far.prompt_tokens + prompt,
            so_far.completion_tokens + completion,
            so_far.cost + (price.cost(prompt, completion) if price is not None else 0.0),
            so_far.cost_known and price is not None and (usage is None or usage.total_tokens > 0),
        )


def _pico(dollars: float) -> int:
    return round(dollars * _PICO)


def _amount(price: Price | None, prompt: int, completion: int) -> Amount:
    """Return what one call with these tokens uses."""
    cost = 0 if price is None else _pico(price.cost(prompt, completion))
    return Amount(1, prompt + completion, cost)


def _name(served: ServedEntity) -> str:
    external = served.external_model
    return f"{external.provider} model '{external.name}'" if external else f"served entity '{served.name}'"
