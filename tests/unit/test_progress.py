"""Progress: what a line says, when something is shown, and that nothing is left behind."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aiquery import displays, progress
from aiquery.displays import Lines, Notebook, Terminal, display
from aiquery.progress import Progress
from aiquery.snapshots import Reading, Snapshot, line, snapshot
from aiquery_udfs.runs import Run

FULL = Snapshot(
    seconds=65, rows=40_960, requests=12_345, from_ledger=345, failed=7, in_flight=256, requests_per_s=211.4,
    tokens_per_s=41_200, cost=1.25, share=0.42, seconds_left=185, waiting_for="paced by 300 calls/min on `gpt`",
)  # fmt: skip


class Seen:
    """A display that remembers."""

    def __init__(self):
        self.shown: list[Snapshot] = []
        self.visible = False

    def show(self, now):
        self.shown.append(now)
        self.visible = True

    def hide(self):
        self.visible = False


class Queue:
    """A gateway whose calls stand in line."""

    def waiting(self, endpoint):
        return f"paced on `{endpoint}`"


def spending(**more):
    spent = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0, "cost_known": True} | more
    return SimpleNamespace(spent=SimpleNamespace(**spent), in_flight=0)


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (130, "42% · 40,960 rows · 12,345 requests · 7 failed · 256 in flight · $1.25 · 3 min 5 s left · paced by 300 calls/min on `gpt`"),
        (100, "42% · 12,345 requests · 7 failed · $1.25 · 3 min 5 s left · paced by 300 calls/min on `gpt`"),
        (80, "42% · 40,960 rows · 12,345 requests · 7 failed · $1.25 · 3 min 5 s left"),
        (50, "42% · 12,345 requests · 7 failed · 3 min 5 s left"),
        (40, "42% · 12,345 requests · 7 failed · $1.25"),
        (20, "12,345 requests"),
        (8, "12,345 …"),
        (1, "…"),
    ],
)  # fmt: skip
def test_a_line_says_what_matters_most_in_the_width_it_has(width, said):
    assert line(FULL, width) == said


def test_a_line_of_any_width_says_everything():
    assert line(FULL) == (
        "42% · 40,960 rows · 12,345 requests · 345 from the ledger · 7 failed · 256 in flight · 211 requests/s"
        " · 41,200 tokens/s · $1.25 · 3 min 5 s left · paced by 300 calls/min on `gpt`"
    )


@given(st.integers(1, 250))
def test_a_wider_line_never_says_less(width):
    assert len(line(FULL, width)) <= width
    assert len(line(FULL, width)) <= len(line(FULL, width + 1))


def test_a_cost_that_is_not_whole_says_so():
    assert "at least $0.50" in line(Snapshot(seconds=3, cost=0.5, cost_known=False))
    assert "$" not in line(Snapshot(seconds=3))


def test_rates_are_those_of_the_latest_seconds_and_the_rest_is_since_the_beginning():
    began = Reading(at=100, rows=10, answered=10, tokens=5, cost=1.0)
    recent = Reading(at=190, answered=110, from_ledger=100, tokens=1_000)
    latest = Reading(at=200, rows=2058, answered=170, from_ledger=110, failed=3, tokens=3_000, cost=1.5, in_flight=4)
    now = snapshot(began, recent, latest, total_requests=320)
    assert (now.seconds, now.rows, now.requests, now.failed, now.cost) == (100, 2048, 160, 3, 0.5)
    assert (now.requests_per_s, now.tokens_per_s) == (5.0, 200.0)
    assert (now.share, now.seconds_left) == (0.5, pytest.approx(160 / 6))


def test_time_left_comes_from_the_whole_run_while_no_chunk_of_rows_has_come_lately():
    began, recent = Reading(at=0), Reading(at=30, rows=2048)
    now = snapshot(began, recent, Reading(at=40, rows=2048), total_rows=4096)
    assert (now.share, now.seconds_left) == (0.5, pytest.approx(40))


@pytest.mark.parametrize(("rows", "share"), [(0, None), (5, 1.0), (9, 1.0)])
def test_nothing_is_promised_of_a_run_that_has_not_begun_and_never_more_than_all(rows, share):
    now = snapshot(Reading(at=0), Reading(at=0), Reading(at=5, rows=rows), total_rows=5)
    assert now.share == (share or 0.0)
    assert now.seconds_left == (None if not rows else 0)


def test_a_run_of_no_rows_is_done():
    assert snapshot(Reading(at=0), Reading(at=0), Reading(at=5), total_rows=0).share == 1.0


def test_a_job_is_shown_after_two_seconds_with_what_it_waits_for():
    run, seen = Run(meter=spending(prompt_tokens=30, completion_tokens=12, cost=0.25)), Seen()
    follow = Progress(run, Queue(), seen, total_requests=8)
    run.tally.endpoints.update("ba")
    for now in (100.0, 101.0, 101.9):
        follow.look(now)
    assert not seen.visible
    run.tally.answered = 4
    follow.look(102.0)
    assert seen.visible
    (shown,) = seen.shown
    assert (shown.share, shown.seconds_left, shown.waiting_for) == (0.5, 2.0, "paced on `a`")


def test_a_paused_job_waits_for_no_limit():
    run, seen = Run(), Seen()
    run.paused.set()
    follow = Progress(run, Queue(), seen)
    follow.look(0)
    follow.look(5)
    assert seen.shown[-1].waiting_for == "paused"


def test_a_session_is_shown_while_its_engine_waits_and_half_a_second_longer():
    run, seen = Run(), Seen()
    follow = Progress(run, Queue(), seen, open_ended=True)
    visible = []

    def look(now, waits):
        run.tally.waiting = int(waits)
        run.tally.waited_at = now if waits else run.tally.waited_at
        run.tally.rows += 100
        follow.look(now)
        visible.append(seen.visible)

    for now, waits in ((10, False), (11, True), (11.9, True), (12.1, True), (12.5, False), (12.7, False), (13, True)):
        look(now, waits)
    assert visible == [False, False, False, True, True, False, False]
    assert [shown.rows for shown in seen.shown] == [300], "nothing is drawn once the engine does not wait"
    look(15, waits=True)
    assert seen.shown[-1].rows == 200, "each statement counts from its own beginning"


def screen(written: str, width: int, height: int = 12) -> list[str]:
    """What a terminal shows, for the few things that we write to one."""
    lines, row, column = [[" "] * width for _ in range(height)], 0, 0
    for found in re.finditer(r"\x1b\[(\d*)([A-Za-z])|\n|\r|.", written):
        count, command = found[1], found[2]
        if command == "J":
            lines[row][column:] = [" "] * (width - column)
            lines[row + 1 :] = [[" "] * width for _ in lines[row + 1 :]]
        elif command == "A":
            row -= int(count)
        elif command is None and found[0] == "\n":
            row, column = row + 1, 0
        elif command is None and found[0] == "\r":
            column = 0
        elif command is None:
            assert column < width, "a line was longer than the terminal"
            lines[row][column] = found[0]
            column += 1
    return ["".join(text).rstrip() for text in lines]


def terminal(width: int) -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    return Terminal(Console(file=file, force_terminal=True, width=width, _environ={})), file


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_a_terminal_shows_a_bar_and_a_line_and_is_left_as_it_was(width):
    shown, file = terminal(width)
    for _ in range(3):
        shown.show(FULL)
    _, bar, text, *below = screen(file.getvalue(), width)
    assert set(bar) <= set("━╸╺ ")
    assert text == line(FULL, width - 1)
    assert not any(below)
    shown.hide()
    shown.hide()
    assert not any(screen(file.getvalue(), width))


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_what_others_print_on_a_terminal_meanwhile_stays(monkeypatch):
    file, other = Tty(), io.StringIO()
    shown = Terminal(Console(file=file, force_terminal=True, width=60, _environ={}))
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", other)
    shown.show(FULL)
    print("a row of the result")
    print("and another one")
    shown.show(FULL)
    assert sys.stderr is other, "what goes into a file is not touched"
    file.write(">>> ")
    shown.hide()
    assert sys.stdout is file
    assert [text for text in screen(file.getvalue(), 60) if text] == ["a row of the result", "and another one", ">>>"]


def test_a_phrase_with_brackets_is_no_markup():
    shown, file = terminal(80)
    shown.show(Snapshot(seconds=3, waiting_for="paced on [red]"))
    assert "paced on [red]" in screen(file.getvalue(), 80)[2]


@pytest.fixture
def bare_logger(monkeypatch):
    """A logger that nobody has configured, as in a script."""
    logger = logging.Logger("aiquery.progress")  # noqa: LOG001 - nobody else is to have it
    monkeypatch.setattr(displays, "_log", logger)
    return logger


def test_lines_come_every_ten_seconds(bare_logger, capsys):
    lines = Lines()
    for seconds in (2.0, 2.2, 11.9, 12.0, 13.0):
        lines.show(Snapshot(seconds=seconds, rows=int(seconds * 10)))
    assert capsys.readouterr().err.splitlines() == [
        "aiquery: 20 rows · 0 requests",
        "aiquery: 120 rows · 0 requests",
    ]


def test_lines_go_to_the_log_where_one_takes_them(bare_logger, capsys):
    taken = []
    handler = logging.Handler()
    handler.emit = lambda record: taken.append(record.getMessage())
    bare_logger.addHandler(handler)
    bare_logger.setLevel(logging.INFO)
    Lines().show(Snapshot(seconds=2, rows=7))
    assert taken == ["7 rows · 0 requests"]
    assert capsys.readouterr().err == ""


class Cell:
    """What IPython's display gives to update an output in place."""

    def __init__(self, first):
        self.contents = [first]

    def update(self, content):
        self.contents.append(content)


def test_a_notebook_has_one_output_that_ends_empty(monkeypatch):
    cells = []

    def show(content, display_id):
        cells.append(Cell(content))
        return cells[-1]

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=show))
    notebook = Notebook()
    notebook.show(FULL)
    notebook.show(Snapshot(seconds=4, waiting_for="<b>"))
    notebook.hide()
    notebook.hide()
    (cell,) = cells
    assert [('value="0.4200"' in html, "&lt;b&gt;" in html) for html in cell.contents[:2]] == [
        (True, False),
        (False, True),
    ]
    assert cell.contents[2:] == [""]


class ZMQInteractiveShell:
    """What a notebook's kernel calls its shell."""


@pytest.mark.parametrize(
    ("stderr", "term", "enabled", "kind"),
    [
        (Tty(), "xterm", None, "Terminal"),
        (Tty(), "xterm", False, "NoneType"),
        (Tty(), "dumb", None, "NoneType"),
        (Tty(), "dumb", True, "Lines"),
        (io.StringIO(), "xterm", None, "NoneType"),
        (io.StringIO(), "xterm", True, "Lines"),
        (None, "xterm", None, "NoneType"),
    ],
)
def test_it_is_shown_where_somebody_looks(stderr, term, enabled, kind, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", term)
    assert type(display(enabled)).__name__ == kind


def test_a_notebook_is_told_by_its_shell(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=ZMQInteractiveShell))
    assert isinstance(display(), Notebook)
    assert display(enabled=False) is None


def test_a_display_that_breaks_ends_the_showing_and_not_the_run(monkeypatch):
    class Broken(Seen):
        def hide(self):
            raise BrokenPipeError

    monkeypatch.setattr(progress, "display", lambda enabled: Broken())
    with progress.shown(Run(), Queue()):
        done = True
    assert done


@pytest.fixture
def seen_at_once(monkeypatch):
    """A display that every run is shown on without delay."""
    seen = Seen()
    monkeypatch.setattr(progress, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(progress, "display", lambda enabled: seen)
    return seen


def test_one_thread_follows_a_session_and_ends_with_it(seen_at_once):
    follow = progress.following(Run(), Queue())
    follow.start()
    follow.start()
    (thread,) = (one for one in threading.enumerate() if one.name == "aiquery-progress")
    follow.stop()
    follow.stop()
    assert not thread.is_alive()
    follow.start()
    assert not any(one.name == "aiquery-progress" for one in threading.enumerate())


def test_a_job_is_shown_until_it_ends_however_it_does(seen_at_once):
    def fail():
        with progress.shown(Run(), Queue()):
            while not seen_at_once.visible:
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not seen_at_once.visible


def test_nothing_is_followed_where_nothing_is_shown():
    before = threading.active_count()
    with progress.shown(Run(), Queue(), enabled=False):
        assert threading.active_count() == before
    assert progress.following(Run(), Queue(), enabled=False) is None
