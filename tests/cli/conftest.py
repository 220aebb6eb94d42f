"""The command line in this process, on a workspace of its own, and files that declare endpoints of a local provider."""

from __future__ import annotations

import json
import logging

import pytest
from cli_declarations import declare, endpoint
from providers import KEY, OpenAIServer
from typer.testing import CliRunner

from aiquery.cli import app


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The workspace's folder; the current one is empty, and the environment names nothing."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AIQUERY_SECRET_KEY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIQUERY_HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path / "home"


@pytest.fixture
def cli(home):
    """Run a command; `code` is how it has to end. The result has `stdout`, `stderr` and `json`."""
    level = logging.getLogger("aiquery").level

    def run(*arguments, code=0, given=None):
        result = CliRunner().invoke(app, [*map(str, arguments)], input=given, catch_exceptions=False)
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    yield run
    logging.getLogger("aiquery").setLevel(level)


@pytest.fixture
def ask_json(cli):
    def run(*arguments, **options):
        return json.loads(cli(*arguments, "--output", "json", **options).stdout)

    return run


@pytest.fixture
def gpt(cli, server, tmp_path):
    """A workspace with a secret and the chat endpoint `gpt`."""
    cli("secrets", "put", "openai", "key", given=KEY)
    cli("endpoints", "apply", "-f", declare(tmp_path / "declared", endpoint(server)))
    return server
