"""Jobs, their answers, usage, engines and inference tables in a session's SQL.

`ai_jobs()`, `ai_results('job')`, `ai_usage()`, `ai_engines()` and `ai_payloads('endpoint')`. DuckDB has no table
functions in Python. But a macro can unnest the list that a scalar function returns. The list depends on the
transaction, so it is made when a statement runs and not when it is planned. Inference tables are files: their list is
all that Python gives.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from duckdb.func import FunctionNullHandling

from aiquery_serving.errors import AiQueryError, InvalidRequestError
from aiquery_serving.usage import OK, Invocation

if TYPE_CHECKING:
    import duckdb

    from aiquery.client import Workspace
    from aiquery_serving.endpoint import ServedEntity
    from aiquery_serving.job_log import JobRecord
    from aiquery_serving.ledger import Entry
    from aiquery_serving.messages import Json

#: Answers that `ai_results` returns unless it is told otherwise: those that were written last.
MOST_RESULTS: Final = 100_000
_JOB: Final = (
    "name VARCHAR, state VARCHAR, rows BIGINT, known BIGINT, answered BIGINT, from_ledger BIGINT, failed BIGINT,"
    " in_flight BIGINT, calls BIGINT, prompt_tokens BIGINT, completion_tokens BIGINT, cost DOUBLE, cost_known BOOLEAN,"
    " started_at TIMESTAMPTZ, ended_at TIMESTAMPTZ, seconds DOUBLE, reason VARCHAR, output VARCHAR, pid BIGINT,"
    " sql VARCHAR"
)
_RESULT: Final = (
    "endpoint VARCHAR, served_entity VARCHAR, answer VARCHAR, vector FLOAT[], error_class VARCHAR,"
    " error_message VARCHAR, attempts BIGINT, prompt_tokens BIGINT, completion_tokens BIGINT, written_at TIMESTAMPTZ"
)
_USAGE: Final = (
    "endpoint VARCHAR, served_entity VARCHAR, job VARCHAR, calls BIGINT, rows BIGINT, errors BIGINT,"
    " prompt_tokens BIGINT, completion_tokens BIGINT, cost DOUBLE, latency_p50_ms DOUBLE, latency_p99_ms DOUBLE"
)
_ENGINE: Final = (
    "endpoint VARCHAR, served_entity VARCHAR, engine VARCHAR, device VARCHAR, loaded BOOLEAN, running BIGINT,"
    " waiting BIGINT, finished BIGINT, preempted BIGINT, prompt_tokens BIGINT, cached_tokens BIGINT,"
    " completion_tokens BIGINT, steps BIGINT, busy_seconds DOUBLE, kv_tokens BIGINT, kv_tokens_used BIGINT,"
    " prefix_hit_rate DOUBLE"
)
_PAYLOAD: Final = (
    "request_date DATE, databricks_request_id VARCHAR, client_request_id VARCHAR, request_time TIMESTAMPTZ,"
    " status_code INTEGER, sampling_fraction DOUBLE, execution_duration_ms BIGINT, request VARCHAR, response VARCHAR,"
    " served_entity_id VARCHAR, served_entity_name VARCHAR, requester VARCHAR, logging_error_codes VARCHAR[]"
)
_numbers: Final = itertools.count(1)


def register(connection: duckdb.DuckDBPyConnection, workspace: Workspace) -> None:
    """Make the tables of a workspace available on a connection. Nothing is written to its database file."""
    number = next(_numbers)

    def define(macro: str, body: str, types: list[Any], rows: Callable[..., list[Json]], row: str) -> None:
        name = f"__aiquery_{number}_{macro.partition('(')[0]}"
        connection.create_function(
            name, rows, types, f"STRUCT({row})[]", null_handling=FunctionNullHandling.SPECIAL, side_effects=True
        )
        connection.execute(
            f"CREATE OR REPLACE TEMP MACRO {macro} AS TABLE SELECT unnest({name}({body}), max_depth := 2)"
        )

    # DuckDB would evaluate annotations, which lambdas have not.
    this, most = "txid_current()::BIGINT", f"latest := {MOST_RESULTS}"
    results, asked = f"ai_results(job, {most})", f"{this}, job::VARCHAR, latest::BIGINT"
    define("ai_jobs()", this, ["BIGINT"], lambda _: _jobs(workspace), _JOB)
    define(
        results,
        asked,
        ["BIGINT", "VARCHAR", "BIGINT"],
        lambda _, job, latest: _results(workspace, job, latest),
        _RESULT,
    )
    define("ai_usage()", this, ["BIGINT"], lambda _: _usage(workspace), _USAGE)
    define("ai_engines()", this, ["BIGINT"], lambda _: workspace.engines(), _ENGINE)
    _define_payloads(connection, workspace, f"__aiquery_{number}_ai_payloads")


def _define_payloads(connection: duckdb.DuckDBPyConnection, workspace: Workspace, name: str) -> None:
    give: Callable[[Workspace, str | None], list[Any]]
    asked = f"{name}(endpoint::VARCHAR)"
    if in_memory := workspace.path is None:
        give, returned, body = _payload_rows, f"STRUCT({_PAYLOAD})[]", f"SELECT unnest({asked}, max_depth := 2)"
    else:
        give, returned, body = _payload_files, "VARCHAR[]", f"FROM read_parquet({asked}, hive_partitioning := false)"
    connection.create_function(
        name,
        lambda endpoint: give(workspace, endpoint),
        ["VARCHAR"],
        returned,
        null_handling=FunctionNullHandling.SPECIAL,
        side_effects=in_memory,  # else it is run to plan a statement: that is when files are opened
    )
    connection.execute(f"CREATE OR REPLACE TEMP MACRO ai_payloads(endpoint) AS TABLE {body}")


def _payload_files(workspace: Workspace, endpoint: str | None) -> list[str]:
    files = workspace.payloads.files(_logged(workspace, endpoint))
    return [re.sub(r"([*?\[])", r"[\1]", str(file)) for file in files]  # names, not patterns


def _payload_rows(workspace: Workspace, endpoint: str | None) -> list[Json]:
    rows: list[Json] = workspace.payloads.table(_logged(workspace, endpoint)).to_pylist()
    return rows


def _logged(workspace: Workspace, endpoint: str | None) -> str:
    """Return the id of an endpoint whose requests the workspace's user may see."""
    record = workspace.endpoint_records().get(endpoint or "")
    if record is None:
        raise InvalidRequestError(f"There is no endpoint '{endpoint}' in this workspace.")
    workspace.access.require(record.name, record.id, record.creator, workspace.user, "CAN_MANAGE")
    return record.id


def _jobs(workspace: Workspace) -> list[Json]:
    return [_job_row(job) for job in workspace.job_log.all()]


def _job_row(job: JobRecord) -> Json:
    ended_ms = job.updated_ms if job.state == "interrupted" else job.ended_ms
    row = {name: getattr(job, name) for name in _names(_JOB) if hasattr(job, name)}
    return row | {
        "started_at": _moment(job.started_ms),
        "ended_at": _moment(ended_ms) if ended_ms else None,
        "seconds": ((ended_ms or job.updated_ms) - job.started_ms) / 1000,
    }


def _results(workspace: Workspace, name: str | None, latest: int | None) -> list[Json]:
    """Return what was written since a job first began, by the endpoints that it asks."""
    job = workspace.job_log.find(name or "")
    if job is None:
        raise InvalidRequestError(f"There is no job '{name}' in this workspace. FROM ai_jobs() lists them.")
    entries = workspace.ledger.recent(since_ms=job.created_ms, endpoints=json.loads(job.endpoints), most=latest or 0)
    return [_result_row(entry) for entry in entries]


def _result_row(entry: Entry) -> Json:
    answer = entry.answer
    return {
        "endpoint": entry.endpoint,
        "served_entity": entry.served_entity,
        "answer": answer if isinstance(answer, str) else None,
        "vector": None if answer is None or isinstance(answer, str) else answer.tolist(),
        "error_class": entry.failure.kind if entry.failure else None,
        "error_message": entry.failure.message if entry.failure else None,
        "attempts": entry.attempts,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "written_at": _moment(entry.written_ms),
    }


def _usage(workspace: Workspace) -> list[Json]:
    """Return what was used per endpoint, served entity and job, in that order."""
    groups: defaultdict[tuple[str, str, str], list[Invocation]] = defaultdict(list)
    for row in workspace.invocations():
        call = Invocation(*row)
        groups[call.endpoint, call.served_entity, call.job].append(call)
    return [_usage_row(workspace, key, calls) for key, calls in sorted(groups.items())]


def _usage_row(workspace: Workspace, key: tuple[str, str, str], calls: list[Invocation]) -> Json:
    import numpy as np

    endpoint, served_entity, job = key
    prompt, completion = (sum(getattr(call, f"{kind}_tokens") for call in calls) for kind in ("prompt", "completion"))
    latency = np.percentile([call.latency_ms for call in calls], [50, 99])
    served = _served(workspace, endpoint, served_entity)
    price = workspace.prices.of(served, endpoint) if served is not None else None
    return {
        "endpoint": endpoint,
        "served_entity": served_entity,
        "job": job or None,
        "calls": len(calls),
        "rows": sum(call.rows for call in calls),
        "errors": sum(call.status != OK for call in calls),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost": price.cost(prompt, completion, len(calls)) if price is not None else None,
        "latency_p50_ms": float(latency[0]),
        "latency_p99_ms": float(latency[1]),
    }


def _served(workspace: Workspace, endpoint: str, name: str) -> ServedEntity | None:
    """Return a served entity as it is declared now; None when there is none of that name any more."""
    try:
        served = workspace.gateway.serving(endpoint).config.served_entities
    except AiQueryError:
        return None
    return next((entity for entity in served if entity.name == name), None)


def _names(row: str) -> list[str]:
    return [field.split()[0] for field in row.split(",")]


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
