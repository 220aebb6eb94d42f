"""`aiquery explain`, `aiquery run` and `aiquery jobs`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from providers import status

ROWS = 20


@pytest.fixture
def query(gpt, tmp_path):
    file = tmp_path / "job.sql"
    file.write_text(f"SELECT i, ai_query('gpt', 'n' || i) AS answer FROM range({ROWS}) t(i)")
    return file


def test_explain_sends_nothing_and_knows_what_would_be_sent(cli, ask_json, gpt, query):
    (call,) = ask_json("explain", query)["calls"]
    assert (call["endpoint"], call["rows"], call["requests"]) == ("gpt", ROWS, ROWS)
    assert "Nothing was sent." in cli("explain", query).stdout
    assert cli("explain", query, "--output", "csv").stdout.count("\n") == 2
    assert gpt.requests == []


def test_a_job_writes_its_rows_and_is_listed(cli, ask_json, query):
    told = cli("run", query, "-o", "out.csv", "--key", "i", "--name", "daily").stdout

    assert f"{ROWS} rows are in" in told
    with Path("out.csv").open(newline="") as file:
        assert list(csv.DictReader(file))[-1] == {"i": "19", "answer": "echo: n19"}
    (job,) = ask_json("jobs")
    assert (job["name"], job["state"], job["rows"], job["calls"]) == ("daily", "finished", ROWS, ROWS)
    assert ask_json("jobs", "list") == ask_json("jobs")
    assert ask_json("jobs", "show", "daily") == job
    assert "daily" in cli("jobs").stdout
    assert "20 answered of 20 known" in cli("jobs", "show", "daily").stdout


def test_a_job_stops_at_its_budget_and_goes_on_when_run_again(cli, ask_json, gpt, query):
    stopped = ask_json("run", query, "-o", "out.csv", "--max-calls", 5, code=4)
    finished = ask_json("run", query, "-o", "out.csv")

    assert stopped["state"] == "stopped"
    assert "run the job again" in stopped["result"]
    assert (finished["state"], finished["from_ledger"], finished["calls"]) == ("finished", 5, 15)
    assert len(gpt.requests) == ROWS


def test_a_job_stops_at_its_deadline(cli, ask_json, gpt, query):
    gpt.delay = 30.0
    stopped = ask_json("run", query, "-o", "out.csv", "--deadline", "1s", code=4)
    assert "deadline" in stopped["reason"]


def test_failed_rows_are_recorded_and_asked_again_only_when_told(cli, ask_json, gpt, query):
    gpt.fault, gpt.fault_when = status(400), lambda body: body["messages"][0]["content"] == "n3"
    recorded = ask_json("run", query, "-o", "out.csv", "--on-error", "record", code=5)
    gpt.fault = None
    again = ask_json("run", query, "-o", "out.csv", "--on-error", "record", code=5)
    mended = ask_json("run", query, "-o", "out.csv", "--on-error", "record", "--retry-failed")

    assert (recorded["failed"], again["failed"], mended["failed"]) == (1, 1, 0)
    assert recorded["failures"][0]["requests"] == 1
    assert len(gpt.requests) == ROWS + 1


def test_a_failing_job_fails_its_command(cli, gpt, query):
    gpt.fault = status(400)
    result = cli("run", query, "-o", "out.csv", code=1)
    assert result.stderr.startswith("Error: [REMOTE_FUNCTION_HTTP_FAILED_ERROR]")


def test_quiet_and_a_table_say_nothing_of_a_job_that_finished(cli, query):
    assert cli("run", query, "-o", "out.csv", "--quiet").output == ""


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["-o", "out.xls"], 1, "a file that ends in .parquet"),
        (["-o", "out.csv", "--key", "nothing"], 1, "no column 'nothing'"),
        (["-o", "out.csv", "--deadline", "soon"], 2, "neither a span of time"),
        (["-o", "out.csv", "--max-cost", "-1"], 2, "greater than or equal to 0"),
        ([], 2, "Missing option '-o' / '--to'"),
    ],
)
def test_what_a_job_cannot_be_is_told(cli, query, options, code, told):
    told_all = " ".join(cli("run", query, *options, code=code).stderr.replace("│", " ").split())
    assert told in told_all


def test_a_job_that_does_not_exist_is_not_found(cli, home):
    assert "There is no job 'x'" in cli("jobs", "show", "x", code=3).stderr
    assert "No such file" in cli("run", "nowhere.sql", "-o", "out.csv", code=3).stderr
