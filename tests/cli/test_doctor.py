"""`aiquery doctor` says what works, and what to do where something does not."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest

from aiquery.cli import examinations


def findings(result):
    return {row["subject"]: (row["state"], row["found"], row["advice"]) for row in json.loads(result.stdout)}


@pytest.fixture
def examine(cli, monkeypatch):
    """Look at what is not looked at faster elsewhere: the packages and the attempt have a test of their own."""

    def run(code=0):
        monkeypatch.setattr(examinations, "BASIC", ())
        return findings(cli("doctor", "--output", "json", code=code))

    return run


def test_a_fresh_machine_is_well_and_nothing_is_left_behind(cli, home):
    result = cli("doctor")

    assert "ok    ai_query: answers" in result.stdout
    assert "FAIL" not in result.stdout
    assert f"{home}, made at first use" in result.stdout
    assert not home.exists()


def test_what_is_missing_comes_with_the_line_that_brings_it(monkeypatch):
    monkeypatch.setattr(examinations, "_version", lambda name: None if name in ("polars", "wreq") else "2.0.0")
    found = {one.subject: one for one in (*examinations.installed(), *examinations.optional())}

    assert (found["wreq"].state, found["wreq"].advice) == ("fail", "pip install wreq")
    assert (found["polars"].state, found["polars"].advice) == (
        "ok",
        "for ai_query on Polars frames: pip install polars",
    )


def test_what_language_models_would_run_on_is_told(monkeypatch):
    monkeypatch.setattr(examinations, "_version", lambda name: None if name == "llguidance" else "2.0.0")
    (missing,) = examinations.language_models()
    assert (missing.state, missing.advice) == ("ok", "for them: pip install 'aiquery[llm]'")

    torch = SimpleNamespace(
        cuda=SimpleNamespace(device_count=lambda: 2, get_device_name=lambda number: f"GPU {number}")
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(examinations, "_version", lambda _: "2.0.0")
    (ready,) = examinations.language_models()
    assert ready.found == "vLLM on GPU 0, GPU 1"


def test_an_old_duckdb_is_told(monkeypatch):
    monkeypatch.setattr(examinations, "_version", lambda _: "1.4.0")
    (old,) = [one for one in examinations.installed() if one.subject == "duckdb"]
    assert (old.state, old.advice) == ("fail", "pip install 'duckdb>=2,<3'")


@pytest.mark.usefixtures("gpt")
def test_a_healthy_workspace_is_told_endpoint_by_endpoint(examine):
    found = examine()
    assert found["endpoint gpt"] == ("ok", "ready", "")
    assert found["secrets"][1] == "1 stored, key file readable by you alone"
    assert {state for state, _, _ in found.values()} == {"ok"}


@pytest.mark.usefixtures("gpt")
def test_a_secret_that_is_gone_is_found(cli, examine):
    cli("secrets", "delete", "openai", "key")
    state, found, _ = examine(code=1)["endpoint gpt"]
    assert state == "fail"
    assert "Secret 'openai/key' is not in this workspace" in found


@pytest.mark.usefixtures("gpt")
def test_a_key_file_that_others_can_read_is_found(examine, home):
    (home / "secret.key").chmod(0o644)
    assert examine(code=1)["secrets"] == (
        "fail",
        "others can have the key file (mode 0644)",
        f"chmod 600 '{home}/secret.key'",
    )


@pytest.mark.usefixtures("gpt")
def test_a_key_file_that_is_gone_is_found(examine, home):
    (home / "secret.key").unlink()
    assert examine(code=1)["secrets"][:2] == ("fail", "the key file is missing")


def test_a_damaged_workspace_is_found(examine, home):
    home.mkdir()
    (home / "workspace.db").write_bytes(b"not a database" * 100)
    state, found, _ = examine(code=1)["workspace"]
    assert state == "fail"
    assert "is damaged" in found


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_cannot_be_written_is_found(examine, home, monkeypatch, made):
    if made:
        home.mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    state, _, advice = examine(code=1)["workspace"]
    assert (state, "writable" in advice) == ("fail", True)


@pytest.mark.usefixtures("gpt")
def test_a_registry_that_cannot_be_reached_is_found(examine, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    state, found, _ = examine(code=1)["model registry"]
    assert state == "fail"
    assert "127.0.0.1:9 cannot be opened" in found


def test_version_names_the_versions(ask_json, cli):
    found = ask_json("version")
    assert set(found) == {"aiquery", "python", "duckdb"}
    assert cli("version").stdout.startswith(f"aiquery {found['aiquery']} (Python")
