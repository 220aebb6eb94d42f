"""What holds for all tests: they leave nothing behind in the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind():
    before = {path.name for path in ROOT.iterdir()}
    yield
    left = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - before
    assert not left, f"The tests left {sorted(left)} in the checkout."
