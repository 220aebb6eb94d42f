"""Runs the SQL-and-answer pairs of `sql/*.test`: a comment, a query, `----`, one line per row."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent / "sql"


def pairs():
    for file in sorted(HERE.glob("*.test")):
        for paragraph in file.read_text().split("\n\n-- "):
            title, _, rest = paragraph.removeprefix("-- ").partition("\n")
            query, _, answer = rest.partition("\n----")
            rows = answer.removeprefix("\n").split("\n")
            yield pytest.param(
                query, [row for row in rows if row or len(rows) == 1] if answer.strip() else [], id=title
            )


def shown(value: object) -> str:
    return str(value).replace("None", "NULL")


@pytest.mark.parametrize(("query", "expected"), list(pairs()))
def test_the_query_answers(con, query, expected):
    found = [" | ".join(map(shown, row)) for row in con.execute(query).fetchall()]

    assert [row.rstrip() for row in found] == [row.rstrip() for row in expected]
