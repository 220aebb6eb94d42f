"""Reads the JSON that lies beside a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aiquery_serving.errors import ModelError


def read_json(file: Path) -> Any:
    """Return what a file holds; None if it is not there.

    Raises:
        ModelError: It holds no JSON.
    """
    try:
        return json.loads(file.read_text("utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
