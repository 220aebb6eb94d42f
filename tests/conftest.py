"""What holds for all tests: they leave nothing behind, in the checkout or in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind():
    before = {path.name for path in ROOT.iterdir()}
    yield
    left = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - before
    assert not left, f"The tests left {sorted(left)} in the checkout."


@pytest.fixture(autouse=True)
def registries_stay_named_as_they_were():
    """MLflow writes into the environment what a test calls its registry; the next test's workspace would read it."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
