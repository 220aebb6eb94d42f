"""A workspace with one endpoint of each kind, and a DuckDB connection that knows them."""

from __future__ import annotations

import duckdb
import pytest
from engine_endpoints import create_external
from providers import OpenAIServer

import aiquery


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def workspace(server, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with aiquery.Workspace(":memory:", user="ada@example.com") as opened:
        create_external(opened, server)
        yield opened


@pytest.fixture
def con(workspace):
    connection = duckdb.connect()
    aiquery.register(connection, workspace=workspace)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def custom_workspace(tmp_path_factory):
    """A workspace whose registry holds the models of `custom_models`, one endpoint for each."""
    import custom_models

    with aiquery.Workspace(tmp_path_factory.mktemp("custom") / "workspace") as opened:
        custom_models.register_all(opened)
        for endpoint, model in {
            "spam-classification-endpoint": "demo.mail.spam",
            "weekly-forecast": "demo.shop.forecast_a",
            "custom-llama-chat": "demo.chat.llama",
            "twins": "demo.twins",
            "upper": "demo.upper",
            "grumpy": "demo.grumpy",
        }.items():
            opened.create_endpoint(endpoint, {"served_entities": [custom_models.entity("only", model)]})
        opened.create_endpoint("split", custom_models.split(90, 10))
        yield opened


@pytest.fixture
def custom(custom_workspace):
    connection = duckdb.connect()
    aiquery.register(connection, workspace=custom_workspace)
    yield connection
    connection.close()
