"""Prints a benchmark's figures as a table and keeps them as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def report(name: str, rows: Sequence[dict[str, Any]], aims: Sequence[tuple[str, bool]] = ()) -> None:
    """Print rows under their keys, say which aims were met, and write `results/<name>.json`."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = [keys, *([_shown(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(keys))]
    print(f"\n{name}  ({platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()})")
    for line in table:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for aim, met in aims:
        print(f"  {'met ' if met else 'MISS'}  {aim}")
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "name": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "aims": [{"aim": aim, "met": met} for aim, met in aims],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
