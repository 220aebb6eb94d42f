"""What a statement would ask, cost and take: as objects, as a table of text, and as HTML."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Final

from aiquery.wording import amount, dollars, short, span

#: A table is told in no less than this many characters.
LEAST_WIDTH: Final = 120
_COLUMNS: Final = ("", "call", "rows", "NULL", "requests", "in ledger", "tokens in", "tokens out", "cost", "time")
_LEFT: Final = ("", "call")


@dataclass(frozen=True, slots=True)
class Range:
    """An amount that is not known yet: the least, the expected, and the most."""

    low: float = 0
    expected: float = 0
    high: float = 0

    @classmethod
    def together(cls, ranges: Iterable[Range]) -> Range:
        """Return the sum of some ranges.

        Examples:
            >>> Range.together([Range(1, 2, 3), Range(0, 5, 5)])
            Range(low=1, expected=7, high=8)
        """
        every = list(ranges)
        return cls(sum(one.low for one in every), sum(one.expected for one in every), sum(one.high for one in every))


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityEstimate:
    """What one served entity would get of a call.

    Attributes:
        served_entity: Its name.
        requests: How many it would be sent; rows, for a custom model.
        tokens_in: Tokens of them; `tokens_exact` when the provider will count the same.
        tokens_out: Tokens of its answers.
        answers_learned: How many earlier answers `tokens_out` was learned from; 0 for a guess.
        cost: US dollars; None when nobody said what it costs.
        seconds: How long it takes with nothing but its own speed in the way; None when it never answered before.
        price_hint: Which line would give it a price, when it has none.
    """

    served_entity: str
    requests: int
    tokens_in: int
    tokens_exact: bool
    tokens_out: Range
    answers_learned: int
    cost: Range | None
    seconds: float | None
    price_hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEstimate:
    """What one `ai_query` of a statement would ask.

    Attributes:
        number: Its place in the text, from 1; 0 for a call inside a view or a macro.
        text: Its own text, abbreviated.
        endpoint: The endpoint that it names; empty when no row has reached the call.
        rows: Rows it is evaluated for; of them `null_rows` are NULL, which asks nothing.
        requests: Distinct requests, without those that a call before it asks as well; an upper bound unless
            `requests_exact`. A custom model takes rows, not requests: 0.
        in_ledger: How many of them the ledger answers; None when the session does not reuse answers.
        served: What each served entity would get of the others.
        seconds: How long that takes; None when it is not known.
        pace: What decides that.
        depends_on: The calls whose answers, unknown yet, may decide what this one asks: it may be more, or less.
        may_end_early: A LIMIT may be satisfied before all of this is asked.
    """

    number: int
    text: str
    endpoint: str
    rows: int
    null_rows: int
    requests: int
    requests_exact: bool
    in_ledger: int | None
    served: tuple[EntityEstimate, ...]
    seconds: float | None
    pace: str
    depends_on: tuple[int, ...]
    may_end_early: bool

    @property
    def to_send(self) -> int:
        """Requests that would be sent; rows, for a custom model."""
        return sum(one.requests for one in self.served)

    @property
    def tokens_in(self) -> int:
        """Tokens of the requests that would be sent."""
        return sum(one.tokens_in for one in self.served)

    @property
    def tokens_exact(self) -> bool:
        """Whether the providers will count the same tokens."""
        return all(one.tokens_exact for one in self.served)

    @property
    def tokens_out(self) -> Range:
        """Tokens of the answers."""
        return Range.together(one.tokens_out for one in self.served)

    @property
    def cost(self) -> Range | None:
        """US dollars; None when nobody said what a served entity costs."""
        costs = [one.cost for one in self.served]
        return None if None in costs else Range.together(cost for cost in costs if cost is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What all calls of a statement ask together.

    `cost` leaves out what has no price, and is not known then. It is `uncertain` where unknown answers decide what is
    asked, and `at_most` this where a LIMIT may end it earlier, or requests are too many to tell them apart.
    """

    rows: int
    requests: int
    in_ledger: int | None
    tokens_in: int
    tokens_exact: bool
    tokens_out: Range
    cost: Range
    cost_known: bool
    seconds: float | None
    uncertain: bool
    at_most: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Explanation:
    """What a statement would ask, cost and take. Nothing was sent to find out."""

    calls: list[CallEstimate]
    total: Total

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {"calls": [_call_output(call) for call in self.calls], "total": asdict(self.total)}

    def __str__(self) -> str:
        if not self.calls:
            return "The statement asks no model."
        table = _table_text(self._rows(), max(LEAST_WIDTH, shutil.get_terminal_size((LEAST_WIDTH, 0)).columns))
        return "\n".join([table, *(f"* {note}" for note in self._notes())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.calls:
            return f"<p>{escape(str(self))}</p>"
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(f"<tr>{_html_cells(row)}</tr>" for row in self._rows())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self._notes())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{notes}</ul>"

    def _rows(self) -> Iterator[Sequence[str]]:
        for call in self.calls:
            yield _call_row(call)
            if len(call.served) > 1:
                yield from map(_entity_row, call.served)
        if len(self.calls) > 1:
            yield _total_row(self.total)

    def _notes(self) -> Iterator[str]:
        yield from dict.fromkeys(note for call in self.calls for note in _notes(call))
        if not self.total.tokens_exact:
            yield "Tokens with ~ are estimated: the tokenizer of their model is not at hand."
        yield "Nothing was sent."


def total(calls: Sequence[CallEstimate], seconds: float | None) -> Total:
    """Return all calls of a statement together.

    Args:
        calls: Its calls.
        seconds: How long they take side by side; None when it is not known.
    """
    served = [one for call in calls for one in call.served]
    ledger = [call.in_ledger for call in calls if call.in_ledger is not None]
    return Total(
        rows=sum(call.rows for call in calls),
        requests=sum(call.requests for call in calls),
        in_ledger=sum(ledger) if ledger else None,
        tokens_in=sum(one.tokens_in for one in served),
        tokens_exact=all(one.tokens_exact for one in served),
        tokens_out=Range.together(one.tokens_out for one in served),
        cost=Range.together(one.cost for one in served if one.cost is not None),
        cost_known=all(one.cost is not None for one in served),
        seconds=seconds,
        uncertain=any(call.depends_on for call in calls),
        at_most=any(call.may_end_early or not call.requests_exact for call in calls),
    )


def _call_output(call: CallEstimate) -> dict[str, Any]:
    cost = call.cost
    derived = {
        "to_send": call.to_send, "tokens_in": call.tokens_in, "tokens_exact": call.tokens_exact,
        "tokens_out": asdict(call.tokens_out), "cost": None if cost is None else asdict(cost),
    }  # fmt: skip
    return asdict(call) | derived


def _call_row(call: CallEstimate) -> Sequence[str]:
    more = _more(uncertain=bool(call.depends_on), at_most=call.may_end_early or not call.requests_exact)
    is_custom = call.requests == 0 and call.to_send > 0
    return (
        str(call.number or ""),
        call.text,
        more + amount(call.rows),
        amount(call.null_rows),
        "–" if is_custom else more + amount(call.requests),
        "–" if call.in_ledger is None or is_custom else amount(call.in_ledger),
        *("–" if is_custom else text for text in _tokens(call.tokens_in, call.tokens_out, exact=call.tokens_exact)),
        "price unknown" if call.cost is None else more + _cost(call.cost),
        _time(call.seconds, more),
    )


def _entity_row(one: EntityEstimate) -> Sequence[str]:
    cost = "price unknown" if one.cost is None else _cost(one.cost)
    tokens = _tokens(one.tokens_in, one.tokens_out, exact=one.tokens_exact)
    return ("", f"  {one.served_entity}", "", "", amount(one.requests), "", *tokens, cost, _time(one.seconds))


def _total_row(total: Total) -> Sequence[str]:
    more = _more(uncertain=total.uncertain, at_most=total.at_most)
    return (
        "",
        "total",
        "",
        "",
        more + amount(total.requests),
        "–" if total.in_ledger is None else amount(total.in_ledger),
        *_tokens(total.tokens_in, total.tokens_out, exact=total.tokens_exact),
        (more if total.cost_known else "≥ ") + _cost(total.cost),
        _time(total.seconds, more),
    )


def _more(*, uncertain: bool, at_most: bool) -> str:
    """Return what stands before a number that is not certain."""
    return "? " if uncertain else "≤ " if at_most else ""


def _tokens(tokens_in: int, out: Range, *, exact: bool) -> tuple[str, str]:
    return ("" if exact else "~") + short(tokens_in), ("~" if out.high else "") + short(out.expected)


def _cost(cost: Range) -> str:
    return dollars(cost.expected) + ("" if cost.low == cost.high else f" ({dollars(cost.low)} – {dollars(cost.high)})")


def _time(seconds: float | None, more: str = "") -> str:
    return "unknown" if seconds is None else more + (span(seconds) if seconds else "0 s")


def _notes(call: CallEstimate) -> Iterator[str]:
    """Say what the numbers of a call do not."""
    name = f"Call {call.number}" if call.number else f"The call of {call.endpoint!r} in a view or a macro"
    if call.depends_on:
        others = " and ".join(_called(number, call.number) for number in call.depends_on)
        yield f"{name} may depend on the answers of {others}, which are unknown: it may ask more than this, or less."
    if call.may_end_early:
        yield f"{name} asks at most this: the LIMIT may end it earlier, as the answers decide."
    if not call.requests_exact:
        yield f"{name} has at most so many distinct requests: there are too many to tell them all apart."
    if call.pace:
        yield f"{name}: {call.pace}."
    for one in call.served:
        if one.price_hint:
            yield f"The price of {one.served_entity!r} is unknown: {one.price_hint}."
        if one.tokens_out.high:
            yield _answer_note(one)


def _called(number: int, own: int) -> str:
    return "itself" if number == own else f"call {number}" if number else "a call in a view or a macro"


def _answer_note(one: EntityEstimate) -> str:
    """Say where the length of answers comes from."""
    mean, most = (amount(round(tokens / one.requests)) for tokens in (one.tokens_out.expected, one.tokens_out.high))
    earlier = f"as {amount(one.answers_learned)} earlier ones had on average"
    source = earlier if one.answers_learned else "a guess"
    return f"Answers of {one.served_entity!r} are taken to have {mean} tokens, {source}, and {most} at most."


def _table_text(rows: Iterable[Sequence[str]], width: int) -> str:
    from io import StringIO

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in _COLUMNS:
        is_text = name in _LEFT
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "call", overflow="fold")
    for row in rows:
        table.add_row(*row)
    file = StringIO()
    Console(file=file, width=width, markup=False, highlight=False, color_system=None, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def _html_cells(row: Sequence[str]) -> str:
    sides = ("left" if name in _LEFT else "right" for name in _COLUMNS)
    return "".join(f'<td style="text-align:{side}">{escape(cell)}</td>' for cell, side in zip(row, sides, strict=True))
