"""How results are printed: as a table for people, as JSON and CSV for programs."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import StrEnum
from itertools import chain, islice, zip_longest
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

#: Where nobody looks there is no width to keep to: a table is cut nowhere.
_ENDLESS: Final = 100_000
#: A column keeps at least this width, if it is as wide; and characters between two columns.
_NARROWEST: Final = 20
_GAP: Final = 2
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Format(StrEnum):
    """What a result is printed as."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def console_width() -> int:
    """Return how many characters a line of the terminal holds."""
    return shutil.get_terminal_size().columns


def records(items: Sequence[Json], view: Sequence[Json], kind: Format, *, none: str = "Nothing.") -> None:
    """Print a list of things.

    Args:
        items: All that is known of them: one JSON array.
        view: The same in short, one value a column, for a table and for CSV.
        kind: How to print them.
        none: What a table says of an empty list.
    """
    if kind is Format.JSON:
        _write(_json(items, indent=2) + "\n")
    elif kind is Format.CSV:
        _write_csv(list(view[0]) if view else [], (row.values() for row in view))
    elif view:
        _write_table(list(view[0]), (row.values() for row in view))
    else:
        _write(none + "\n")


def document(item: Json, kind: Format, *, view: str | None = None) -> None:
    """Print one thing: one JSON object, one row of CSV, or `view` for people (by default JSON, too)."""
    if kind is Format.CSV:
        _write_csv(list(item), [item.values()])
    else:
        _write((view if view is not None and kind is Format.TABLE else _json(item, indent=2)).rstrip("\n") + "\n")


def rows(columns: Sequence[str], found: Iterable[Sequence[Any]], kind: Format, *, most: int) -> bool:
    """Print the rows of a query as they come: JSON as one object a line.

    Args:
        columns: Their names, of which one may stand twice.
        found: The rows.
        kind: How to print them.
        most: The most rows of a table; programs get all.

    Returns:
        Whether all rows were printed.
    """
    names = _distinct(columns)
    if kind is Format.JSON:
        for row in found:
            _write(_json(dict(zip(names, row, strict=True))) + "\n")
    elif kind is Format.CSV:
        _write_csv(names, found)
    else:
        waiting = iter(found)
        _write_table(names, islice(waiting, most))
        return next(waiting, None) is None
    return True


def table(columns: Sequence[str], found: Iterable[Iterable[Any]]) -> str:
    """Return a table: as wide as it needs, or as the terminal is; where that is too narrow, a block for each row."""
    seen = [list(row) for row in found]
    names = [harmless(name) for name in columns]
    cells = [[harmless(_cell(value)) for value in row] for row in seen]
    widths = [max(map(_width, column)) for column in zip(names, *cells, strict=True)]
    if sum(min(width, _NARROWEST) + _GAP for width in widths) - _GAP > _line_width():
        return "\n".join(_grid(["", ""], list(zip(names, row, strict=True)), [False, False]) for row in cells)
    numbers = [bool(seen) and all(map(_is_number, column)) for column in zip(*seen, strict=True)]
    return _grid(names, cells, numbers or [False] * len(names), [width <= _NARROWEST for width in widths])


def moment(epoch_ms: int | None) -> str:
    """Return a time as people write it, or nothing where there is none."""
    if not epoch_ms:
        return ""
    return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def harmless(text: str) -> str:
    """Return a text that does nothing to a terminal: an answer may hold anything."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\t", "    ").replace("\r\n", "\n"))


def _grid(
    names: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], whole: Sequence[bool] = ()
) -> str:
    """Return cells under each other; `right` are columns of numbers, `whole` those that are not to be folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=box.SIMPLE_HEAD, show_header=any(names), show_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold"
    )
    for name, on_the_right, in_one_line in zip_longest(names, right, whole, fillvalue=False):
        justify = "right" if on_the_right else "left"
        grid.add_column(Text(str(name)), justify=justify, overflow="fold", no_wrap=bool(in_one_line))  # type: ignore[arg-type]
    for row in cells:
        grid.add_row(*map(Text, row))
    file = io.StringIO()
    Console(file=file, width=_line_width(), force_terminal=sys.stdout.isatty() and not _colourless()).print(grid)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _line_width() -> int:
    return console_width() if sys.stdout.isatty() else _ENDLESS


def _width(text: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def _write(text: str) -> None:
    sys.stdout.write(text)


def _write_table(columns: Sequence[str], found: Iterable[Iterable[Any]]) -> None:
    _write(table(columns, found))


def _write_csv(columns: Sequence[str], found: Iterable[Iterable[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows(chain([columns] if columns else [], ([_cell(value) for value in row] for row in found)))


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    """Return a value of SQL as JSON has it: decimals are numbers, bytes base64, times ISO 8601, NaN null."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(_plain(name)): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _told(value)


def _told(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _cell(value: Any) -> str:
    """Return a value as one cell: nothing for NULL, JSON for what has parts."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list | tuple):
        return _json(value)
    return _told(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of which none stands twice.

    Examples:
        >>> _distinct(["a", "b", "a"])
        ['a', 'b', 'a_1']
    """
    made: list[str] = []
    for name in names:
        free = (new for new in _numbered(name) if new not in made)
        made.append(next(free))
    return made


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1


def _colourless() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
