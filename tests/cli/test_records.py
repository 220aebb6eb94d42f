"""`aiquery ledger` and `aiquery usage`."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def asked(cli, gpt):
    cli("sql", "SELECT ai_query('gpt', 'n' || i) FROM range(5) t(i)", "--cache", "reuse")


def test_nothing_has_happened_in_a_new_workspace(cli, home):
    assert "The ledger is empty" in cli("ledger", "stats").stdout
    assert "Nothing has been asked" in cli("usage").stdout
    assert not (home / "ledger.db").exists()


@pytest.mark.usefixtures("asked")
def test_usage_and_ledger_are_counted(ask_json, cli):
    (used,), (kept,) = ask_json("usage"), ask_json("ledger", "stats")

    assert (used["endpoint"], used["calls"], used["errors"]) == ("gpt", 5, 0)
    assert (kept["endpoint"], kept["answers"], kept["failures"]) == ("gpt", 5, 0)
    assert cli("usage", "--output", "csv").stdout.startswith("endpoint,served_entity,calls,rows,errors,tokens_in")


@pytest.mark.usefixtures("asked")
def test_answers_are_pruned_by_endpoint_age_or_all(ask_json):
    assert ask_json("ledger", "prune", "--endpoint", "other") == {"pruned": 0}
    assert ask_json("ledger", "prune", "--older-than", "1d") == {"pruned": 0}
    assert ask_json("ledger", "prune", "--endpoint", "gpt", "--older-than", "0s") == {"pruned": 5}
    assert ask_json("ledger", "prune", "--all") == {"pruned": 0}


@pytest.mark.parametrize("options", [["--all", "--endpoint", "gpt"], ["--older-than", "soon"]])
def test_prune_has_to_be_told_what(cli, options):
    cli("ledger", "prune", *options, code=2)


@pytest.mark.usefixtures("asked")
def test_the_ledger_is_exported(ask_json, tmp_path):
    assert ask_json("ledger", "export", tmp_path / "out.jsonl")["exported"] == 5
    answers = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(answers) == [f"echo: n{i}" for i in range(5)]
