"""Tables that fit their terminal and do nothing to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from aiquery.cli import output


@pytest.fixture
def terminal(monkeypatch):
    """Let standard output be a terminal of some width, without colours."""

    def of(width):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    return of


def test_where_nobody_looks_nothing_is_cut():
    text = output.table(["a", "b"], [["x" * 500, "y" * 500]])
    assert f"{'x' * 500}  {'y' * 500}" in text


def test_numbers_are_on_the_right_and_text_on_the_left():
    assert output.table(["n", "text"], [[1, "a"], [100, "b"]]).splitlines()[2:] == ["  1  a", "100  b"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(terminal, width):
    terminal(width)
    text = output.table(["name", "text", "kanji"], [["a", "lorem ipsum " * 30, "日本語" * 20]])
    assert max(map(cell_len, text.splitlines())) <= width


def test_a_table_too_wide_for_the_terminal_becomes_a_block_for_each_row(terminal):
    terminal(40)
    text = output.table(["first", "second", "third"], [["a" * 15, "b" * 15, "c" * 15], [1, 2, 3]])
    assert [line.split() for line in text.splitlines()[:4]] == [
        ["first", "a" * 15], ["second", "b" * 15], ["third", "c" * 15], [],
    ]  # fmt: skip


def test_an_empty_table_has_its_columns():
    assert output.table(["a", "b"], []).splitlines()[0] == "a  b"


def test_an_answer_cannot_speak_to_the_terminal():
    text = output.table(["answer"], [["\x1b[2Jgone\x07 \x9b31m\rback"]])
    assert "\\x1b[2Jgone\\x07 \\x9b31m\\x0dback" in text


@given(st.text())
def test_harmless_text_has_no_control_characters_but_line_ends(text):
    import unicodedata

    assert {char for char in output.harmless(text) if unicodedata.category(char) == "Cc"} <= {"\n"}


def test_nothing_in_brackets_is_taken_for_markup():
    assert "[bold]x[/bold]" in output.table(["[red]a"], [["[bold]x[/bold]"]])
