"""aiquery: `ai_query` on stock DuckDB, against serving endpoints that live in your own process.

import aiquery, duckdb

workspace = aiquery.Workspace()
con = duckdb.connect()
aiquery.register(con, workspace=workspace)
con.sql("SELECT id, ai_query('my-endpoint', text) FROM reviews")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiquery.client import Workspace, register
    from aiquery.server import serve
    from aiquery.session import Session, connect
    from aiquery_serving.errors import AiQueryError
    from aiquery_udfs.errors import AiFunctionError

__all__ = ["AiFunctionError", "AiQueryError", "Session", "Workspace", "__version__", "connect", "register", "serve"]

__version__ = "0.1.0"

_HOMES = {
    "AiFunctionError": "aiquery_udfs.errors",
    "AiQueryError": "aiquery_serving.errors",
    "Session": "aiquery.session",
    "Workspace": "aiquery.client",
    "connect": "aiquery.session",
    "register": "aiquery.client",
    "serve": "aiquery.server",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use, so that `import aiquery` stays fast."""
    if name not in _HOMES:
        msg = f"module 'aiquery' has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
