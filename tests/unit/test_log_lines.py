"""The log of a serving program, line by line."""

from __future__ import annotations

import json
import logging

import pytest

from aiquery.server.logs import LogFormat, written

FORGED = "gone\n2026-01-01T00:00:00.000Z INFO aiquery.access: GET /admin 200\r\nand more"


@pytest.fixture
def told(capsys):
    def told(log_format, *words):
        with written(log_format):
            logging.getLogger("aiquery.models").warning(*words)
        return capsys.readouterr().err

    return told


def test_no_text_of_somebodys_begins_a_line(told):
    lines = told(LogFormat.TEXT, "Model '%s': %s", "m", FORGED).splitlines()
    assert [line for line in lines if not line.startswith("    ")] == lines[:1]
    assert lines[0].endswith("WARNING aiquery.models: Model 'm': gone")
    assert len(lines) == 3


def test_a_line_of_json_is_one_line(told):
    (line,) = told(LogFormat.JSON, "%s", FORGED).splitlines()
    assert json.loads(line)["message"] == FORGED


def test_a_traceback_belongs_to_its_line(capsys):
    with written(LogFormat.TEXT):
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logging.getLogger("aiquery.rest").exception("Request 1 failed.")
    first, *further = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR aiquery.rest: Request 1 failed.")
    assert further[-1] == "    ZeroDivisionError: division by zero"
    assert all(line.startswith("    ") for line in further)
