"""`ai_query` in Polars: importing this module gives expressions the namespace `ai`.

import aiquery.polars
import polars as pl

frame.with_columns(answer=pl.col("text").ai.query("my-endpoint"))
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from typing import Any, Literal

try:
    import polars as pl
except ImportError as error:
    msg = "aiquery.polars needs Polars. Install it with: pip install 'aiquery[polars]'"
    raise ImportError(msg) from error

from aiquery.client import Workspace
from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs import polars_engine
from aiquery_udfs.runs import Reuse, Run

__all__ = ["AiNamespace", "ai_query", "use"]

_lock = threading.Lock()
_default: Workspace | None = None


def use(workspace: Workspace | None) -> None:
    """Take a workspace wherever none is given; None goes back to the one that `Workspace()` opens."""
    global _default  # noqa: PLW0603 - the module's one setting
    with _lock:
        _default = workspace


def ai_query(
    endpoint: str,
    request: pl.Expr | str,
    *,
    return_dtype: pl.DataType | type[pl.DataType] | type | str | None = None,
    workspace: Workspace | None = None,
    fail_on_error: bool = True,
    model_parameters: Mapping[str, Any] | None = None,
    response_format: str | Mapping[str, Any] | None = None,
    files: pl.Expr | str | None = None,
    cache: Literal["off", "reuse"] = "off",
    max_age: float | None = None,
) -> pl.Expr:
    """Ask an endpoint for every row; NULL rows are not asked, and identical ones are asked once.

    Everything is checked here that does not depend on rows, and nothing is sent before a frame is evaluated. Rows
    are answered in their order; several thousand of them are under way, if the endpoint takes so many.

    Args:
        endpoint: The endpoint's name.
        request: What to ask: a String for chat, completions and embeddings; for a custom model its one input, or
            `pl.struct` of several. A name stands for the column.
        return_dtype: The answers' type, a type of Polars or SQL type text (`"STRUCT<a: INT>"`). By default String
            for chat and completions, List(Float32) for embeddings, and for a custom model what its signature says.
        workspace: Where the endpoint is; by default the one that `use` set, else the one that `Workspace()` opens.
        fail_on_error: Raise the first row's error. Where false, answers are `Struct(result, errorMessage)`, one of
            which is NULL.
        model_parameters: `{"temperature": 0.2, "max_tokens": 100}`.
        response_format: What chat answers follow: DDL, JSON text, or a JSON schema as a dict.
        files: One image a row for chat, as Binary.
        cache: `reuse` keeps answers in the workspace's ledger and takes from there what was asked before.
        max_age: The age in seconds beyond which `reuse` asks again.

    Returns:
        An expression of one value a row, of `return_dtype`.

    Raises:
        AiFunctionError: An argument is wrong, or there is no such endpoint. The same class is raised for the first
            row that fails, when the frame is evaluated.
        InvalidRequestError: `cache` is neither `off` nor `reuse`.
    """
    if cache not in ("off", "reuse"):
        raise InvalidRequestError(f"The cache of an expression is 'off' or 'reuse', not {cache!r}.")
    return polars_engine.ai_query(
        (workspace or _workspace()).execution,
        endpoint,
        request,
        return_dtype=return_dtype,
        fail_on_error=fail_on_error,
        model_parameters=model_parameters,
        response_format=response_format,
        files=files,
        run=Run(reuse=Reuse(max_age_s=max_age)) if cache == "reuse" else None,
    )


@pl.api.register_expr_namespace("ai")
class AiNamespace:
    """What expressions have under `.ai`."""

    def __init__(self, request: pl.Expr) -> None:
        self._request = request

    def query(
        self, endpoint: str, return_dtype: pl.DataType | type[pl.DataType] | type | str | None = None, **options: Any
    ) -> pl.Expr:
        """Ask an endpoint for every row of this expression; see `aiquery.polars.ai_query` for the options."""
        return ai_query(endpoint, self._request, return_dtype=return_dtype, **options)


def _workspace() -> Workspace:
    """Return the workspace that was set, or open the default one once."""
    global _default  # noqa: PLW0603 - the module's one setting
    with _lock:
        if _default is None:
            _default = Workspace()
            atexit.register(_default.close)
        return _default
