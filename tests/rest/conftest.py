"""A real server on a free port, over a workspace whose endpoints' provider runs on this machine."""

from __future__ import annotations

import pytest
from engine_endpoints import create_external
from providers import OpenAIServer
from rest_server import serving

import aiquery


@pytest.fixture
def provider():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def workspace(provider, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with aiquery.Workspace(":memory:", user="ada@example.com") as opened:
        create_external(opened, provider)
        yield opened


@pytest.fixture
def server(workspace):
    """A server with `.url` and `.workspace`, where `ada@example.com` needs no token."""
    with serving(workspace) as running:
        yield running
